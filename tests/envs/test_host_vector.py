"""Many host environments: the same steps with and without workers, and what is left of faults."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from toy_host_env import (
    DIE,
    HANG,
    RAISE,
    MakeWalk,
    Walk,
    die_at_once,
    gone,
    of_different_specs,
    play,
    process_ids,
    raise_module_not_found,
    raise_value_error,
    until,
)

from worldmodels_jax.envs.host_vector import EnvVector, make_host_vector
from worldmodels_jax.types import Record, TimeStep

E, SEED = 5, 7


@contextlib.contextmanager
def _open(make_env: Any = None, **arguments: Any) -> Iterator[EnvVector]:
    vector = make_host_vector(
        make_env or MakeWalk(), **{"num_envs": E, "seed": SEED, "workers": 2, **arguments}
    )
    try:
        yield vector
    finally:
        vector.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[EnvVector]:
    """Five walks in two workers, in an unknown state."""
    with _open() as vector:
        yield vector


def _moves(num_steps: int, seed: int = 0, num_envs: int = E) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=(num_steps, num_envs))


def _assert_equal(first: TimeStep, second: TimeStep) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_every_environment_has_a_stream_of_the_seed_and_resets_itself():
    with _open(workers=0, num_envs=2) as vector:
        first = vector.reset()
        steps = play(vector, np.ones((9, 2), int))
    for e, stream in enumerate(np.random.SeedSequence(SEED).spawn(2)):
        walk = Walk(stream, MakeWalk())
        expected = [walk.step(1) for _ in range(10)]
        ours = [
            tuple(field[e] for field in first),
            *(tuple(field[t, e] for field in steps) for t in range(9)),
        ]
        for (frame, reward, *flags), (their_frame, their_reward, *their_flags) in zip(
            ours, expected, strict=True
        ):
            np.testing.assert_array_equal(frame, their_frame)
            assert reward == np.float32(their_reward)
            assert flags == their_flags
    assert [field.dtype for field in first] == [np.float32, np.float32, bool, bool, bool]
    np.testing.assert_array_equal(steps.is_first[1:], steps.is_last[:-1])
    assert steps.is_last.any(axis=0).all()


def test_workers_step_as_one_process_does_bit_by_bit(pair):
    with _open(workers=0) as alone, _open(workers=3) as three:
        _assert_equal(play(three, _moves(12)), play(alone, _moves(12)))
        state = alone.save_state()
        pair.load_state(state)
        actions = _moves(12, seed=1)
        _assert_equal(play(pair, actions), play(alone, actions))
        _assert_equal(pair.reset(), alone.reset())
        _assert_equal(play(pair, actions), play(alone, actions))
        assert pair.save_state() == alone.save_state()
        assert pair.losses == alone.losses == []


def test_a_state_goes_from_workers_to_one_process_and_other_seeds(pair):
    # The reset is still owed when the state is saved: it is part of it.
    play(pair, _moves(3))
    pair.reset()
    play(pair, np.zeros((4, E), int))
    state = pair.save_state()
    assert state is not None
    expected = play(pair, _moves(10))
    assert expected.is_first[0].any()
    with _open(workers=0, seed=99) as fresh:
        fresh.load_state(state)
        _assert_equal(play(fresh, _moves(10)), expected)
    pair.load_state(state)
    _assert_equal(play(pair, _moves(10)), expected)


def test_time_steps_are_not_overwritten_by_later_ones(pair):
    step = pair.reset()
    before = [field.copy() for field in step]
    play(pair, _moves(3))
    _assert_equal(step, TimeStep(*before))


def test_continuous_actions_arrive_whole():
    make_env = MakeWalk(num_actions=2, discrete=False, limit=50)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 3, 2))
    with _open(make_env, num_envs=3) as vector, _open(make_env, num_envs=3, workers=0) as alone:
        first = vector.reset()
        assert first.observation.shape == (3, 2, 2)
        _assert_equal(first, alone.reset())
        _assert_equal(play(vector, actions), play(alone, actions))
        with pytest.raises(ValueError, match="toy/Walk are not all finite"):
            vector.step(np.array([[0, 0], [0, np.nan], [0, 0]]))
        with pytest.raises(AssertionError, match="shape"):
            vector.step(np.zeros(3))
        # Refused actions leave the environments where they are.
        _assert_equal(vector.step(actions[0]), alone.step(actions[0]))


@pytest.mark.parametrize("action", [5, -1, 0.5])
def test_actions_that_are_no_index_are_refused(pair, action):
    with pytest.raises(ValueError, match=r"toy/Walk.*\[0, 5\)"):
        pair.step(np.full(E, action))


def test_environments_that_cannot_be_saved_make_none():
    with _open(MakeWalk(can_save=False), workers=0) as vector:
        assert vector.save_state() is None


def test_a_state_of_other_settings_is_refused(pair):
    state = pair.save_state()
    assert state is not None
    for arguments in ({"settings": {"level": (1, 2)}}, {"num_envs": 6}):
        refusal = pytest.raises(ValueError, match=r"'num_envs': 5}.*make the vector with the saved")
        with _open(workers=0, **arguments) as other, refusal:
            other.load_state(state)
    with _open(workers=0, settings={"level": (1, 2)}) as other:
        saved = other.save_state()
        assert saved is not None
        other.load_state(saved)  # JSON has no tuples


LOST = 4  # the time step that a worker owed when it was killed


@pytest.fixture(scope="module")
def killed() -> tuple[TimeStep, np.ndarray, EnvVector]:
    """Thirteen time steps of five walks; the second worker is killed before the fifth."""
    actions = _moves(12)
    with _open(MakeWalk(shows_pid=True, limit=5)) as vector:
        steps = [vector.reset()]
        steps += [vector.step(action) for action in actions[: LOST - 1]]
        pids = process_ids(steps[-1])
        assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4]
        os.kill(pids[4], signal.SIGKILL)
        steps += [vector.step(action) for action in actions[LOST - 1 :]]
    return TimeStep(*(np.stack(field) for field in zip(*steps, strict=True))), actions, vector


def test_a_killed_worker_costs_its_environments_one_episode_and_the_others_nothing(killed):
    steps, actions, _ = killed
    with _open(MakeWalk(limit=5), workers=0) as alone:
        first, rest = alone.reset(), play(alone, actions)
    for ours, at_first, later in zip(steps, first, rest, strict=True):
        theirs = np.concatenate([at_first[None], later])
        if ours is steps.observation:
            ours, theirs = ours[..., :3], theirs[..., :3]
        np.testing.assert_array_equal(ours[:, :3], theirs[:, :3])
        np.testing.assert_array_equal(ours[:LOST], theirs[:LOST])

    lost = TimeStep(*(field[LOST, 3:] for field in steps))
    assert not steps.is_last[LOST - 1, 3:].any()  # it was no reset that was due
    assert lost.is_first.all()
    assert not lost.is_last.any()
    np.testing.assert_array_equal(lost.reward, [0, 0])
    # From there on they are environments of their own seeds, and sound ones.
    for e in (3, 4):
        stream = np.random.SeedSequence(SEED, spawn_key=(E, e, 1))
        walk = Walk(stream, MakeWalk(limit=5))
        for t in range(LOST, 13):
            frame, reward, *flags = walk.step(int(actions[t - 1, e]))
            np.testing.assert_array_equal(steps.observation[t, e, :3], frame[:3])
            assert steps.reward[t, e] == np.float32(reward)
            assert [steps.terminated[t, e], steps.truncated[t, e], steps.is_first[t, e]] == flags
    pids = steps.observation[:, :, 3]
    assert len(np.unique(pids[:, :3])) == 1
    assert [len(np.unique(part)) for part in (pids[:LOST, 3:], pids[LOST:, 3:])] == [1, 1]
    assert pids[0, 3] != pids[-1, 3]


def test_a_loss_is_reported_by_name_and_seed(killed):
    (loss,) = killed[2].losses
    assert (loss.name, loss.environments, loss.seed, loss.restarts) == ("toy/Walk", (3, 4), 7, 1)
    assert "toy/Walk, environments [3, 4] (seed 7), was killed by SIGKILL" in str(loss)
    assert "memory" in str(loss)


def test_a_replay_with_a_loss_in_it_has_no_transition_there(killed):
    import jax
    import jax.numpy as jnp

    from worldmodels_jax.data.replay import add, init_replay, sample
    from worldmodels_jax.data.views import segment_ids, transitions

    steps, actions, vector = killed
    replay = init_replay(vector.spec, E, 13)
    add_jit = jax.jit(add)
    for t in range(13):
        observation, *rest = (jnp.asarray(field[t]) for field in steps)
        action = jnp.asarray(actions[min(t, 11)], jnp.int32)
        replay = add_jit(replay, Record(observation, action, *rest))
    batch = sample(replay, jax.random.key(0), 32, 13)
    valid = np.asarray(transitions(batch).valid)
    pids = np.asarray(batch.observation[..., 3])
    segments = np.asarray(segment_ids(batch.is_first))
    changed = pids[:, 1:] != pids[:, :-1]
    # Rows of environments 3 and 4 cross the loss, where another process answers; others do not.
    assert 0 < changed.any(axis=1).sum() < 32
    assert changed.sum(axis=1).max() == 1
    assert not valid[changed].any()
    assert (np.diff(segments, axis=1)[changed] == 1).all()
    # Everywhere else the step counter of the walk tells transitions from resets.
    counted = np.asarray(batch.observation[..., 1])
    np.testing.assert_array_equal(valid, counted[:, 1:] == counted[:, :-1] + 1)


def test_a_hanging_worker_is_replaced_and_warned_about(caplog):
    with _open(num_envs=2, timeout=3.0) as vector, _open(num_envs=2, workers=0) as alone:
        vector.reset(), alone.reset()
        step = vector.step(np.array([HANG, 1]))
        np.testing.assert_array_equal(step.is_first, [True, False])
        expected = alone.step(np.array([0, 1]))
        np.testing.assert_array_equal(step.observation[1], expected.observation[1])
        assert not vector.step(np.array([1, 1])).is_first.any()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("worldmodels_jax.envs.host_vector", "WARNING")
    assert record.getMessage() == str(vector.losses[0])
    assert "toy/Walk, environments [0] (seed 7), gave no answer within 3 s" in record.getMessage()


def _without_pids(steps: TimeStep) -> TimeStep:
    return steps._replace(observation=steps.observation[..., :3])


def test_a_loss_between_steps_is_noticed_by_whatever_comes_next():
    with _open(MakeWalk(shows_pid=True), num_envs=2, workers=1) as vector:
        for count, call in enumerate((vector.save_state, vector.reset), start=1):
            (pid, _) = process_ids(vector.step(np.zeros(2, int)))
            os.kill(pid, signal.SIGKILL)
            assert until(lambda pid=pid: gone(pid))
            call()
            assert len(vector.losses) == vector.losses[-1].restarts == count
        state = vector.save_state()
        assert state is not None
        # The count of restarts, on which seeds depend, is part of it.
        with _open(num_envs=2, workers=0, seed=99) as fresh:
            fresh.load_state(state)
            assert fresh.save_state() == state
        expected = play(vector, _moves(3, num_envs=2))
        assert not expected.is_first[0].any()
        os.kill(process_ids(vector.reset())[0], signal.SIGKILL)
        vector.load_state(state)
        _assert_equal(_without_pids(play(vector, _moves(3, num_envs=2))), _without_pids(expected))
    assert len(vector.losses) == 3


def test_a_worker_that_is_lost_again_and_again_is_an_error():
    with _open(num_envs=1) as vector:
        vector.reset()
        # A good step between losses forgives them.
        for action in [DIE, 0, DIE, DIE, DIE]:
            assert vector.step(np.array([action])).is_first.all() == (action == DIE)
        message = r"toy/Walk, environments \[0\] \(seed 7\), was lost 4 times.* killed by SIGKILL"
        with pytest.raises(RuntimeError, match=message):
            vector.step(np.array([DIE]))
        assert [loss.restarts for loss in vector.losses] == [1, 2, 3, 4]
        with pytest.raises(ValueError, match="toy/Walk was closed"):
            vector.reset()


def test_a_constructor_that_kills_its_process_is_an_error():
    message = r"die_at_once.*environments \[0\] \(seed 7\).*exited with status 7"
    with pytest.raises(RuntimeError, match=message):
        make_host_vector(die_at_once, num_envs=1, seed=7, workers=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_of_an_environment_names_it_and_closes_the_vector(workers):
    with _open(num_envs=3, workers=workers) as vector:
        vector.reset()
        message = r"KeyError in step of environment 1 of toy/Walk \(seed 7\): 'lost the key'"
        with pytest.raises(RuntimeError, match=message) as caught:
            vector.step(np.array([0, RAISE, 0]))
        cause = caught.value.__cause__
        assert "lost the key" in str(cause)
        assert workers == 0 or 'raise KeyError("lost the key")' in str(cause)
        assert vector.losses == []
        with pytest.raises(ValueError, match="toy/Walk was closed"):
            vector.step(np.zeros(3, int))


def test_an_observation_that_is_not_as_its_spec_says_is_an_error():
    message = r"environment 0.*float64\[4\].*float32\[4\]"
    with (
        _open(MakeWalk(dtype="float64"), workers=0) as vector,
        pytest.raises(RuntimeError, match=message),
    ):
        vector.reset()


def test_constructors_keep_their_errors_of_a_wrong_value_and_a_missing_package():
    arguments: dict[str, Any] = {"num_envs": 2, "seed": 7}
    with pytest.raises(ValueError, match=r"^level 9 is unknown; ") as caught:
        make_host_vector(raise_value_error, workers=1, **arguments)
    assert "environment 1" in caught.value.__notes__[0]
    assert "raise ValueError(f" in str(caught.value.__cause__)
    # The accelerator is the parent's, and so are the packages that use it.
    assert "platforms='cpu' started=[]" in str(caught.value)
    for workers in (0, 1):
        with pytest.raises(ModuleNotFoundError, match=r"^toy needs toylib: run `pip install"):
            make_host_vector(raise_module_not_found, workers=workers, **arguments)
    with pytest.raises(ValueError, match=r"of_different_specs.*different specs"):
        make_host_vector(of_different_specs, **arguments)


def test_what_cannot_be_sent_to_a_worker_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"lambda.*workers=2.*choose workers=0"):
        make_host_vector(lambda seed: Walk(seed, MakeWalk()), num_envs=2, seed=0, workers=2)
    monkeypatch.setattr(sys.modules["__main__"], "MakeHere", _MakeHere, raising=False)
    with pytest.raises(ValueError, match=r"cannot be loaded in a worker.*not in the main program"):
        make_host_vector(_MakeHere(), num_envs=1, seed=0, workers=1)


class _MakeHere(MakeWalk):
    __module__, __qualname__ = "__main__", "MakeHere"


@pytest.mark.parametrize("number", [{"num_envs": 0}, {"workers": -1}, {"timeout": 0.0}])
def test_numbers_out_of_range_are_refused(number):
    ((name, value),) = number.items()
    with pytest.raises(ValueError, match=f"'{name}': {value}"):
        make_host_vector(MakeWalk(), **{"num_envs": 1, "seed": 0, **number})
