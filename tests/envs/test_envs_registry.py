"""Making environments by name."""

import subprocess
import sys

import jax
import pytest

from worldmodels_jax import envs


def test_names_are_sorted_and_hold_the_suite_and_the_toy():
    names = envs.names()
    assert list(names) == sorted(names)
    assert {"SpriteJump", "Catch-bsuite", "Breakout-MinAtar", "CartPole-v1"} <= set(names)
    assert {"Craftax-Classic-Pixels", "Craftax-Classic-Symbolic"} <= set(names)
    assert "MNISTBandit-bsuite" not in names


@pytest.mark.parametrize("name", envs.names())
def test_every_name_can_be_made_reset_and_stepped_with_the_types_of_its_spec(name):
    if name.startswith("Craftax"):
        pytest.importorskip("craftax")
    env = envs.make(name)
    spec = env.spec
    assert spec.name == name
    action = (
        jax.ShapeDtypeStruct((), "int32")
        if spec.discrete
        else jax.ShapeDtypeStruct((spec.num_actions,), "float32")
    )
    key = jax.random.key(0)
    state, first = jax.eval_shape(env.reset, key)
    next_state, step = jax.eval_shape(env.step, state, action, key)
    # Weak types included: a scan could not carry anything that changes.
    assert jax.tree.leaves(state) == jax.tree.leaves(next_state)
    for time_step in (first, step):
        assert time_step.observation.shape == spec.observation_shape
        assert time_step.observation.dtype == spec.observation_dtype
        assert [(field.shape, str(field.dtype)) for field in time_step[1:]] == [
            ((), "float32"),
            ((), "bool"),
            ((), "bool"),
            ((), "bool"),
        ]


def test_arguments_are_passed_on():
    assert envs.make("SpriteJump", max_episode_steps=7).spec.max_episode_steps == 7
    spec = envs.make("DeepSea-bsuite", size=5, max_episode_steps=3).spec
    assert spec.observation_shape == (5, 5, 1)
    assert spec.max_episode_steps == 3


def test_unknown_names_are_told_their_neighbours_and_the_list():
    with pytest.raises(ValueError, match=r"'spritejmp'. Did you mean SpriteJump.*envs.names\(\)"):
        envs.make("spritejmp")
    with pytest.raises(ValueError, match=r"'qqqqqqq'. List them all"):
        envs.make("qqqqqqq")


def test_host_environments_are_told_apart():
    for name, maker in (
        ("atari/Pong", "make_atari"),
        ("dmc/walker_walk", "make_dmc"),
        ("gymnasium/CartPole-v1", "make_gymnasium"),
    ):
        with pytest.raises(ValueError, match=rf"'{name}' is stepped on the host: .*{maker}"):
            envs.make(name)


def test_makers_are_imported_when_asked_for():
    for name in envs.__all__:
        assert callable(getattr(envs, name))
    with pytest.raises(AttributeError, match="no attribute 'make_chess'"):
        envs.make_chess  # noqa: B018


def test_importing_the_room_does_not_import_optional_suites():
    optional = {"ale_py", "craftax", "dm_control", "gymnasium", "gymnax"}
    program = f"import sys, worldmodels_jax.envs; sys.exit(bool({optional} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)
