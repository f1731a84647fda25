"""Dreaming: a policy acts inside a world model, from states of real frames."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.actor_critic import Agent, Dream, History
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import PyTree, Record


class Policy(NamedTuple):
    """What acts in a dream.

    Attributes:
      init_memory: ``(batch) -> memory``, of no frames; () for a policy without memory.
      act: ``(memory, features (B, F), key) -> action (B, ...), memory``.
    """

    init_memory: Callable[[int], PyTree]
    act: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


def memoryless(act: Callable[[jax.Array, jax.Array], jax.Array]) -> Policy:
    """The policy of a function ``(features (B, F), key) -> action (B, ...)``."""
    return Policy(lambda batch: (), lambda memory, features, key: (act(features, key), memory))


def policy_of(agent: Agent, variables: PyTree) -> Policy:
    """An agent's policy."""
    return Policy(
        agent.init_memory,
        lambda memory, features, key: agent.act(variables, memory, features, key),
    )


def reset(policy: Policy | Agent, memory: PyTree, is_first: jax.Array) -> PyTree:
    """The memory ``(B, ...)``, emptied where an episode begins, ``is_first (B,)``."""
    fresh = policy.init_memory(is_first.shape[0])

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_first.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, fresh, memory)


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
    own. A policy with a memory is shown the frames before, one by one (the burn-in). No gradient is
    taken through the rollout: the losses evaluate actor and critic again on the stored features, in
    one batch.

    Args:
      world_model: the model; with a policy that has a memory it must have a filter.
      variables: its variables.
      policy: acts on features.
      context: real records ``(B, C, ...)``.
      key: a PRNG key.
      horizon: L, static.
      starts: at how many of the last frames of each context a dream begins, static; 1 with a policy
        that has a memory.

    Returns:
      B ``starts`` dreams. The weight is 0 for those that begin at a terminal or truncated record,
      whose future was never trained.
    """
    key_observe, key_steps = jax.random.split(key)
    carry, features = world_model.observe(variables, context, key_observe, horizon, starts)
    memory, history = policy.init_memory(features.shape[0]), None
    if jax.tree.leaves(memory):
        key_history, key_burn_in = jax.random.split(jax.random.fold_in(key, 1))
        history = _history(world_model, variables, context, key_history, starts)
        memory = _burn_in(policy, history, key_burn_in)
    weight = 1.0 - context.is_last[:, -starts:].reshape(-1).astype(jnp.float32)
    dreamed = dream_from(
        world_model, variables, policy, carry, features, weight, key_steps, horizon, memory
    )
    return dreamed._replace(history=jax.lax.stop_gradient(history))


def dream_from(
    world_model: WorldModel,
    variables: PyTree,
    policy: Policy,
    carry: PyTree,
    features: jax.Array,
    weight: jax.Array,
    key: jax.Array,
    horizon: int,
    memory: PyTree = (),
) -> Dream:
    """Roll a policy out in a world model's imagination, from states it is given.

    Args:
      world_model: the model.
      variables: its variables.
      policy: acts on features.
      carry: states of B starts, to ``imagine`` from.
      features: theirs, ``(B, F)``.
      weight: ``(B,)``, of each dream.
      key: a PRNG key.
      horizon: L, static.
      memory: what the policy remembers of the frames before.

    Returns:
      B dreams, through which no gradient flows.
    """
    # Stopped before the steps and not after: nothing of them is then kept for a gradient.
    variables, carry, features, memory = jax.lax.stop_gradient((variables, carry, features, memory))

    def step(state, step_key):  # type: ignore[no-untyped-def]  # carry is the model's own pytree
        carry, features, memory = state
        key_act, key_imagine = jax.random.split(step_key)
        action, memory = policy.act(memory, features, key_act)
        carry, prediction = world_model.imagine(variables, carry, action, key_imagine)
        out = (features, action, prediction.reward, prediction.continuation)
        return (carry, prediction.features, memory), out

    (_, last, _), (states, actions, rewards, continuations) = jax.lax.scan(
        step, (carry, features, memory), jax.random.split(key, horizon)
    )
    return jax.lax.stop_gradient(
        Dream(
            features=jnp.concatenate([states, last[None]]),
            action=actions,
            reward=rewards,
            continuation=continuations,
            weight=weight,
        )
    )


def _history(
    world_model: WorldModel, variables: PyTree, context: Record, key: jax.Array, starts: int
) -> History:
    """What the policy sees of the frames before the last."""
    if world_model.filter is None or starts != 1:
        raise ValueError(
            f"a policy with a memory dreams from the last frame of a context (starts={starts}: use "
            "1) of a world model with a filter."
        )
    update = world_model.filter.update

    def step(state, inputs):  # type: ignore[no-untyped-def]  # the filter's own pytree
        record, before, step_key = inputs
        return update(variables, state, record, before, step_key)

    batch, length = context.reward.shape
    records: Record = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), context)
    earlier = jax.tree.map(lambda x: x[:-1], records)
    before = jnp.concatenate([jnp.zeros_like(earlier.action[:1]), earlier.action])[: length - 1]
    keys = jax.random.split(key, length - 1)
    _, features = jax.lax.scan(step, world_model.filter.init(batch), (earlier, before, keys))
    return History(features, records.is_first)


def _burn_in(policy: Policy, history: History, key: jax.Array) -> PyTree:
    """The policy's memory of a history, ready for the first dreamed frame."""

    def step(memory: PyTree, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[PyTree, None]:
        features, is_first, step_key = inputs
        return policy.act(reset(policy, memory, is_first), features, step_key)[1], None

    keys = jax.random.split(key, history.features.shape[0])
    fresh = policy.init_memory(history.is_first.shape[1])
    memory, _ = jax.lax.scan(step, fresh, (history.features, history.is_first[:-1], keys))
    return reset(policy, memory, history.is_first[-1])
