"""Atari on the host: seeds, resets, lives, time limits and bit-identical resumption."""

import sys

import numpy as np
import pytest

from worldmodels_jax.envs.area_resize import area_resize
from worldmodels_jax.envs.atari import game_names, make_atari
from worldmodels_jax.types import EnvSpec, TimeStep

ale_py = pytest.importorskip("ale_py")


def _play(vector, actions: np.ndarray) -> TimeStep:
    """Steps through actions (T, E); returns time steps with leading axes (T, E)."""
    steps = [vector.step(action) for action in actions]
    return TimeStep(*(np.stack(field) for field in zip(*steps, strict=True)))


def _random_actions(vector, num_steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(vector.spec.num_actions, size=(num_steps, vector.num_envs))


def _assert_equal(first: TimeStep, second: TimeStep) -> None:
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def pong_run():
    vector = make_atari("Pong", num_envs=2, seed=0)
    first = vector.reset()
    return vector, first, _play(vector, _random_actions(vector, 200))


def test_pong_spec_and_first_time_step(pong_run):
    vector, first, _ = pong_run
    assert vector.num_envs == 2
    assert vector.spec == EnvSpec("atari/Pong", (64, 64, 3), "uint8", 6, True, 27_000)
    assert first.observation.shape == (2, 64, 64, 3)
    assert [field.dtype for field in first] == [np.uint8, np.float32, bool, bool, bool]
    np.testing.assert_array_equal(first.reward, [0, 0])
    np.testing.assert_array_equal(first.is_first, [True, True])
    assert not first.is_last.any()


def test_pong_is_the_same_for_the_same_seed_and_moves(pong_run):
    _, first, steps = pong_run
    again = make_atari("Pong", num_envs=2, seed=0)
    _assert_equal(again.reset(), first)
    _assert_equal(_play(again, _random_actions(again, 200)), steps)
    assert (steps.observation[1:] != steps.observation[:-1]).any(axis=(2, 3, 4)).mean() > 0.9
    # A random player concedes points within 800 raw frames.
    assert set(np.unique(steps.reward)) >= {-1.0, 0.0}


def test_other_seeds_and_other_emulators_differ(pong_run):
    _, _, steps = pong_run
    other = make_atari("Pong", num_envs=2, seed=1)
    other.reset()
    actions = _random_actions(other, 60)
    played = _play(other, np.repeat(actions[:, :1], 2, axis=1))
    assert (played.observation[:, 0] != steps.observation[:60, 0]).any()
    assert (played.observation[:, 0] != played.observation[:, 1]).any()


def test_an_observation_is_the_maximum_of_the_last_two_of_four_raw_frames():
    vector = make_atari("Pong", num_envs=1, seed=0, max_noops=0)
    vector.reset()
    reference = ale_py.ALEInterface()
    reference.setFloat("repeat_action_probability", 0.0)
    reference.loadROM(ale_py.roms.get_rom_path("pong"))
    reference.reset_game()
    fire, right = 1, 2
    total = 0.0
    for index in [fire, *[right] * 70]:
        step = vector.step(np.array([index]))
        reward, screens = 0, []
        for _ in range(4):
            reward += reference.act(reference.getMinimalActionSet()[index])
            screens.append(reference.getScreenRGB())
        expected = area_resize(np.maximum(screens[2], screens[3]), (64, 64))
        np.testing.assert_array_equal(step.observation[0], expected)
        assert step.reward[0] == reward
        total += reward
    assert total < 0


@pytest.mark.parametrize(
    ("game", "sticky_actions", "max_noops", "steps_before"),
    [
        ("Breakout", 0.0, 30, 50),
        ("Breakout", 0.6, 30, 50),
        # Q*bert reads a switch that ALE's own state leaves out.
        ("Qbert", 0.25, 30, 50),
        ("Qbert", 0.0, 0, 0),
    ],
)
def test_a_loaded_state_continues_bit_by_bit(game, sticky_actions, max_noops, steps_before):
    def make(seed):
        # Episodes of 23 to 30 steps: those after loading cross resets and their no-ops.
        return make_atari(
            game,
            num_envs=2,
            seed=seed,
            sticky_actions=sticky_actions,
            max_noops=max_noops,
            full_episode_frames=120,
        )

    vector = make(3)
    vector.reset()
    for action in _random_actions(vector, steps_before):
        vector.step(action)
    state = vector.save_state()
    actions = _random_actions(vector, 50, seed=1)
    expected = _play(vector, actions)
    assert expected.is_first.any()

    vector.load_state(state)
    _assert_equal(_play(vector, actions), expected)

    fresh = make(4)
    fresh.load_state(state)
    assert fresh.save_state() == state
    _assert_equal(_play(fresh, actions), expected)


def test_workers_emulate_as_one_process_does_and_share_its_states():
    def make(workers):
        return make_atari(
            "Breakout", num_envs=3, seed=5, full_episode_frames=80, workers=workers, timeout=30.0
        )

    alone, vector = make(0), make(2)
    try:
        _assert_equal(vector.reset(), alone.reset())
        actions = _random_actions(alone, 25)
        expected = _play(alone, actions)
        assert expected.is_first.any(axis=0).all()
        _assert_equal(_play(vector, actions), expected)
        assert vector.save_state() == alone.save_state()
        alone.reset()
        alone.load_state(vector.save_state())
        _assert_equal(_play(alone, actions), _play(vector, actions))
    finally:
        vector.close()


def test_sticky_actions_hold_the_previous_one():
    def observations(sticky_actions):
        vector = make_atari(
            "Breakout", num_envs=1, seed=0, max_noops=0, sticky_actions=sticky_actions
        )
        vector.reset()
        return _play(vector, np.repeat([[0], [2]], [1, 12], axis=0)).observation

    free, held, rarely = observations(0.0), observations(1 - 1e-12), observations(0.5)
    # Held for ever, the paddle stays; sticky, it lags behind.
    np.testing.assert_array_equal(held[1:], held[:-1])
    assert (free[1:] != free[:-1]).any()
    assert (rarely != free).any()
    assert (rarely != held).any()


def test_a_new_game_begins_after_1_to_max_noops_raw_frames():
    # The cars of Freeway move in every few raw frames.
    reference = ale_py.ALEInterface()
    reference.loadROM(ale_py.roms.get_rom_path("freeway"))
    reference.reset_game()
    after = [area_resize(reference.getScreenRGB(), (64, 64)).tobytes()]
    for _ in range(30):
        reference.act(0)
        after.append(area_resize(reference.getScreenRGB(), (64, 64)).tobytes())

    def first_frames(max_noops, num_envs):
        vector = make_atari("Freeway", num_envs=num_envs, seed=0, max_noops=max_noops)
        return [frame.tobytes() for frame in vector.reset().observation]

    assert first_frames(0, 1) == after[:1]
    assert first_frames(1, 1) == after[1:2]
    frames = first_frames(30, 16)
    assert set(frames) <= set(after[1:])
    assert len(set(frames)) > 4


@pytest.fixture(scope="module")
def breakout_runs():
    """The same 400 random actions, with and without ends at life losses."""
    runs = {}
    for life_loss_terminal in (True, False):
        vector = make_atari("Breakout", num_envs=1, seed=0, life_loss_terminal=life_loss_terminal)
        vector.reset()
        runs[life_loss_terminal] = _play(vector, _random_actions(vector, 400))
    return runs


def test_life_losses_terminate_episodes_for_learning_only(breakout_runs):
    learning, evaluation = breakout_runs[True], breakout_runs[False]
    first_loss = int(np.flatnonzero(learning.terminated)[0])
    first_end = int(np.flatnonzero(evaluation.terminated)[0])
    # Five lives: the fifth loss ends the game.
    assert learning.terminated[: first_end + 6].sum() >= 5
    assert first_loss < first_end
    assert not evaluation.is_first[:first_end].any()
    assert not learning.truncated.any()
    # Up to the first loss both are the same game.
    for field in ("observation", "reward"):
        np.testing.assert_array_equal(
            getattr(learning, field)[: first_loss + 1], getattr(evaluation, field)[: first_loss + 1]
        )


def test_a_first_record_follows_each_last_one_and_carries_no_reward(breakout_runs):
    for steps in breakout_runs.values():
        np.testing.assert_array_equal(steps.is_first[1:], steps.is_last[:-1])
        assert (steps.reward[steps.is_first] == 0).all()
        assert not steps.is_last[steps.is_first].any()


def test_after_a_life_loss_the_same_game_goes_on(breakout_runs):
    steps = breakout_runs[True]
    walls = steps.observation[:, 0, 18:28]
    whole = walls[0]
    first_indices = np.flatnonzero(steps.is_first[:, 0])[:5]
    # Four lives lost leave the wall as it was; the fifth brings a new one.
    for index in first_indices[:4]:
        np.testing.assert_array_equal(walls[index], walls[index - 1])
    assert (walls[first_indices[3]] != whole).any()
    np.testing.assert_array_equal(walls[first_indices[4]], whole)


def test_the_frame_limit_truncates_and_starts_a_new_game():
    vector = make_atari("Pong", num_envs=1, seed=0, max_noops=0, full_episode_frames=40)
    assert vector.spec.max_episode_steps == 10
    vector.reset()
    steps = _play(vector, _random_actions(vector, 25))
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated[:, 0]), [9, 20])
    np.testing.assert_array_equal(np.flatnonzero(steps.is_first[:, 0]), [10, 21])
    assert not steps.terminated.any()
    np.testing.assert_array_equal(steps.observation[10], steps.observation[21])


def test_a_vector_that_was_never_reset_resets_in_its_first_step():
    vector = make_atari("Pong", num_envs=1, seed=0)
    assert vector.step(np.array([3])).is_first.all()


@pytest.mark.parametrize("actions", [np.array([6]), np.array([-1]), np.array([0.5])])
def test_actions_outside_the_minimal_set_are_refused(actions):
    vector = make_atari("Pong", num_envs=1, seed=0)
    with pytest.raises(ValueError, match=r"atari/Pong.*\[0, 6\)"):
        vector.step(actions)


def test_actions_of_another_length_are_refused(pong_run):
    with pytest.raises(AssertionError, match="shape"):
        pong_run[0].step(np.zeros(3, int))


def test_a_state_of_other_arguments_is_refused():
    state = make_atari("Pong", num_envs=1, seed=0).save_state()
    with pytest.raises(ValueError, match=r"'sticky_actions': 0.0.*'sticky_actions': 0.25"):
        make_atari("Pong", num_envs=1, seed=0, sticky_actions=0.25).load_state(state)


def test_a_closed_vector_says_so():
    vector = make_atari("Pong", num_envs=1, seed=0)
    vector.close()
    with pytest.raises(ValueError, match="atari/Pong was closed"):
        vector.reset()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_envs": 0},
        {"sticky_actions": 1.0},
        {"max_noops": -1},
        {"max_noops": 30, "full_episode_frames": 30},
    ],
)
def test_numbers_out_of_range_are_refused(arguments):
    name, value = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=f"'{name}': {value}"):
        make_atari("Pong", **{"num_envs": 1, "seed": 0, **arguments})


def test_unknown_games_are_told_their_neighbours():
    with pytest.raises(ValueError, match=r"'mspacman'. Did you mean MsPacman.*game_names\(\)"):
        make_atari("mspacman", num_envs=1, seed=0)
    assert {"Pong", "UpNDown", "Hero"} <= set(game_names())
    # ALE exits the process when it loads this one.
    assert "Combat" not in game_names()


def test_without_ale_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'worldmodels_jax\[atari\]'"):
        make_atari("Pong", num_envs=1, seed=0)
