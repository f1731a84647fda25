"""One update of world model and agent together, as DreamerV3 of 2024 makes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.agents.imagination import dream_from, policy_of
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.ops.collectives import pmean
from worldmodels_jax.training.config import TrainingConfig
from worldmodels_jax.training.gradient import TrainState, descend, norm
from worldmodels_jax.types import Metrics, PyTree, Record


def make_joint_step(
    config: TrainingConfig,
    world_model: WorldModel,
    agent: Agent,
    optimisers: tuple[Any, Any],
    axis_name: str | None,
) -> Callable[[TrainState, Record, jax.Array], tuple[TrainState, Metrics]]:
    """The step ``(state, batch (B, T, ...), key) -> state, metrics``.

    Its loss is the world model's, plus the agent's on dreams that begin at all posterior states of
    the batch, plus ``replay_value_scale`` times the critic's on these states themselves. Only the
    last sends a gradient from the agent to the world model.

    Args:
      config: horizon and scale.
      world_model: with ``loss_and_states``.
      agent: with ``replay_loss``.
      optimisers: the world model's and the agent's.
      axis_name: the mapped axis batches are split over, or None.

    Returns:
      The step; its metrics have their learner's name in front.
    """

    def update_joint(
        state: TrainState, batch: Record, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        gradient, (states, metrics) = jax.grad(joint_loss, has_aux=True)(
            {name: getattr(state, name).variables["params"] for name in ("world_model", "agent")},
            state,
            batch,
            key,
        )
        gradient, metrics = jax.tree.map(lambda x: pmean(x, axis_name), (gradient, metrics))
        learners = {
            name: descend(getattr(state, name), gradient[name], states[name], optimiser)
            for name, optimiser in zip(("world_model", "agent"), optimisers, strict=True)
        }
        agent_learner = learners["agent"]
        learners["agent"] = agent_learner._replace(variables=agent.refresh(agent_learner.variables))
        return state._replace(**learners), {
            f"{name}/{metric}": value
            for name in learners
            for metric, value in (metrics[name] | norm(gradient[name])).items()
        }

    def joint_loss(
        params: PyTree, state: TrainState, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, dict[str, Metrics]]]:
        assert world_model.loss_and_states is not None
        key_loss, key_dream = jax.random.split(key)
        model = {**state.world_model.variables, "params": params["world_model"]}
        agent_variables = {**state.agent.variables, "params": params["agent"]}
        loss, (model_state, metrics, carry, features) = world_model.loss_and_states(
            model, batch, key_loss
        )
        dreamed = dream_from(
            world_model,
            model,
            # Its parameters before the step, of which no gradient is taken.
            policy_of(agent, state.agent.variables),
            carry,
            features.reshape(-1, features.shape[-1]),
            # The posterior of a cut record is as good a start as any; a terminal one has no future.
            1.0 - batch.terminated.reshape(-1).astype(jnp.float32),
            key_dream,
            config.horizon,
        )
        agent_loss, (agent_state, agent_metrics) = agent.loss(agent_variables, dreamed)
        loss = loss + agent_loss
        if config.replay_value_scale:
            assert agent.replay_loss is not None
            replay_loss, replay_metrics = agent.replay_loss(
                agent_variables, dreamed, batch, features
            )
            loss = loss + config.replay_value_scale * replay_loss
            agent_metrics = agent_metrics | replay_metrics
        states = {"world_model": model_state, "agent": agent_state}
        return loss, (states, {"world_model": metrics, "agent": agent_metrics})

    return update_joint
