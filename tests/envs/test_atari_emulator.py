"""The emulator's rules about lives, ends and frames, on an ALE that plays back a script."""

import enum
import types

import numpy as np
import pytest

from worldmodels_jax.envs.atari_emulator import Emulator
from worldmodels_jax.types import EnvSpec


class _Action(enum.IntEnum):
    NOOP = 0
    FIRE = 1


class _ScriptedAle:
    """Raw frame n of a game lights pixel n, pays n and shows lives[n]; the last of them ends it."""

    def __init__(self, lives):
        self.lives_by_frame = lives
        self.frame, self.games, self.actions = 0, 0, []

    def setInt(self, name, value):  # noqa: N802
        assert (name, value >= 0) == ("random_seed", True)

    def setFloat(self, name, value):  # noqa: N802
        assert (name, value) == ("repeat_action_probability", 0.0)

    def loadROM(self, path):  # noqa: N802
        assert path == "rom of scripted"

    def getMinimalActionSet(self):  # noqa: N802
        return [_Action.NOOP, _Action.FIRE]

    def getScreenDims(self):  # noqa: N802
        return 64, 64

    def getScreenRGB(self, buffer):  # noqa: N802
        buffer[:] = 0
        buffer[0, self.frame % 64] = 255

    def reset_game(self):
        self.frame, self.games = 0, self.games + 1

    def act(self, action):
        self.frame += 1
        self.actions.append(action)
        return self.frame

    def lives(self):
        return self.lives_by_frame[min(self.frame, len(self.lives_by_frame) - 1)]

    def game_over(self, with_truncation):
        assert not with_truncation
        return self.frame >= len(self.lives_by_frame) - 1

    def getEpisodeFrameNumber(self):  # noqa: N802
        return self.frame


def _make(lives, *, sticky_actions=0.0, max_noops=0, life_loss_terminal=True, frames=1000):
    ale = _ScriptedAle(lives)
    module = types.SimpleNamespace(
        ALEInterface=lambda: ale,
        Action=_Action,
        roms=types.SimpleNamespace(get_rom_path="rom of {}".format),
    )
    emulator = Emulator(
        module,
        "atari/Scripted",
        "scripted",
        np.random.SeedSequence(0),
        sticky_actions,
        max_noops,
        life_loss_terminal,
        frames,
    )
    return emulator, ale


def _step(emulator):
    """Returns the lit pixels of the observation and the other fields."""
    frame, *rest = emulator.step(1)
    return np.flatnonzero(frame[0, :, 0]).tolist(), *rest


def test_the_spec_is_of_agent_steps_and_the_minimal_action_set():
    emulator, _ = _make([3] * 50, frames=41)
    assert emulator.spec == EnvSpec("atari/Scripted", (64, 64, 3), "uint8", 2, True, 11)


def test_a_step_is_four_raw_frames_of_which_the_last_two_are_seen():
    emulator, ale = _make([3] * 50)
    assert _step(emulator) == ([0], 0.0, False, False, True)
    assert _step(emulator) == ([3, 4], 1 + 2 + 3 + 4, False, False, False)
    assert _step(emulator) == ([7, 8], 5 + 6 + 7 + 8, False, False, False)
    assert ale.actions == [_Action.FIRE] * 8


def test_a_lost_life_ends_the_episode_and_the_game_goes_on_after_one_no_op_step():
    emulator, ale = _make([3] * 6 + [2] * 50)
    _step(emulator)
    assert not _step(emulator)[2]
    # The life is lost at raw frame 6; the reward of the whole step is kept.
    assert _step(emulator) == ([7, 8], 26.0, True, False, False)
    assert _step(emulator) == ([11, 12], 0.0, False, False, True)
    assert ale.actions[8:] == [_Action.NOOP] * 4
    assert _step(emulator) == ([15, 16], 58.0, False, False, False)
    assert ale.games == 1


def test_a_lost_life_ends_nothing_in_evaluation():
    emulator, _ = _make([3] * 6 + [2] * 50, life_loss_terminal=False)
    flags = [_step(emulator)[2:] for _ in range(4)]
    assert flags == [(False, False, True)] + [(False, False, False)] * 3


@pytest.mark.parametrize(
    "lives",
    [
        pytest.param([0] * 3 + [3] * 50, id="appearing"),
        pytest.param([3] * 3 + [4] * 50, id="won"),
        # Some games show no lives between two rounds.
        pytest.param([3] * 3 + [0] * 50, id="hidden"),
    ],
)
def test_lives_that_appear_are_won_or_hidden_end_nothing(lives):
    emulator, _ = _make(lives)
    flags = [_step(emulator)[2:] for _ in range(4)]
    assert flags == [(False, False, True)] + [(False, False, False)] * 3


def test_a_life_that_was_won_can_be_lost():
    emulator, _ = _make([3] * 4 + [4] * 4 + [3] * 50)
    _step(emulator)
    assert [_step(emulator)[2] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("last_frame", [5, 7, 8])
def test_a_game_that_is_over_stops_the_step_and_a_new_one_follows(last_frame):
    emulator, ale = _make([1] * last_frame + [0])
    _step(emulator)
    _step(emulator)
    seen = {5: [5], 7: [7], 8: [7, 8]}[last_frame]
    reward = sum(range(5, last_frame + 1))
    assert _step(emulator) == (seen, reward, True, False, False)
    assert ale.games == 1
    assert _step(emulator) == ([0], 0.0, False, False, True)
    assert ale.games == 2


def test_a_game_that_ends_in_the_no_op_step_after_a_life_loss_begins_anew():
    emulator, ale = _make([2] * 4 + [1] * 3 + [0])
    _step(emulator)
    assert _step(emulator)[2]
    assert _step(emulator) == ([0], 0.0, False, False, True)
    assert ale.games == 2


def test_the_time_limit_truncates_unless_a_life_was_lost_and_always_begins_anew():
    for lives, flags in (([3] * 50, (False, True)), ([3] * 6 + [2] * 50, (True, False))):
        emulator, ale = _make(lives, frames=8)
        _step(emulator)
        assert _step(emulator)[2:] == (False, False, False)
        assert _step(emulator)[2:4] == flags
        assert _step(emulator) == ([0], 0.0, False, False, True)
        assert ale.games == 2


def test_a_new_game_begins_with_1_to_max_noops_no_ops():
    emulator, ale = _make([3] * 50, max_noops=3)
    frames = []
    for _ in range(60):
        emulator.restart()
        _step(emulator)
        frames.append(ale.frame)
    assert set(frames) == {1, 2, 3}
    assert set(ale.actions) == {_Action.NOOP}


def test_no_ops_count_against_the_time_limit():
    emulator, _ = _make([3] * 50, max_noops=1, frames=5)
    assert _step(emulator) == ([1], 0.0, False, False, True)
    assert _step(emulator)[3]


def test_sticky_actions_are_drawn_at_every_raw_frame():
    emulator, ale = _make([3] * 10_000, sticky_actions=0.25, frames=100_000)
    emulator.step(0)
    # Alternating actions show each first raw frame that the previous action held.
    for index in range(2000):
        emulator.step(index % 2)
    taken = np.array(ale.actions).reshape(2000, 4)
    wanted = np.arange(2000) % 2
    # Raw frame k of a step still holds the other action with probability 0.25^k.
    held = (taken != wanted[:, None]).mean(axis=0)
    np.testing.assert_allclose(held, 0.25 ** np.arange(1, 5), atol=0.03)
