"""Making environments by name."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from worldmodels_jax import envs


def test_names_are_sorted_and_hold_the_suite_and_the_toy():
    names = envs.names()
    assert list(names) == sorted(names)
    assert {"SpriteJump", "Catch-bsuite", "Breakout-MinAtar", "CartPole-v1"} <= set(names)
    assert "MNISTBandit-bsuite" not in names


@pytest.mark.parametrize("name", envs.names())
def test_every_name_can_be_made_reset_and_stepped_with_the_types_of_its_spec(name):
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
    assert envs.is_host_env("atari/Pong")
    assert not envs.is_host_env("Pong-misc")
    with pytest.raises(ValueError, match=r"'atari/Pong'.*make_host\('atari/Pong'"):
        envs.make("atari/Pong")
    with pytest.raises(ValueError, match="'Pong-misc' is not a host environment"):
        envs.make_host("Pong-misc", num_envs=1, seed=0)


def test_make_host_makes_the_emulators_it_names():
    pytest.importorskip("ale_py")
    vector = envs.make_host("atari/Pong", 2, 0, max_noops=0)
    assert vector.spec.name == "atari/Pong"
    assert vector.num_envs == 2
    first = vector.reset()
    np.testing.assert_array_equal(first.observation[0], first.observation[1])


def test_importing_the_room_does_not_import_ale():
    program = "import sys, worldmodels_jax.envs; sys.exit('ale_py' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
