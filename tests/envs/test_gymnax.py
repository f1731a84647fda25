"""gymnax behind the protocol: conversions, ends of episodes, and the suite itself as the oracle."""

from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from worldmodels_jax.envs.auto_reset import auto_reset
from worldmodels_jax.envs.gymnax import make_gymnax, wrap_gymnax
from worldmodels_jax.envs.time_limit import NO_TIME_LIMIT
from worldmodels_jax.types import EnvSpec


@pytest.fixture(scope="module")
def catch_steps(random_rollout):
    steps, _ = random_rollout(auto_reset(make_gymnax("Catch-bsuite")), 200)
    return steps


def test_specs_of_a_grid_and_of_a_continuous_environment():
    assert make_gymnax("Catch-bsuite").spec == EnvSpec(
        name="Catch-bsuite",
        observation_shape=(10, 5, 1),
        observation_dtype="uint8",
        num_actions=3,
        discrete=True,
        max_episode_steps=1000,
    )
    assert make_gymnax("PointRobot-misc").spec == EnvSpec(
        name="PointRobot-misc",
        observation_shape=(6,),
        observation_dtype="float32",
        num_actions=2,
        discrete=False,
        max_episode_steps=100,
    )


def test_constructor_arguments_reach_the_suite():
    assert make_gymnax("Catch-bsuite", rows=7, columns=4).spec.observation_shape == (7, 4, 1)


def test_catch_shows_its_terminal_frame_before_every_reset(catch_steps):
    first_indices = np.flatnonzero(catch_steps.is_first)
    # Nine falls of the ball, from row 0 to row 9, are ten records.
    np.testing.assert_array_equal(first_indices, np.arange(0, 201, 10))
    last_indices = first_indices[1:] - 1
    np.testing.assert_array_equal(np.flatnonzero(catch_steps.terminated), last_indices)
    assert not catch_steps.truncated.any()

    last_frames = catch_steps.observation[last_indices, :, :, 0]
    # Ball and paddle are both in the bottom row: two pixels, or one where the ball was caught.
    assert (last_frames[:, :9] == 0).all()
    caught = (last_frames[:, 9] == 255).sum(axis=-1) == 1
    assert 0 < caught.sum() < caught.size
    np.testing.assert_array_equal(catch_steps.reward[last_indices], np.where(caught, 1.0, -1.0))
    assert (catch_steps.reward[~catch_steps.terminated] == 0).all()


def test_catch_reset_frames_have_the_ball_on_top_and_the_paddle_in_the_middle(catch_steps):
    frames = catch_steps.observation[catch_steps.is_first, :, :, 0]
    assert ((frames[:, 0] == 255).sum(axis=-1) == 1).all()
    np.testing.assert_array_equal(frames[:, 9], [[0, 0, 255, 0, 0]] * len(frames))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_time_limit_truncates_and_does_not_terminate(name, random_rollout):
    env = make_gymnax(name, max_episode_steps=5)
    assert env.spec.max_episode_steps == 5
    steps, _ = random_rollout(auto_reset(env), 17)
    # No pole falls within five steps.
    assert not steps.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [5, 11, 17])
    np.testing.assert_array_equal(np.flatnonzero(steps.is_first), [0, 6, 12])
    assert (steps.reward[steps.is_first] == 0).all()
    assert (steps.reward[~steps.is_first] != 0).all()


def test_an_end_by_the_rules_at_the_time_limit_is_no_truncation(random_rollout):
    steps, _ = random_rollout(make_gymnax("Catch-bsuite", max_episode_steps=9), 9)
    np.testing.assert_array_equal(np.flatnonzero(steps.terminated), [9])
    assert not steps.truncated.any()


def test_cartpole_falls_by_its_rules(random_rollout):
    steps, _ = random_rollout(auto_reset(make_gymnax("CartPole-v1")), 100)
    assert not steps.truncated.any()
    fallen = steps.observation[steps.terminated]
    assert len(fallen) > 0
    # Beyond 12 degrees, or beyond the track's end at 2.4.
    assert ((np.abs(fallen[:, 2]) > np.pi / 15) | (np.abs(fallen[:, 0]) > 2.4)).all()


@pytest.mark.parametrize("name", ["Catch-bsuite", "CartPole-v1", "Asterix-MinAtar"])
def test_steps_within_an_episode_equal_the_suites_own(name):
    env = make_gymnax(name)
    suite_env, params = gymnax.make(name)
    key, num_steps = jax.random.key(5), 8

    @jax.jit
    def both():
        state, first = env.reset(key)
        suite_observation, suite_state = suite_env.reset(key, params)

        def body(states, inputs):
            action, key = inputs
            # The suite keeps the second half of the key for its auto-reset.
            state, time_step = env.step(states[0], action, jax.random.split(key)[0])
            suite = suite_env.step(key, states[1], action, params)
            return (state, suite[1]), (time_step, suite[0], suite[2:5])

        actions = jnp.arange(num_steps) % env.spec.num_actions
        suite_state = jax.tree.map(
            lambda ours, theirs: theirs + jnp.zeros_like(ours), state, suite_state
        )
        _, outputs = jax.lax.scan(
            body, (state, suite_state), (actions, jax.random.split(key, num_steps))
        )
        return first.observation, suite_observation, outputs

    first, suite_first, (steps, suite_observations, (rewards, terminated, truncated)) = both()
    assert not (terminated | truncated).any()
    ours = np.concatenate([first[None], steps.observation]).reshape(num_steps + 1, -1)
    theirs = np.concatenate([suite_first[None], suite_observations]).reshape(num_steps + 1, -1)
    scale = 255 if ours.dtype == np.uint8 else 1
    # XLA may round a product and its sum once in the one and twice in the other.
    np.testing.assert_allclose(ours, theirs * scale, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(steps.reward, rewards)
    assert not (steps.is_last | steps.is_first).any()


def test_pendulums_torque_is_twice_the_action():
    env = make_gymnax("Pendulum-v1")
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    # The torque is bounded by 2.
    for action, torque in [(1.0, 2.0), (-1.0, -2.0), (0.25, 0.5)]:
        next_state, _ = step(state, jnp.array([action]), jax.random.key(1))
        assert float(next_state.last_u) == torque


def test_minatar_observations_are_planes_of_0_and_255(random_rollout):
    steps, _ = random_rollout(auto_reset(make_gymnax("Breakout-MinAtar")), 60)
    assert steps.observation.shape == (61, 10, 10, 4)
    assert steps.observation.dtype == np.uint8
    assert set(np.unique(steps.observation)) == {0, 255}
    assert steps.terminated.any()


def test_a_discrete_observation_becomes_one_hot():
    env = make_gymnax("FrozenLake-misc")
    assert env.spec.observation_shape == (16,)
    _, first = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(first.observation, np.eye(16, dtype=np.float32)[0])


def test_a_second_step_does_not_compile_again():
    env = auto_reset(make_gymnax("CartPole-v1"))
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    for seed in range(3):
        state, _ = step(state, jnp.int32(1), jax.random.key(seed))
    assert step._cache_size() == 1


def test_an_action_of_the_wrong_shape_is_refused():
    env = make_gymnax("Pendulum-v1")
    state, _ = env.reset(jax.random.key(0))
    with pytest.raises(AssertionError, match="shape"):
        env.step(state, jnp.float32(0.0), jax.random.key(0))


def test_unknown_name_and_time_limit_are_explained():
    with pytest.raises(ValueError, match=r"'Cach-bsuite'.*Catch-bsuite.*gymnax.registered_envs"):
        make_gymnax("Cach-bsuite")
    with pytest.raises(ValueError, match="max_episode_steps=0"):
        make_gymnax("Catch-bsuite", max_episode_steps=0)


class _Registered(gymnax.environments.environment.Environment):
    """An environment of a user's own: a reset shows what a test asks for, a step the action."""

    def __init__(self, observation, action_space):
        self.observation, self._action_space = observation, action_space

    def reset_env(self, key, params):
        return self.observation, gymnax.environments.environment.EnvState(time=0)

    def step_env(self, key, state, action, params):
        return action, state.replace(time=state.time + 1), 0.0, False, {}

    def observation_space(self, params):
        return spaces.Box(0, 1, self.observation.shape)

    def action_space(self, params):
        return self._action_space


@pytest.fixture
def register(monkeypatch):
    def add(observation, action_space):
        factory = lambda: _Registered(observation, action_space)  # noqa: E731
        monkeypatch.setitem(gymnax.registration._registry, "Own", factory)
        monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Own"])

    return add


def test_images_of_fractions_are_rounded_and_bytes_are_kept(register):
    # A one that arithmetic left a little short is 255; 0.998 * 255 = 254.49.
    image = jnp.array([[0.0, 1.0 - 1e-7, 0.998, 0.5 / 255 + 1e-5, 1.1]])
    register(image, spaces.Discrete(2))
    _, first = make_gymnax("Own").reset(jax.random.key(0))
    assert first.observation[..., 0].tolist() == [[0, 255, 254, 1, 255]]
    register(jnp.array([[0, 1, 255]], jnp.uint8), spaces.Discrete(2))
    _, first = make_gymnax("Own").reset(jax.random.key(0))
    assert first.observation[..., 0].tolist() == [[0, 1, 255]]


def test_continuous_actions_meet_uneven_bounds_exactly_and_never_leave_them(register):
    bounds = jnp.array([[-1.0, 0.0], [3.0, 0.3]])
    register(jnp.zeros(2), spaces.Box(*bounds, (2,)))
    env = make_gymnax("Own")
    state, _ = env.reset(jax.random.key(0))
    for action, expected in [
        ([-1.0, 1.0], [-1.0, 0.3]),
        ([0.0, -1.0], [1.0, 0.0]),
        ([0.5, 0.0], [2.0, 0.15]),
        ([7.0, -7.0], [3.0, 0.0]),
    ]:
        _, step = env.step(state, jnp.array(action), jax.random.key(0))
        np.testing.assert_array_equal(step.observation, np.array(expected, np.float32))


def test_spaces_that_cannot_be_represented_are_refused(register):
    image = jnp.zeros((2, 2))
    register(jnp.zeros((2, 2, 2, 2)), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"Own has observations of shape \(2, 2, 2, 2\)"):
        make_gymnax("Own")
    register(image, spaces.Box(-jnp.inf, jnp.inf, (2,)))
    with pytest.raises(ValueError, match="Own has the action space"):
        make_gymnax("Own")
    register(image, spaces.Tuple([spaces.Discrete(2)]))
    with pytest.raises(ValueError, match="Own has the action space"):
        make_gymnax("Own")


class _Params(NamedTuple):
    max_steps_in_episode: int = 2


class _Clock:
    """Written in gymnax's manner: action 1 ends an episode, and so does the time limit.

    What `step_env` returns after the reward is what `end` makes of the two.
    """

    default_params = _Params()

    def __init__(self, end):
        self.end = end

    def reset_env(self, key, params):
        return jnp.zeros(1), 0

    def step_env(self, key, state, action, params):
        late = state + 1 >= getattr(params, "max_steps_in_episode", 2)
        return jnp.full(1, state + 1), state + 1, 1, *self.end(action == 1, late)

    def observation_space(self, params):
        return spaces.Box(0, 9, (1,))

    def action_space(self, params):
        return spaces.Discrete(2)


class _TellingClock(_Clock):
    def is_truncated(self, state, params):
        return state >= params.max_steps_in_episode


_STYLES = {
    "six": (_Clock, lambda over, late: (over, late, {})),
    "method": (_TellingClock, lambda over, late: (over, {})),
    "info": (_Clock, lambda over, late: (over | late, {"truncated": late & ~over})),
    "done": (_Clock, lambda over, late: (over | late, {"discount": 1.0})),
}


@pytest.mark.parametrize("style", _STYLES)
def test_ends_of_every_style_of_functional_environment(style):
    make, end = _STYLES[style]
    env = wrap_gymnax(make(end), name="Clock")
    assert env.spec == EnvSpec("Clock", (1,), "float32", 2, True, 2)
    step = jax.jit(env.step)

    def ends(*actions):
        state, _ = env.reset(jax.random.key(0))
        for action in actions:
            state, time_step = step(state, jnp.int32(action), jax.random.key(0))
        return bool(time_step.terminated), bool(time_step.truncated)

    assert ends(0) == (False, False)
    assert ends(1) == (True, False)
    assert ends(0, 1) == (True, False)
    # Only the older style cannot tell a time limit from an end by the rules.
    assert ends(0, 0) == ((True, False) if style == "done" else (False, True))


def test_params_reach_the_environment_and_need_no_time_limit():
    class Nothing(NamedTuple):
        pass

    make, end = _STYLES["six"]
    assert wrap_gymnax(make(end), _Params(7), name="Clock").spec.max_episode_steps == 7
    env = wrap_gymnax(make(end), Nothing(), name="Clock")
    assert env.spec.max_episode_steps == NO_TIME_LIMIT
    state, first = env.reset(jax.random.key(0))
    _, later = env.step(state, jnp.int32(0), jax.random.key(0))
    assert [float(step.observation[0]) for step in (first, later)] == [0.0, 1.0]
    assert [float(step.reward) for step in (first, later)] == [0.0, 1.0]


def test_another_number_of_values_is_explained():
    env = wrap_gymnax(_Clock(lambda over, late: (over,)), name="Clock")
    state, _ = env.reset(jax.random.key(0))
    with pytest.raises(ValueError, match=r"step_env of Clock returned 4 values; return \(obs"):
        env.step(state, jnp.int32(0), jax.random.key(0))
