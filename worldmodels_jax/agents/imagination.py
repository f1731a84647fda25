"""Dreaming: a policy acts inside a world model, from states of real frames."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.actor_critic import Dream
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import PyTree, Record

Policy = Callable[[jax.Array, jax.Array], jax.Array]  # (features (B, F), key) -> action (B, ...)


def dream(
    world_model: WorldModel,
    variables: PyTree,
    policy: Policy,
    context: Record,
    key: jax.Array,
    horizon: int,
    starts: int = 1,
) -> Dream:
    """Roll a policy out in a world model's imagination.

    The context is encoded in one parallel pass; its last frame is the first state of the dream
    (with ``starts``, each of its last frames that of one), and the first action is the policy's
    own. No gradient is taken through the rollout: the losses evaluate actor and critic again on the
    stored features, in one batch.

    Args:
      world_model: the model.
      variables: its variables.
      policy: acts on features.
      context: real records ``(B, C, ...)``.
      key: a PRNG key.
      horizon: L, static.
      starts: at how many of the last frames of each context a dream begins, static.

    Returns:
      B ``starts`` dreams. The weight is 0 for those that begin at a terminal or truncated record,
      whose future was never trained.
    """
    key_observe, key_steps = jax.random.split(key)
    carry, features = world_model.observe(variables, context, key_observe, horizon, starts)

    def step(state, step_key):  # type: ignore[no-untyped-def]  # carry is the model's own pytree
        carry, features = state
        key_act, key_imagine = jax.random.split(step_key)
        action = policy(features, key_act)
        carry, prediction = world_model.imagine(variables, carry, action, key_imagine)
        out = (features, action, prediction.reward, prediction.continuation)
        return (carry, prediction.features), out

    (_, last), (states, actions, rewards, continuations) = jax.lax.scan(
        step, (carry, features), jax.random.split(key_steps, horizon)
    )
    return jax.lax.stop_gradient(
        Dream(
            features=jnp.concatenate([states, last[None]]),
            action=actions,
            reward=rewards,
            continuation=continuations,
            weight=1.0 - context.is_last[:, -starts:].reshape(-1).astype(jnp.float32),
        )
    )
