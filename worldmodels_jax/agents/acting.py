"""Acting in a real environment: a policy over what was seen of the running episode."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.agents.imagination import reset
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import EnvSpec, PyTree, Record, TimeStep


class Memory(NamedTuple):
    """What is remembered between the steps of E environments.

    Attributes:
      records: the last C records ``(E, C, ...)``, oldest first.
      model: the world model's filter, as of the record before the newest; () without one.
      policy: what the policy remembers, likewise; () for policies without memory.
    """

    records: Record
    model: PyTree
    policy: PyTree


# (model_variables, agent_variables, memory, key) -> memory, action (E, ...)
Act = Callable[[PyTree, PyTree, Memory, jax.Array], tuple[Memory, jax.Array]]


class Actor(NamedTuple):
    """Acting as pure functions over a memory.

    ``push`` puts a time step into the memory; each of the others then chooses actions and records
    them there.

    Attributes:
      init: ``(num_envs) -> memory``.
      push: ``(memory, time_step (E, ...)) -> memory``; the action of the newest record is unset.
      act: ``(model_variables, agent_variables, memory, key) -> memory, action (E, ...)``, sampled.
      act_greedy: the same, with the policy's mode.
      act_random: ``(memory, key) -> memory, action (E, ...)``, uniform.
      record_action: ``(memory, action) -> memory``, sets the newest record's action.
    """

    init: Callable[[int], Memory]
    push: Callable[[Memory, TimeStep], Memory]
    act: Act
    act_greedy: Act
    act_random: Callable[[Memory, jax.Array], tuple[Memory, jax.Array]]
    record_action: Callable[[Memory, jax.Array], Memory]


def newest(memory: Memory) -> Record:
    """The newest record: ``(E, ...)``."""
    return jax.tree.map(lambda x: x[:, -1], memory.records)


def make_actor(world_model: WorldModel, agent: Agent, spec: EnvSpec, context_length: int) -> Actor:
    """Build the acting functions.

    Args:
      world_model: gives features of the newest frame.
      agent: acts on the features.
      spec: the environment's.
      context_length: C, frames that the model encodes anew at every step; slots before the first
        frame of an episode belong to the episode before (or are empty) and are not attended to. 0
        has the model's filter follow the episode from its beginning, a step at a time.

    Raises:
      ValueError: if C is 0 and the model has no filter, or the policy has a memory of its own and C
        is not 0.
    """
    recursive = context_length == 0
    check_memory(world_model, agent, context_length)

    def init(num_envs: int) -> Memory:
        # A filter wants the newest record and the action before it.
        records = empty_records(spec, (num_envs, context_length or 2))
        model = world_model.filter.init(num_envs) if recursive and world_model.filter else ()
        return Memory(records, model, agent.init_memory(num_envs))

    def push(memory: Memory, time_step: TimeStep) -> Memory:
        blank = empty_records(spec, time_step.reward.shape)
        record = Record(action=blank.action, **time_step._asdict())
        records = jax.tree.map(
            lambda old, new: jnp.concatenate([old[:, 1:], new[:, None].astype(old.dtype)], axis=1),
            memory.records,
            record,
        )
        return memory._replace(records=records)

    def features(variables: PyTree, memory: Memory, key: jax.Array) -> tuple[PyTree, jax.Array]:
        if recursive:
            assert world_model.filter is not None
            before = memory.records.action[:, -2]
            return world_model.filter.update(variables, memory.model, newest(memory), before, key)
        return (), world_model.observe(variables, memory.records, key, 0)[1]

    def act(
        variables: PyTree, agent_variables: PyTree, memory: Memory, key: jax.Array
    ) -> tuple[Memory, jax.Array]:
        key_observe, key_act = jax.random.split(key)
        model, seen = features(variables, memory, key_observe)
        policy = reset(agent, memory.policy, newest(memory).is_first)
        action, policy = agent.act(agent_variables, policy, seen, key_act)
        return record_action(Memory(memory.records, model, policy), action), action

    def act_greedy(
        variables: PyTree, agent_variables: PyTree, memory: Memory, key: jax.Array
    ) -> tuple[Memory, jax.Array]:
        model, seen = features(variables, memory, key)
        policy = reset(agent, memory.policy, newest(memory).is_first)
        action, policy = agent.act_greedy(agent_variables, policy, seen)
        return record_action(Memory(memory.records, model, policy), action), action

    def act_random(memory: Memory, key: jax.Array) -> tuple[Memory, jax.Array]:
        num_envs = memory.records.reward.shape[0]
        if spec.discrete:
            action = jax.random.randint(key, (num_envs,), 0, spec.num_actions)
        else:
            action = jax.random.uniform(key, (num_envs, spec.num_actions), minval=-1.0)
        return record_action(memory, action), action

    def record_action(memory: Memory, action: jax.Array) -> Memory:
        records = memory.records
        return memory._replace(
            records=records._replace(action=records.action.at[:, -1].set(action))
        )

    return Actor(init, push, act, act_greedy, act_random, record_action)


def check_memory(world_model: WorldModel, agent: Agent, context_length: int) -> None:
    """Raise ValueError unless model and policy can act on that many frames."""
    if context_length == 0 and world_model.filter is None:
        raise ValueError(
            "training.acting_context=0 asks the world model to follow an episode step by step, "
            "which this one cannot: give the number of frames that it encodes at every step."
        )
    if context_length and agent.has_memory:
        raise ValueError(
            f"training.acting_context={context_length} shows the policy the last frames at every "
            "step, but this one has a memory of its own, which would see them twice: set it to 0."
        )
