"""Pure views of sampled sequences: what a model wants in place of the arrival-aligned records."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.types import Record


class Transitions(NamedTuple):
    """What follows each record but the last: the targets of (o_t, a_t)."""

    reward: jax.Array  # (B, T-1) float32, r_{t+1}
    terminated: jax.Array  # (B, T-1) bool, terminated_{t+1}
    valid: jax.Array  # (B, T-1) bool, False where record t+1 came from a reset


def transitions(batch: Record) -> Transitions:
    """Align rewards and terminations with the action that caused them.

    Args:
      batch: records ``(B, T, ...)``, aligned on arrival.

    Returns:
      Targets of the first T-1 records. The pair of a last and a first record is not a transition;
      ``valid`` is False there and every loss must be masked by it.
    """
    return Transitions(batch.reward[:, 1:], batch.terminated[:, 1:], ~batch.is_first[:, 1:])


def windows(x: jax.Array, count: int) -> jax.Array:
    """The windows of a sequence that end at its last ``count`` steps.

    Args:
      x: ``(B, T, ...)``.
      count: S, static, at most T.

    Returns:
      ``(B S, T - S + 1, ...)``, those of a sequence together, the oldest first.

    Raises:
      ValueError: if there are not so many.
    """
    batch, time, *rest = x.shape
    _check_count(count, time)
    if count == 1:
        return x
    length = time - count + 1
    index = jnp.arange(count)[:, None] + jnp.arange(length)
    return x[:, index].reshape(batch * count, length, *rest)


def last(x: jax.Array, count: int) -> jax.Array:
    """The last ``count`` steps of every sequence.

    Args:
      x: ``(B, T, ...)``.
      count: S, static, at most T.

    Returns:
      ``(B S, ...)``, those of a sequence together, the oldest first.

    Raises:
      ValueError: if there are not so many.
    """
    batch, time, *rest = x.shape
    _check_count(count, time)
    return x[:, time - count :].reshape(batch * count, *rest)


def _check_count(count: int, time: int) -> None:
    if not 1 <= count <= time:
        raise ValueError(f"{count} starts do not fit a sequence of {time} steps: take 1 to {time}.")


def segment_ids(is_first: jax.Array) -> jax.Array:
    """Number of the episode each record belongs to, counted from the start of the sequence.

    Args:
      is_first: ``(B, T)`` bool.

    Returns:
      ``(B, T)`` int32, rising by one at every first record.
    """
    return jnp.cumsum(is_first.astype(jnp.int32), axis=1)
