"""Vectors of gymnasium's own: alignment of their resets, and the modes that are refused."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmodels_jax.envs.gymnasium_vector import wrap_vector
from worldmodels_jax.envs.time_limit import NO_TIME_LIMIT
from worldmodels_jax.types import EnvSpec

FIELDS = ("reward", "terminated", "truncated", "is_first")


class Counter(gymnasium.Env):
    """An image of the time, cut after `length` steps or, if it `ends`, terminated as well."""

    observation_space = spaces.Box(0, 255, (2, 3, 1), np.uint8)
    action_space = spaces.Discrete(3, start=7)

    def __init__(self, length, ends=False):
        self.length, self.ends = length, ends
        self.seeds, self.actions = [], []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.time = 0
        return self._image(), {}

    def step(self, action):
        self.actions.append(int(action))
        self.time += 1
        over = self.time == self.length
        return self._image(), 1.0, over and self.ends, over, {}

    def _image(self):
        return np.full((2, 3, 1), self.time, np.uint8)


def _counters(**kwargs):
    return SyncVectorEnv([lambda: Counter(2, ends=True), lambda: Counter(3)], **kwargs)


def test_resets_are_records_of_their_own_per_environment():
    vector = wrap_vector(_counters(), 0)
    assert vector.spec == EnvSpec(
        "gymnasium/SyncVectorEnv", (2, 3, 1), "uint8", 3, True, NO_TIME_LIMIT
    )
    # The first step is a reset, if none was asked for.
    steps = [vector.step(np.array([0, 2])) for _ in range(7)]
    columns = {name: np.array([getattr(step, name) for step in steps]).T for name in FIELDS}
    times = np.array([step.observation[:, 0, 0, 0] for step in steps]).T
    assert times.tolist() == [[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1, 2]]
    assert columns["reward"].tolist() == [[0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1, 1]]
    assert np.argwhere(columns["is_first"]).tolist() == [[0, 0], [0, 3], [0, 6], [1, 0], [1, 4]]
    assert np.argwhere(columns["terminated"]).tolist() == [[0, 2], [0, 5]]
    assert np.argwhere(columns["truncated"]).tolist() == [[1, 3]]
    assert columns["reward"].dtype == np.float32


def test_the_reward_of_a_reset_is_0_whatever_the_vector_says():
    class Paying(SyncVectorEnv):
        def step(self, actions):
            observations, rewards, *rest = super().step(actions)
            return observations, rewards + 5.0, *rest

    vector = wrap_vector(Paying([lambda: Counter(1)]), 0)
    rewards = [float(vector.step(np.array([0])).reward[0]) for _ in range(4)]
    assert rewards == [0.0, 6.0, 0.0, 6.0]


def test_actions_reach_the_environments_with_the_spaces_start():
    vector_env = _counters()
    vector = wrap_vector(vector_env, 0)
    vector.reset()
    vector.step(np.array([0, 2]))
    assert [env.actions for env in vector_env.envs] == [[7], [9]]
    with pytest.raises(ValueError, match=r"not all integers in \[0, 3\)"):
        vector.step(np.array([0, 3]))
    with pytest.raises(AssertionError, match="shape"):
        vector.step(np.array([0]))


def test_the_first_reset_is_seeded_and_a_second_one_cuts_all_episodes():
    vector_env = _counters()
    vector = wrap_vector(vector_env, 1)
    vector.reset()
    vector.step(np.array([0, 0]))
    step = vector.step(np.array([0, 0]))
    assert step.terminated.tolist() == [True, False]
    again = vector.reset()
    assert again.is_first.all()
    assert (again.observation == 0).all()
    assert vector.step(np.array([0, 0])).is_first.tolist() == [False, False]
    seed = int(np.random.SeedSequence(1).generate_state(1)[0] >> 1)
    assert [env.seeds for env in vector_env.envs] == [[seed, None], [seed + 1, None]]


def test_a_vector_written_at_once_agrees_with_its_environments_stepped_alone():
    vector = wrap_vector(gymnasium.make_vec("CartPole-v1", num_envs=2, max_episode_steps=15), 0)
    assert vector.spec == EnvSpec("gymnasium/CartPole-v1", (4,), "float32", 2, True, 15)
    steps = [vector.reset(), *(vector.step(np.array([1, t % 2])) for t in range(40))]
    firsts = [[bool(step.is_first[e]) for step in steps] for e in range(2)]
    lasts = [[bool(step.is_last[e]) for step in steps] for e in range(2)]
    for first, last in zip(firsts, lasts, strict=True):
        assert first[1:] == last[:-1]
    assert sum(lasts[0]) >= 3
    for step in steps:
        # One for every step that is no reset, the last included.
        assert step.reward.tolist() == [0.0 if first else 1.0 for first in step.is_first]
        assert (np.abs(step.observation[step.is_first]) <= 0.05).all()
    assert any(step.truncated[1] for step in steps)
    vector.close()


def test_continuous_actions_and_resized_images():
    vector = wrap_vector(gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode="sync"), 0)
    assert (vector.spec.num_actions, vector.spec.discrete) == (1, False)
    vector.reset()
    vector.step(np.array([[0.25], [-3.0]], np.float32))
    pendulums = vector._vector_env.envs
    assert [env.unwrapped.last_u for env in pendulums] == [0.5, -2.0]
    vector.close()
    small = wrap_vector(_counters(), 0, resize=(1, 1))
    assert small.reset().observation.shape == (2, 1, 1, 1)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_modes_are_refused_with_the_one_to_choose(mode):
    fitting, vector_env = _counters(), _counters(autoreset_mode=mode)
    with pytest.raises(ValueError, match=rf"{mode}, but .*AutoresetMode\.NEXT_STEP"):
        wrap_vector(vector_env, 0)
    # Both write their mode into one dict, the metadata of the class of their environments.
    assert wrap_vector(fitting, 0).num_envs == 2


class _Foreign(gymnasium.vector.VectorEnv):
    single_observation_space = spaces.Discrete(2)
    single_action_space = spaces.Discrete(2)
    num_envs = 1

    def __init__(self, metadata):
        self.metadata = metadata


def test_a_vector_of_another_library_must_declare_its_mode():
    assert wrap_vector(_Foreign({"autoreset_mode": AutoresetMode.NEXT_STEP}), 0).num_envs == 1
    assert wrap_vector(_Foreign({"autoreset_mode": "NextStep"}), 0).num_envs == 1
    with pytest.raises(ValueError, match=r"mode None, but .*metadata\['autoreset_mode'\]"):
        wrap_vector(_Foreign({}), 0)


def test_single_environments_are_refused():
    with pytest.raises(ValueError, match=r"is no gymnasium.vector.VectorEnv; .*make_gymnasium"):
        wrap_vector(Counter(2), 0)


def test_nothing_is_saved_and_a_closed_vector_is_told():
    vector = wrap_vector(_counters(), 0)
    assert vector.save_state() is None
    with pytest.raises(ValueError, match=r"cannot continue from a saved state"):
        vector.load_state(b"")
    vector.close()
    vector.close()
    with pytest.raises(ValueError, match=r"SyncVectorEnv was closed; make a new one"):
        vector.step(np.array([0, 0]))
