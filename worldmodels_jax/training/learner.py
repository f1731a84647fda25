"""Gradient steps of the world model and the agent: pure functions, per device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.agents.imagination import dream
from worldmodels_jax.data.replay import Replay, sample
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.ops.collectives import pmean
from worldmodels_jax.training.config import TrainingConfig
from worldmodels_jax.training.optimisers import laprop
from worldmodels_jax.types import Metrics, PyTree, Record


class Learner(NamedTuple):
    """Something that learns: its variables and the state of its optimiser."""

    variables: PyTree
    optimiser: PyTree


class TrainState(NamedTuple):
    """Everything that gradient steps change."""

    world_model: Learner
    agent: Learner


class Updates(NamedTuple):
    """The gradient steps.

    Attributes:
      init: ``(key) -> TrainState``.
      world_model: ``(state, batch (B, T, ...), key) -> state, metrics``.
      agent: ``(state, context (B2, C, ...), key) -> state, metrics``.
      sample_world_model: ``(replay, key) -> batch`` for the former.
      sample_agent: ``(replay, key) -> context`` for the latter.
    """

    init: Callable[[jax.Array], TrainState]
    world_model: Callable[[TrainState, Record, jax.Array], tuple[TrainState, Metrics]]
    agent: Callable[[TrainState, Record, jax.Array], tuple[TrainState, Metrics]]
    sample_world_model: Callable[[Replay, jax.Array], Record]
    sample_agent: Callable[[Replay, jax.Array], Record]


def gradient_step(
    loss: Callable[[PyTree], tuple[jax.Array, tuple[PyTree, Metrics]]],
    learner: Learner,
    optimiser: Any,
    axis_name: str | None,
) -> tuple[Learner, Metrics]:
    """One optimiser step on ``variables["params"]``.

    Args:
      loss: ``(variables) -> loss, (new values of the other collections, metrics)``.
      learner: before the step.
      optimiser: an optax gradient transformation.
      axis_name: mapped axis over which loss, gradients and metrics are averaged.

    Returns:
      The learner after the step, and metrics with the gradient's global norm before clipping.
    """
    rest = {name: value for name, value in learner.variables.items() if name != "params"}
    params = learner.variables["params"]
    gradient, (state, metrics) = jax.grad(lambda p: loss({"params": p, **rest}), has_aux=True)(
        params
    )
    gradient, metrics = jax.tree.map(lambda x: pmean(x, axis_name), (gradient, metrics))
    updates, optimiser_state = optimiser.update(gradient, learner.optimiser, params)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    params = optax.apply_updates(params, updates)
    return Learner({"params": params, **rest, **state}, optimiser_state), metrics


def dream_contexts(config: TrainingConfig) -> tuple[int, int]:
    """How many sequences are drawn for the dreams of an agent update, and their length."""
    starts = config.dream_starts
    return config.dream_batch // starts, config.dream_context + starts - 1


def _optimiser(config: TrainingConfig, lr: float, clip: float, eps: float = 1e-8) -> Any:
    warmup = config.optimiser_warmup
    if config.optimiser == "laprop":
        return laprop(lr, warmup, clip=clip)
    rate = optax.linear_schedule(0.0, lr, warmup) if warmup else lr
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate, eps=eps))


def make_updates(
    config: TrainingConfig, world_model: WorldModel, agent: Agent, axis_name: str | None = None
) -> Updates:
    """Build the gradient steps.

    Args:
      config: batch sizes and optimisers; sizes are per device.
      world_model: made with the same ``axis_name``.
      agent: made with the same ``axis_name``.
      axis_name: the mapped axis batches are split over, or None.
    """
    model_optimiser = _optimiser(config, config.world_model_lr, config.world_model_clip)
    agent_optimiser = _optimiser(config, config.agent_lr, config.agent_clip, config.agent_eps)

    def init(key: jax.Array) -> TrainState:
        key_model, key_agent = jax.random.split(key)
        model_variables, agent_variables = world_model.init(key_model), agent.init(key_agent)
        return TrainState(
            Learner(model_variables, model_optimiser.init(model_variables["params"])),
            Learner(agent_variables, agent_optimiser.init(agent_variables["params"])),
        )

    def update_world_model(
        state: TrainState, batch: Record, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        learner, metrics = gradient_step(
            lambda variables: world_model.loss(variables, batch, key),
            state.world_model,
            model_optimiser,
            axis_name,
        )
        return state._replace(world_model=learner), metrics

    def update_agent(
        state: TrainState, context: Record, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        dreamed = dream(
            world_model,
            state.world_model.variables,
            lambda features, k: agent.act(state.agent.variables, features, k),
            context,
            key,
            config.horizon,
            config.dream_starts,
        )
        learner, metrics = gradient_step(
            lambda variables: agent.loss(variables, dreamed),
            state.agent,
            agent_optimiser,
            axis_name,
        )
        learner = learner._replace(variables=agent.refresh(learner.variables))
        return state._replace(agent=learner), metrics

    return Updates(
        init=init,
        world_model=update_world_model,
        agent=update_agent,
        sample_world_model=lambda replay, key: sample(
            replay, key, config.batch_size, config.batch_length
        ),
        sample_agent=lambda replay, key: sample(replay, key, *dream_contexts(config)),
    )
