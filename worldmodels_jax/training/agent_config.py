"""The agent of a run: one config class for each kind, and the factory it stands for."""

from typing import Any

from worldmodels_jax.agents.actor_critic import ActorCriticConfig, Agent, make_actor_critic
from worldmodels_jax.agents.recurrent_actor_critic import (
    RecurrentActorCriticConfig,
    make_recurrent_actor_critic,
)
from worldmodels_jax.types import EnvSpec

AnyAgentConfig = ActorCriticConfig | RecurrentActorCriticConfig

_FACTORIES: dict[type, Any] = {
    ActorCriticConfig: make_actor_critic,
    RecurrentActorCriticConfig: make_recurrent_actor_critic,
}


def make_agent(
    config: AnyAgentConfig, feature_size: int, spec: EnvSpec, axis_name: str | None, dtype: Any
) -> Agent:
    """The agent that a config stands for.

    Args:
      config: of one of the kinds.
      feature_size: F, of the world model's features.
      spec: the environment's action space, and its frames.
      axis_name: the mapped axis of devices, if there are several.
      dtype: of the computation.

    Raises:
      ValueError: if the agent cannot act on such features.
    """
    return _FACTORIES[type(config)](config, feature_size, spec, axis_name, dtype)
