"""gymnasium environments behind the protocol: ends of episodes, seeds, frames, making."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from worldmodels_jax.envs.gymnasium import GymnasiumEnv, make_gymnasium
from worldmodels_jax.envs.time_limit import NO_TIME_LIMIT
from worldmodels_jax.types import EnvSpec

SEED = np.random.SeedSequence(3)
RIGHT = 1


class Line(gymnasium.Env):
    """A walk from 0: action 1 is a step to the right; at `goal` it ends, at time `cut` it is cut.

    The observation holds the place and the number that was drawn at the reset.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, goal=2, cut=10**9, render_mode=None):
        self.goal, self.cut, self.render_mode = goal, cut, render_mode
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.place, self.time, self.drawn = 0, 0, self.np_random.random()
        return np.array([self.place, self.drawn]), {}

    def step(self, action):
        self.place += int(action)
        self.time += 1
        observation = np.array([self.place, self.drawn])
        return observation, 0.5 + self.place, self.place == self.goal, self.time == self.cut, {}

    def render(self):
        frame = np.zeros((4, 6, 3), np.uint8)
        frame[:, self.place] = 200
        return frame


def _walk(env, actions):
    """Places, rewards and flags of as many steps as there are actions."""
    steps = [env.step(action) for action in actions]
    return [(int(observation[0]), *rest) for observation, *rest in steps]


def test_a_termination_is_a_record_and_the_reset_after_it_is_another():
    env = GymnasiumEnv(Line(goal=2), SEED)
    assert _walk(env, [RIGHT, RIGHT, 0, RIGHT, RIGHT, RIGHT]) == [
        (0, 0.0, False, False, True),  # the first call resets, whatever the action
        (1, 1.5, False, False, False),
        (1, 1.5, False, False, False),
        (2, 2.5, True, False, False),
        (0, 0.0, False, False, True),
        (1, 1.5, False, False, False),
    ]


@pytest.mark.parametrize(("own_cut", "limit"), [(2, None), (10**9, 2), (5, 2), (2, 5)])
def test_a_time_limit_truncates_whoever_sets_it(own_cut, limit):
    env = GymnasiumEnv(Line(cut=own_cut), SEED, max_episode_steps=limit)
    assert [step[1:] for step in _walk(env, [0, 0, 0, 0])] == [
        (0.0, False, False, True),
        (0.5, False, False, False),
        (0.5, False, True, False),
        (0.0, False, False, True),
    ]


def test_an_end_by_the_rules_at_the_time_limit_is_no_truncation():
    env = GymnasiumEnv(Line(goal=2, cut=2), SEED)
    assert _walk(env, [0, RIGHT, RIGHT])[-1] == (2, 2.5, True, False, False)


def test_restart_cuts_an_episode_short():
    env = GymnasiumEnv(Line(), SEED)
    _walk(env, [0, RIGHT])
    env.restart()
    assert _walk(env, [RIGHT, 0])[0] == (0, 0.0, False, False, True)


def test_only_the_first_reset_is_seeded():
    line = Line(goal=1)
    env = GymnasiumEnv(line, SEED)
    draws = [env.step(RIGHT)[0][1] for _ in range(6)]
    seed = int(SEED.generate_state(1)[0] >> 1)
    assert line.seeds == [seed, None, None]
    # All draws come from one stream; two equal ones would be a second seeding.
    stream = np.random.Generator(np.random.PCG64(seed)).random(3).astype(np.float32)
    np.testing.assert_array_equal(draws[::2], stream)


def test_every_environment_of_a_vector_has_a_stream_of_the_seed():
    def draws(seed):
        vector = make_gymnasium(Line, num_envs=2, seed=seed)
        drawn = vector.reset().observation[:, 1].tolist()
        vector.close()
        return drawn

    assert draws(0) == draws(0)
    assert len({*draws(0), *draws(1)}) == 4


def test_specs_of_registered_environments_and_of_an_own_one():
    vector = make_gymnasium("CartPole-v1", num_envs=1, seed=0)
    assert vector.spec == EnvSpec("gymnasium/CartPole-v1", (4,), "float32", 2, True, 500)
    vector.close()
    vector = make_gymnasium("Pendulum-v1", num_envs=1, seed=0, max_episode_steps=300)
    assert vector.spec == EnvSpec("gymnasium/Pendulum-v1", (3,), "float32", 1, False, 300)
    vector.close()
    own = EnvSpec("gymnasium/Line", (2,), "float32", 2, True, NO_TIME_LIMIT)
    assert GymnasiumEnv(Line(), SEED).spec == own


def test_a_limit_replaces_the_registered_one_even_by_a_longer_one():
    vector = make_gymnasium("Pendulum-v1", num_envs=1, seed=0, max_episode_steps=202)
    steps = [vector.step(np.zeros((1, 1))) for _ in range(203)]
    vector.close()
    assert np.flatnonzero([step.truncated[0] for step in steps]).tolist() == [202]


@pytest.mark.parametrize("workers", [0, 1])
def test_cartpole_steps_as_it_does_alone(workers):
    vector = make_gymnasium("CartPole-v1", num_envs=2, seed=5, workers=workers)
    steps = [vector.step(np.array([1, t % 2])) for t in range(25)]
    vector.close()
    alone = gymnasium.make("CartPole-v1")
    seed = np.random.SeedSequence(5).spawn(2)[0].generate_state(1)[0] >> 1
    observation, _ = alone.reset(seed=int(seed))
    terminated = False
    for t, step in enumerate(steps):
        if t > 0:
            assert step.is_first[0] == terminated
            if terminated:
                (observation, _), terminated, reward = alone.reset(), False, 0.0
            else:
                observation, reward, terminated, _, _ = alone.step(1)
            assert (step.reward[0], step.terminated[0]) == (reward, terminated)
        np.testing.assert_array_equal(step.observation[0], observation)
    # Always to the right: the pole falls every nine or ten steps.
    assert sum(step.terminated[0] for step in steps) == 2
    assert not any(step.truncated[0] for step in steps)


def test_pendulums_torque_is_twice_the_action():
    pendulum = gymnasium.make("Pendulum-v1")
    env = GymnasiumEnv(pendulum, SEED)
    env.step(np.zeros(1))
    for action, torque in [(1.0, 2.0), (-1.0, -2.0), (0.25, 0.5), (3.0, 2.0)]:
        env.step(np.array([action], np.float32))
        assert pendulum.unwrapped.last_u == torque


def test_rendered_frames_are_observed_and_resized():
    line = Line(render_mode="rgb_array")
    env = GymnasiumEnv(line, SEED, pixels=True, resize=(2, 3))
    assert env.spec.observation_shape == (2, 3, 3)
    assert env.spec.observation_dtype == "uint8"
    env.step(0)
    # The frame that was rendered for its size has not used up the seed.
    assert line.seeds[0] == line.seeds[1] is not None
    frame = env.step(RIGHT)[0]
    assert frame.dtype == np.uint8
    # Column 1 of six is the right half of column 0 of three.
    assert frame[:, :, 0].tolist() == [[100, 0, 0], [100, 0, 0]]


def test_an_id_is_made_to_render(monkeypatch):
    monkeypatch.setitem(
        gymnasium.registry,
        "Line-v0",
        gymnasium.envs.registration.EnvSpec("Line-v0", Line, max_episode_steps=7),
    )
    vector = make_gymnasium("Line-v0", num_envs=2, seed=0, pixels=True, goal=1)
    assert vector.spec == EnvSpec("gymnasium/Line-v0", (4, 6, 3), "uint8", 2, True, 7)
    vector.reset()
    assert vector.step(np.array([0, RIGHT])).terminated.tolist() == [False, True]
    vector.close()


def test_environments_without_frames_are_explained():
    with pytest.raises(ValueError, match=r"Line was made with render_mode=None; .*'rgb_array'"):
        GymnasiumEnv(Line(), SEED, pixels=True)

    class Blind(Line):
        def render(self):
            return None

    with pytest.raises(ValueError, match=r"Blind rendered object of shape \(\); return uint8"):
        GymnasiumEnv(Blind(render_mode="rgb_array"), SEED, pixels=True)


def test_nothing_is_saved_and_nothing_restored():
    vector = make_gymnasium(Line, num_envs=1, seed=0)
    vector.reset()
    assert vector.save_state() is None
    vector.close()
    with pytest.raises(ValueError, match=r"gymnasium/Line cannot continue from a saved state"):
        GymnasiumEnv(Line(), SEED).restore({})


def test_closing_reaches_the_environment():
    closed = []

    class Closing(Line):
        def close(self):
            closed.append(self.goal)

    make_gymnasium(lambda: Closing(goal=4), num_envs=2, seed=0).close()
    assert closed == [4, 4]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPole-v9", r"'CartPole-v9'.*CartPole-v1.*sorted\(gymnasium.registry\).*`v1`"),
        ("cartpole-v1", r"'cartpole-v1'. Did you mean CartPole-v1"),
        ("!!", r"'!!'.*must be of the form"),
    ],
)
def test_unknown_ids_are_explained(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_gymnasium(env_id, num_envs=1, seed=0)


def test_a_package_that_an_environment_needs_is_named(monkeypatch):
    def needy():
        raise gymnasium.error.DependencyNotInstalled("run `pip install needed`")

    spec = gymnasium.envs.registration.EnvSpec("Needy-v0", needy)
    monkeypatch.setitem(gymnasium.registry, "Needy-v0", spec)
    with pytest.raises(ModuleNotFoundError, match="Needy-v0: run `pip install needed`"):
        make_gymnasium("Needy-v0", num_envs=1, seed=0)


def test_what_makes_no_environment_is_refused():
    with pytest.raises(ValueError, match=r"Line.* is neither an id nor callable.*its class"):
        make_gymnasium(Line(), num_envs=1, seed=0)
    with pytest.raises(ValueError, match=r"is no gymnasium\.Env"):
        make_gymnasium(dict, num_envs=1, seed=0)
    vector_env = gymnasium.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(ValueError, match=r"is a vector already: .*wrap_vector"):
        make_gymnasium(vector_env, num_envs=2, seed=0)
    with pytest.raises(ValueError, match="max_episode_steps=0 leaves no step"):
        make_gymnasium(Line, num_envs=1, seed=0, max_episode_steps=0)
