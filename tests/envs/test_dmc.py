import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from worldmodels_jax.envs.dmc import DmcEnv, make_dmc, task_names
from worldmodels_jax.envs.dmc_backend import import_suite, select_backend

# The sizes of the action vectors, from the suite's technical report (Tassa et al. 2018).
ACTION_SIZES = {
    "acrobot": 1,
    "cartpole": 1,
    "cheetah": 6,
    "cup": 2,
    "finger": 2,
    "hopper": 4,
    "pendulum": 1,
    "quadruped": 12,
    "reacher": 2,
    "walker": 6,
}


@pytest.fixture(scope="module", autouse=True)
def suite():
    try:
        return import_suite(select_backend())
    except ImportError as error:
        if "draw" not in str(error):
            raise
        pytest.skip(f"MuJoCo cannot draw here: {error}")


@pytest.fixture
def make():
    """Makes environments that are closed after the test."""
    made = []

    def make(task, seed=0, rendering="fast", **kwargs):
        made.append(DmcEnv(task, np.random.SeedSequence(seed), rendering=rendering, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def end_with(monkeypatch):
    """Lets every step of pendulum's task end the episode with a discount."""
    task = importlib.import_module("dm_control.suite.pendulum").SwingUp

    def end_with(discount):
        monkeypatch.setattr(task, "get_termination", lambda self, physics: discount)

    return end_with


def _actions(env, num_steps, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (num_steps, env.spec.num_actions)).astype(np.float32)


def _play(env, actions):
    """Returns the stacked observations, rewards, terminated, truncated and is_first."""
    return tuple(np.array(column) for column in zip(*map(env.step, actions), strict=True))


def _assert_same(steps, others):
    for field, other in zip(steps, others, strict=True):
        np.testing.assert_array_equal(field, other)


def _load(suite, domain, task, seed=0):
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    return suite.load(domain, task, task_kwargs={"random": random})


def _assert_continues(make, task, before=16, after=20, episode=12):
    """Restores the state of one environment to another, which has gone other ways."""
    env = make(task, max_episode_steps=episode)
    steps_before = _play(env, _actions(env, before))
    saved = json.loads(json.dumps(env.state()))
    expected = _play(env, _actions(env, after, seed=1))
    other = make(task, seed=1, max_episode_steps=episode)
    _play(other, _actions(env, 2))
    other.restore(saved)
    _assert_same(_play(other, _actions(env, after, seed=1)), expected)
    return env.spec, steps_before


def test_the_benchmark_has_20_tasks():
    assert len(set(task_names())) == 20
    assert {name.split("_")[0] for name in task_names()} == set(ACTION_SIZES)


@pytest.mark.parametrize("task", task_names())
def test_every_task_is_drawn_and_goes_on_from_its_state(make, task):
    spec, steps = _assert_continues(make, task)
    assert spec.name == f"dmc/{task}"
    assert spec.observation_shape == (64, 64, 3)
    assert (spec.observation_dtype, spec.discrete) == ("uint8", False)
    assert spec.num_actions == ACTION_SIZES[task.split("_")[0]]
    assert spec.max_episode_steps == 12
    observation, reward, terminated, truncated, is_first = steps
    assert observation.shape == (16, 64, 64, 3)
    assert observation.dtype == np.uint8
    assert observation[0].std() > 5
    assert (observation[1:] != observation[:-1]).any(axis=(1, 2, 3)).any()
    assert np.isfinite(reward).all()
    # Each control step is worth at most 1.
    assert ((reward >= 0) & (reward <= 2)).all()
    np.testing.assert_array_equal(np.flatnonzero(is_first), [0, 13])
    np.testing.assert_array_equal(np.flatnonzero(truncated), [12])
    assert not terminated.any()


# escape is drawn from a copy of its terrain; lqr draws its model from the seed.
@pytest.mark.parametrize("task", ["quadruped_escape", "lqr_lqr_2_1"])
def test_other_tasks_of_the_suite_go_on_from_their_state_too(make, task):
    _assert_continues(make, task)


@pytest.mark.parametrize("num_steps", [0, 4, 5])
def test_a_state_before_the_first_step_and_around_a_last_one_is_restored(make, num_steps):
    env = make("reacher_easy", max_episode_steps=3)
    actions = _actions(env, 10)
    for action in actions[:num_steps]:
        env.step(action)
    saved = env.state()
    expected = _play(env, actions)
    assert expected[-1][0] == (num_steps != 5)
    # To the same environment, whose later steps are undone, and to one that took none yet.
    for other in (env, make("reacher_easy", seed=1, max_episode_steps=3)):
        other.restore(saved)
        _assert_same(_play(other, actions), expected)


@pytest.mark.parametrize(
    ("task", "domain", "task_name", "camera"),
    [
        ("walker_walk", "walker", "walk", 0),
        ("cup_catch", "ball_in_cup", "catch", 0),
        ("quadruped_walk", "quadruped", "walk", 2),
    ],
)
def test_steps_are_those_of_the_suite(suite, make, task, domain, task_name, camera):
    env = make(task, rendering="full")
    reference = _load(suite, domain, task_name)
    bounds = reference.action_spec()

    def image():
        return reference.physics.render(64, 64, camera_id=camera)

    reference.reset()
    steps = [env.step(None)]
    expected = [(image(), 0.0)]
    # The last one is clipped.
    for fraction in (0.75, 0.25, 1.0, 2.0):
        steps.append(env.step(np.full(env.spec.num_actions, 2 * fraction - 1, np.float32)))
        fraction = min(fraction, 1.0)
        control = bounds.minimum + fraction * (bounds.maximum - bounds.minimum)
        reward = reference.step(control).reward + reference.step(control).reward
        expected.append((image(), reward))
    reference.physics.free()
    for (observation, reward, *_), (expected_image, expected_reward) in zip(
        steps, expected, strict=True
    ):
        np.testing.assert_array_equal(observation, expected_image)
        np.testing.assert_allclose(reward, expected_reward, rtol=1e-6)


def test_the_action_of_quadruped_is_stretched_to_its_bounds(make, monkeypatch):
    # Each leg is (yaw, lift, extend); from the bounds of its XML file.
    env = make("quadruped_walk")
    controls = []
    task = importlib.import_module("dm_control.suite.quadruped").Move
    monkeypatch.setattr(task, "before_step", lambda self, action, physics: controls.append(action))
    env.step(None)
    for value in (-1.0, 0.0, 1.0):
        env.step(np.full(12, value))
    leg = np.array([[-1.0, -1.0, -0.8], [0.0, 0.05, 0.0], [1.0, 1.1, 0.8]])
    np.testing.assert_allclose(controls[::2], np.tile(leg, 4), atol=1e-12)


def test_fast_rendering_changes_the_pixels_only(make):
    full, fast = make("walker_walk", rendering="full"), make("walker_walk", rendering="fast")
    actions = _actions(full, 3)
    full_images, *others = _play(full, actions)
    fast_images, *fast_others = _play(fast, actions)
    _assert_same(others, fast_others)
    assert (full_images != fast_images).any(axis=(1, 2, 3)).all()


def test_another_camera_sees_something_else(make):
    assert (make("hopper_hop").step(None)[0] != make("hopper_hop", camera=1).step(None)[0]).any()


def test_an_agent_step_is_action_repeat_control_steps(make):
    once, thrice = (make("walker_walk", action_repeat=repeat) for repeat in (1, 3))
    actions = _actions(once, 4)
    steps = _play(once, np.concatenate([actions[:1], np.repeat(actions[1:], 3, axis=0)]))
    others = _play(thrice, actions)
    np.testing.assert_array_equal(others[0], steps[0][::3])
    np.testing.assert_allclose(others[1][1:], steps[1][1:].reshape(3, 3).sum(1), rtol=1e-12)


@pytest.mark.parametrize(("action_repeat", "agent_steps"), [(2, 500), (3, 334)])
def test_an_episode_lasts_as_long_as_the_suites(suite, make, action_repeat, agent_steps):
    reference = _load(suite, "cartpole", "balance")
    reference.reset()
    rewards, time_step = [], None
    while time_step is None or not time_step.last():
        time_step = reference.step([0.0])
        rewards.append(time_step.reward)
    assert time_step.discount == 1
    reference.physics.free()

    env = make("cartpole_balance", action_repeat=action_repeat)
    assert env.spec.max_episode_steps == agent_steps
    _, reward, terminated, truncated, is_first = _play(env, np.zeros((agent_steps + 2, 1)))
    np.testing.assert_allclose(reward.sum(), sum(rewards), rtol=1e-9)
    np.testing.assert_array_equal(np.flatnonzero(truncated), [agent_steps])
    np.testing.assert_array_equal(np.flatnonzero(is_first), [0, agent_steps + 1])
    assert not terminated.any()


@pytest.mark.parametrize(("discount", "terminates"), [(0.0, True), (1.0, False)])
def test_an_end_by_the_task_terminates_with_discount_0_only(make, end_with, discount, terminates):
    end_with(discount)
    env = make("pendulum_swingup", action_repeat=4)
    env.step(None)
    steps = [env.step(np.ones(1)) for _ in range(3)]
    assert [step[2:] for step in steps] == [
        (terminates, not terminates, False),
        (False, False, True),
        (terminates, not terminates, False),
    ]


def test_an_action_is_not_repeated_beyond_the_end(make, monkeypatch, end_with):
    end_with(0.0)
    task = importlib.import_module("dm_control.suite.pendulum").SwingUp
    monkeypatch.setattr(task, "get_reward", lambda self, physics: 1.0)
    env = make("pendulum_swingup", action_repeat=4)
    env.step(None)
    assert env.step(np.ones(1))[1:3] == (1.0, True)


def test_a_restart_makes_the_next_step_a_reset(make):
    env = make("pendulum_swingup")
    _play(env, _actions(env, 3))
    env.restart()
    assert env.step(None)[1:] == (0.0, False, False, True)
    assert not env.step(np.zeros(1))[4]


def test_the_seed_decides_all_episodes(make):
    def play(seed):
        env = make("reacher_easy", seed=seed, max_episode_steps=2)
        return _play(env, _actions(env, 5))

    first, again, other = play(0), play(0), play(1)
    _assert_same(first, again)
    assert (first[0][0] != other[0][0]).any()
    # The second episode is not the first one over again.
    assert (first[0][0] != first[0][3]).any()


def test_a_vector_is_the_same_in_a_worker_process():
    def play(workers):
        vector = make_dmc(
            "finger_turn_easy",
            num_envs=2,
            seed=0,
            workers=workers,
            rendering="fast",
            max_episode_steps=3,
        )
        actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, 2))
        first = vector.step(actions[0])
        saved = vector.save_state()
        steps = [vector.step(action) for action in actions[1:]]
        vector.load_state(saved)
        again = [vector.step(action) for action in actions[1:]]
        vector.close()
        return vector.spec, first, steps, again

    spec, first, steps, again = play(workers=0)
    assert spec.name == "dmc/finger_turn_easy"
    assert (first.observation[0] != first.observation[1]).any()
    _, *in_worker = play(workers=1)
    for number, step in enumerate(steps):
        _assert_same(step, again[number])
        _assert_same(step, in_worker[1][number])
        _assert_same(step, in_worker[2][number])


def test_a_state_of_other_arguments_is_refused():
    arguments = {"num_envs": 1, "seed": 0, "rendering": "fast"}
    saved, other = (
        make_dmc("pendulum_swingup", action_repeat=repeat, **arguments) for repeat in (2, 4)
    )
    with pytest.raises(ValueError, match=r"'action_repeat': 2.*'action_repeat': 4"):
        other.load_state(saved.save_state())
    saved.close()
    other.close()


@pytest.mark.parametrize("action", [np.zeros(2), np.float32(0), np.array([np.nan])])
def test_actions_that_are_not_a_finite_numbers_are_refused(make, action):
    env = make("pendulum_swingup")
    env.step(None)
    with pytest.raises(ValueError, match=r"dmc/pendulum_swingup is not 1 finite.*shape \(1,\)"):
        env.step(action)


def test_a_closed_environment_says_so(make):
    env = make("pendulum_swingup")
    env.close()
    env.close()
    for call in (env.state, env.restart, lambda: env.step(None), lambda: env.restore({})):
        with pytest.raises(ValueError, match="dmc/pendulum_swingup was closed"):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "walker_wlak"}, r"'walker_wlak'. Did you mean walker_walk.*task_names\(\)"),
        ({"action_repeat": 0}, "action_repeat=0"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"rendering": "quick"}, "'quick' is not one of 'full' and 'fast'"),
        ({"camera": 2}, "camera=2 is not one of the 2 cameras of 'walker_walk'"),
        ({"camera": -1}, "camera=-1"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_dmc(**{"task": "walker_walk", "num_envs": 1, "seed": 0, **arguments})


def test_a_program_ends_in_silence_whatever_it_left_open():
    program = """
import numpy as np
from worldmodels_jax.envs.dmc import DmcEnv
envs = [DmcEnv("pendulum_swingup", np.random.SeedSequence(0), rendering="fast") for _ in range(3)]
for env in envs:
    env.step(None)
envs[1].close()
envs[2].step([0.0])
raise SystemExit(7)
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 7
    for word in ("Traceback", "Error", "Exception"):
        assert word not in ended.stderr
