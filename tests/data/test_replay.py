"""The replay ring, filled with counters: every sequence must be a piece of one history."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from worldmodels_jax.data.replay import add, empty_records, init_replay, sample
from worldmodels_jax.types import EnvSpec, Record

ENVS, CAPACITY, LENGTH = 3, 7, 3
SPEC = EnvSpec("counter", (2,), "float32", 2, False, 10)
FRAMES = EnvSpec("frames", (4, 3, 1), "uint8", 5, True, 10)


def record(step):
    """Record ``step`` of environment e is the number 100 e + step in every field."""
    value = 100.0 * jnp.arange(ENVS) + step
    return Record(
        observation=jnp.stack([value, -value], -1),
        action=jnp.stack([value, value / 2], -1),
        reward=value,
        terminated=value % 2 == 0,
        truncated=value % 3 == 0,
        is_first=value % 5 == 0,
    )


@jax.jit
def filled(writes):
    replay = init_replay(SPEC, ENVS, CAPACITY)
    return jax.lax.fori_loop(0, writes, lambda step, ring: add(ring, record(step)), replay)


many = jax.jit(lambda replay, key: sample(replay, key, 3000, LENGTH))


@pytest.mark.parametrize("writes", [LENGTH, 5, CAPACITY, CAPACITY + 1, 12, 3 * CAPACITY, 100])
def test_sequences_never_cross_the_write_head_and_all_starts_are_equally_likely(writes):
    batch = many(filled(writes), jax.random.key(writes))
    assert batch.reward.shape == (3000, LENGTH)
    numbers = np.asarray(batch.reward).astype(int)
    np.testing.assert_array_equal(np.diff(numbers, axis=1), 1)
    np.testing.assert_array_equal(numbers // 100, numbers[:, :1] // 100 * np.ones(LENGTH))
    oldest = max(0, writes - CAPACITY)
    starts = range(oldest, writes - LENGTH + 1)
    valid = [100 * env + start for env in range(ENVS) for start in starts]
    assert set(numbers[:, 0]) == set(valid)
    counts = [(numbers[:, 0] == start).sum() for start in valid]
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_all_fields_of_a_record_stay_together():
    batch = many(filled(12), jax.random.key(0))
    value = np.asarray(batch.reward)
    np.testing.assert_array_equal(batch.observation, np.stack([value, -value], -1))
    np.testing.assert_array_equal(batch.action, np.stack([value, value / 2], -1))
    np.testing.assert_array_equal(batch.terminated, value % 2 == 0)
    np.testing.assert_array_equal(batch.truncated, value % 3 == 0)
    np.testing.assert_array_equal(batch.is_first, value % 5 == 0)


def test_a_sequence_may_fill_the_ring():
    replay = filled(CAPACITY + 4)
    batch = sample(replay, jax.random.key(0), 8, CAPACITY)
    np.testing.assert_array_equal(batch.reward % 100, [np.arange(4, 4 + CAPACITY)] * 8)


def test_one_key_is_one_batch():
    replay = filled(12)
    first, same, other = (many(replay, jax.random.key(seed)).reward for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_a_donated_ring_is_written_in_place():
    write = jax.jit(add, donate_argnums=0)
    replay = init_replay(SPEC, ENVS, CAPACITY)
    for step in range(CAPACITY + 2):
        pointer = replay.storage.observation.unsafe_buffer_pointer()
        replay = write(replay, record(step))
        assert replay.storage.observation.unsafe_buffer_pointer() == pointer
    jax.tree.map(np.testing.assert_array_equal, replay, filled(CAPACITY + 2))
    assert replay.written == CAPACITY + 2


def test_frames_stay_uint8_and_actions_integers():
    replay = init_replay(FRAMES, 2, 4)
    frames = jax.random.randint(jax.random.key(0), (2, 4, 3, 1), 0, 256).astype(jnp.uint8)
    replay = add(replay, empty_records(FRAMES, (2,))._replace(observation=frames))
    batch = sample(replay, jax.random.key(0), 6, 1)
    assert batch.observation.dtype == jnp.uint8
    assert batch.observation.shape == (6, 1, 4, 3, 1)
    assert batch.action.dtype == jnp.int32
    for observation in np.asarray(batch.observation[:, 0]):
        assert any((observation == frame).all() for frame in np.asarray(frames))


def test_empty_records_are_those_of_the_environment():
    discrete = empty_records(FRAMES, (2, 3))
    assert discrete.action.shape == discrete.reward.shape == (2, 3)
    assert discrete.observation.shape == (2, 3, 4, 3, 1)
    continuous = empty_records(SPEC, (2, 3))
    assert continuous.action.shape == (2, 3, 2)
    assert continuous.action.dtype == continuous.observation.dtype == jnp.float32
    assert discrete.is_first.dtype == discrete.terminated.dtype == discrete.truncated.dtype == bool


def test_sequences_longer_than_the_ring_are_refused():
    with pytest.raises(ValueError, match=f"8 records do not fit a replay of {CAPACITY} records"):
        sample(filled(CAPACITY), jax.random.key(0), 1, CAPACITY + 1)


def test_a_record_of_another_shape_is_refused():
    one_environment = jax.tree.map(lambda x: x[:1], record(0))
    with pytest.raises(AssertionError):
        add(init_replay(SPEC, ENVS, CAPACITY), one_environment)
