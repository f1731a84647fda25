"""Acting in a real environment: a policy over the last frames of the running episode."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import EnvSpec, PyTree, Record, TimeStep


class Actor(NamedTuple):
    """Acting as pure functions; the context is the memory: the last C records, oldest first.

    Attributes:
      init: ``(num_envs) -> context (E, C, ...)``.
      push: ``(context, time_step (E, ...)) -> context``; the action of the newest record is unset.
      act: ``(model_variables, agent_variables, context, key) -> action (E, ...)``, sampled.
      act_greedy: the same, with the policy's mode.
      act_random: ``(num_envs, key) -> action (E, ...)``, uniform.
      record_action: ``(context, action) -> context``, sets the newest record's action.
    """

    init: Callable[[int], Record]
    push: Callable[[Record, TimeStep], Record]
    act: Callable[[PyTree, PyTree, Record, jax.Array], jax.Array]
    act_greedy: Callable[[PyTree, PyTree, Record, jax.Array], jax.Array]
    act_random: Callable[[int, jax.Array], jax.Array]
    record_action: Callable[[Record, jax.Array], Record]


def newest(context: Record) -> Record:
    """The newest record of a context: ``(E, C, ...) -> (E, ...)``."""
    return jax.tree.map(lambda x: x[:, -1], context)


def make_actor(world_model: WorldModel, agent: Agent, spec: EnvSpec, context_length: int) -> Actor:
    """Build the acting functions.

    Args:
      world_model: gives features of the context.
      agent: acts on the features.
      spec: the environment's.
      context_length: C, frames the model sees; slots before the first frame of an episode belong to
        the episode before (or are empty) and are not attended to.
    """

    def push(context: Record, time_step: TimeStep) -> Record:
        blank = empty_records(spec, time_step.reward.shape)
        record = Record(action=blank.action, **time_step._asdict())
        return jax.tree.map(
            lambda old, new: jnp.concatenate([old[:, 1:], new[:, None].astype(old.dtype)], axis=1),
            context,
            record,
        )

    def features(variables: PyTree, context: Record, key: jax.Array) -> jax.Array:
        return world_model.observe(variables, context, key, 0)[1]

    def act(
        variables: PyTree, agent_variables: PyTree, context: Record, key: jax.Array
    ) -> jax.Array:
        key_observe, key_act = jax.random.split(key)
        return agent.act(agent_variables, features(variables, context, key_observe), key_act)

    def act_greedy(
        variables: PyTree, agent_variables: PyTree, context: Record, key: jax.Array
    ) -> jax.Array:
        return agent.act_greedy(agent_variables, features(variables, context, key))

    def act_random(num_envs: int, key: jax.Array) -> jax.Array:
        if spec.discrete:
            return jax.random.randint(key, (num_envs,), 0, spec.num_actions)
        return jax.random.uniform(key, (num_envs, spec.num_actions), minval=-1.0, maxval=1.0)

    def record_action(context: Record, action: jax.Array) -> Record:
        return context._replace(action=context.action.at[:, -1].set(action))

    return Actor(
        init=lambda num_envs: empty_records(spec, (num_envs, context_length)),
        push=push,
        act=act,
        act_greedy=act_greedy,
        act_random=act_random,
        record_action=record_action,
    )
