"""A replay ring in device memory, written and sampled inside the compiled loop.

One ring per environment, all written in lock step, so that a sampled sequence is always a piece
of one environment's history. Frames stay uint8.
"""

from collections.abc import Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.types import EnvSpec, Record


class Replay(NamedTuple):
    """Storage and the number of writes so far (which also gives the write head)."""

    storage: Record  # every leaf (E, capacity, ...)
    written: jax.Array  # () int32, records written to each ring since the start
    # By the name of whoever samples, (E, capacity) int32: how often each episode was drawn, kept at
    # its oldest record. Empty where records are sampled, not episodes.
    draws: dict[str, jax.Array]


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


def init_replay(
    spec: EnvSpec, num_envs: int, capacity: int, samplers: Iterable[str] = ()
) -> Replay:
    """An empty ring of ``capacity`` records for each of E environments.

    Args:
      spec: of the environment.
      num_envs: E.
      capacity: records of each ring.
      samplers: names of those who sample episodes, each with its own counts.
    """
    draws = {name: jnp.zeros((num_envs, capacity), jnp.int32) for name in samplers}
    return Replay(empty_records(spec, (num_envs, capacity)), jnp.zeros((), jnp.int32), draws)


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

    storage = jax.tree.map(write, replay.storage, record)
    head = replay.written % capacity
    heir = (head + 1) % capacity  # the oldest record there will be, if the rings are full

    def inherit(draws: jax.Array) -> jax.Array:
        count = jnp.where(storage.is_first[:, heir], draws[:, heir], draws[:, head])
        return draws.at[:, heir].set(count).at[:, head].set(0)

    return Replay(storage, replay.written + 1, jax.tree.map(inherit, replay.draws))


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
    _check_length(length, capacity)
    key_env, key_start = jax.random.split(key)
    env = jax.random.randint(key_env, (batch_size,), 0, num_envs)
    size = jnp.minimum(replay.written, capacity)
    offset = jax.random.randint(key_start, (batch_size,), 0, jnp.maximum(size - length, 0) + 1)
    oldest = replay.written - size
    index = (oldest + offset[:, None] + jnp.arange(length)) % capacity
    return jax.tree.map(lambda ring: ring[env[:, None], index], replay.storage)


def sample_episodes(
    replay: Replay,
    draws: jax.Array,
    key: jax.Array,
    batch_size: int,
    length: int,
    *,
    power: float = 0.0,
    towards_end: bool = False,
) -> tuple[jax.Array, Record]:
    """Sample episodes by how often they were drawn, then a sequence around one of their records.

    An episode that was drawn n times has probability proportional to ``(1 + n)^-power``, whatever
    its length (Delta-IRIS, section 3.3). A sequence holds the record at a place of its own, both
    uniform; with ``towards_end`` its last record is one of the episode's. Where a sequence reaches
    beyond its episode it has the neighbours' records, which ``is_first`` tells apart.

    Args:
      replay: the rings.
      draws: ``(E, capacity)``, see ``Replay.draws``.
      key: a PRNG key.
      batch_size: B.
      length: T, at most the capacity.
      power: 0 draws all episodes alike.
      towards_end: whether the last record must be of the episode.

    Returns:
      The counts after the draw, and records ``(B, T, ...)``.

    Raises:
      ValueError: if T exceeds the capacity.
    """
    capacity = replay.storage.reward.shape[1]
    _check_length(length, capacity)
    size = jnp.minimum(replay.written, capacity)
    age = jnp.arange(capacity)  # 0 is the oldest record
    slot = (replay.written - size + age) % capacity
    begins = (replay.storage.is_first[:, slot] | (age == 0)) & (age < size)

    logits = -power * jnp.log1p(draws[:, slot].astype(jnp.float32))
    logits = jnp.where(begins, logits, -jnp.inf)
    cumulative = jnp.cumsum(jnp.exp(logits - logits.max()))
    key_episode, key_record, key_place = jax.random.split(key, 3)
    # Below the total, which rounding could otherwise make a draw beyond the last episode.
    level = jax.random.uniform(key_episode, (batch_size,)) * cumulative[-1]
    index = jnp.searchsorted(cumulative, jnp.minimum(level, cumulative[-1] * (1 - 1e-6)), "right")
    env, begin = index // capacity, index % capacity

    later = jnp.where(begins, age, size)[:, 1:]
    later = jnp.concatenate([later, jnp.full_like(later[:, :1], size)], axis=1)
    end = jax.lax.cummin(later, axis=1, reverse=True)[env, begin]
    share = jax.random.uniform(key_record, (batch_size,))
    record = jnp.minimum(begin + (share * (end - begin)).astype(jnp.int32), end - 1)
    place = jax.random.randint(key_place, (batch_size,), 0, length)
    first = record - place
    if towards_end:
        first = jnp.minimum(end - 1, record + place) - (length - 1)
    first = jnp.clip(first, 0, jnp.maximum(size - length, 0))
    rows = slot[first[:, None] + jnp.arange(length)]
    batch = jax.tree.map(lambda ring: ring[env[:, None], rows], replay.storage)
    return draws.at[env, slot[begin]].add(1), batch


def _check_length(length: int, capacity: int) -> None:
    if length > capacity:
        raise ValueError(
            f"sequences of {length} records do not fit a replay of {capacity} records per "
            "environment: raise training.replay_capacity or shorten training.batch_length."
        )
