"""A replay ring in device memory, written and sampled inside the compiled loop.

One ring per environment, all written in lock step, so that a sampled sequence is always a piece
of one environment's history. Frames stay uint8.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.types import EnvSpec, Record


class Replay(NamedTuple):
    """Storage and the number of writes so far (which also gives the write head)."""

    storage: Record  # every leaf (E, capacity, ...)
    written: jax.Array  # () int32, records written to each ring since the start


def empty_records(spec: EnvSpec, shape: tuple[int, ...]) -> Record:
    """Records of zeros with the given leading axes."""
    action_shape = () if spec.discrete else (spec.num_actions,)
    return Record(
        observation=jnp.zeros((*shape, *spec.observation_shape), spec.observation_dtype),
        action=jnp.zeros((*shape, *action_shape), jnp.int32 if spec.discrete else jnp.float32),
        reward=jnp.zeros(shape, jnp.float32),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
        is_first=jnp.zeros(shape, bool),
    )


def init_replay(spec: EnvSpec, num_envs: int, capacity: int) -> Replay:
    """An empty ring of ``capacity`` records for each of E environments."""
    return Replay(empty_records(spec, (num_envs, capacity)), jnp.zeros((), jnp.int32))


def add(replay: Replay, record: Record) -> Replay:
    """Write one record per environment, over the oldest once the rings are full.

    Args:
      replay: the rings.
      record: leaves ``(E, ...)``.
    """
    capacity = replay.storage.reward.shape[1]

    def write(ring: jax.Array, value: jax.Array) -> jax.Array:
        chex.assert_equal_shape([ring[:, 0], value])
        return jax.lax.dynamic_update_slice_in_dim(
            ring, value[:, None].astype(ring.dtype), replay.written % capacity, axis=1
        )

    return Replay(jax.tree.map(write, replay.storage, record), replay.written + 1)


def sample(replay: Replay, key: jax.Array, batch_size: int, length: int) -> Record:
    """Sample sequences uniformly over all valid starts.

    A start is valid if the sequence does not cross the write head, that is, if it is ``length``
    consecutive records of one ring, oldest to newest. At least ``length`` records must have been
    written (the loop's warm-up sees to it).

    Args:
      replay: the rings.
      key: a PRNG key.
      batch_size: B.
      length: T, at most the capacity.

    Returns:
      Records ``(B, T, ...)``.

    Raises:
      ValueError: if T exceeds the capacity.
    """
    num_envs, capacity = replay.storage.reward.shape
    if length > capacity:
        raise ValueError(
            f"sequences of {length} records do not fit a replay of {capacity} records per "
            "environment: raise training.replay_capacity or shorten training.batch_length."
        )
    key_env, key_start = jax.random.split(key)
    env = jax.random.randint(key_env, (batch_size,), 0, num_envs)
    size = jnp.minimum(replay.written, capacity)
    offset = jax.random.randint(key_start, (batch_size,), 0, jnp.maximum(size - length, 0) + 1)
    oldest = replay.written - size
    index = (oldest + offset[:, None] + jnp.arange(length)) % capacity
    return jax.tree.map(lambda ring: ring[env[:, None], index], replay.storage)
