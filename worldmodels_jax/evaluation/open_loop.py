"""Open-loop prediction: what the model dreams from real frames under the recorded actions."""

import jax
import jax.numpy as jnp

from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import PyTree, Record


def open_loop(
    world_model: WorldModel, variables: PyTree, records: Record, key: jax.Array, *, context: int
) -> jax.Array:
    """Reconstruct the first C frames, then dream the others under the recorded actions.

    Args:
      world_model: the model.
      variables: its variables.
      records: ``(B, C + L, ...)``, of one episode each.
      key: a PRNG key.
      context: C, at least 1.

    Returns:
      Frames ``(B, C + L, *observation_shape)`` in the environment's type and scale.
    """
    batch, length = records.reward.shape
    if not 1 <= context < length:
        raise ValueError(
            f"a context of {context} frames leaves nothing to dream of {length} records: choose 1 "
            f"to {length - 1}."
        )
    key_reconstruct, key_observe, key_dream = jax.random.split(key, 3)
    seen = jax.tree.map(lambda x: x[:, :context], records)
    # One frame is a context of its own: its posterior, decoded, is its reconstruction.
    single = jax.tree.map(lambda x: x.reshape(batch * context, 1, *x.shape[2:]), seen)
    carry, _ = world_model.observe(variables, single, key_reconstruct, 0)
    reconstructed = world_model.decode(variables, carry)
    reconstructed = reconstructed.reshape(batch, context, *reconstructed.shape[1:])

    carry, _ = world_model.observe(variables, seen, key_observe, length - context)

    def step(carry, inputs):  # type: ignore[no-untyped-def]  # carry is the model's own pytree
        action, step_key = inputs
        carry, _ = world_model.imagine(variables, carry, action, step_key)
        return carry, world_model.decode(variables, carry)

    actions = jnp.moveaxis(records.action[:, context - 1 : length - 1], 1, 0)
    keys = jax.random.split(key_dream, length - context)
    _, dreamed = jax.lax.scan(step, carry, (actions, keys))
    return jnp.concatenate([reconstructed, jnp.moveaxis(dreamed, 0, 1)], axis=1)


def episode_window(records: Record, length: int) -> int:
    """Start of the first stretch of ``length`` records within one episode.

    Args:
      records: ``(T, ...)`` consecutive records.
      length: of the stretch.

    Returns:
      An index; if no episode is that long, the first start that crosses the fewest resets.

    Raises:
      ValueError: if there are fewer than ``length`` records.
    """
    total = records.reward.shape[0]
    if total < length:
        raise ValueError(f"{total} records do not hold a stretch of {length}: record more steps.")
    resets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(records.is_first)])
    starts = jnp.arange(total - length + 1)
    return int(jnp.argmin(resets[starts + length] - resets[starts + 1]))
