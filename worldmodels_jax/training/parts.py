"""From a config to the pure functions it stands for."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from worldmodels_jax import envs
from worldmodels_jax.agents.acting import Actor, make_actor
from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.models.world_model import WorldModel, make_world_model
from worldmodels_jax.training.agent_config import make_agent
from worldmodels_jax.training.config import Config, validate
from worldmodels_jax.training.env_config import (
    AnyEnvConfig,
    AtariConfig,
    DmcConfig,
    EnvConfig,
    GymnasiumConfig,
)
from worldmodels_jax.training.known import import_configs
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.online import Halves, make_halves
from worldmodels_jax.training.parallel import per_device_config
from worldmodels_jax.types import Environment, EnvSpec, HostVector

# (num_envs, seed, evaluation) -> environments; evaluation asks for whole episodes.
OpenHost = Callable[[int, int, bool], HostVector]
EnvSource = Environment | OpenHost


class Parts(NamedTuple):
    """The pure functions a config stands for, and its environment.

    Attributes:
      spec: of the environment.
      env: one environment without auto-reset; None if it is stepped by the host.
      open_host: ``(num_envs, seed, evaluation) -> HostVector``; None if it is JAX-native.
      world_model: the world model.
      agent: the behaviour learner.
      actor: the acting functions.
      halves: the loop's body in pieces.
    """

    spec: EnvSpec
    env: Environment | None
    open_host: OpenHost | None
    world_model: WorldModel
    agent: Agent
    actor: Actor
    halves: Halves


def environment(config: AnyEnvConfig) -> EnvSource:
    """The environment that a config names: pure functions, or what opens host environments.

    Raises:
      ValueError: for an unknown name.
      ModuleNotFoundError: for a suite that is not installed.
    """
    match config:
        case EnvConfig():
            limit = config.max_episode_steps
            kwargs = {} if limit is None else {"max_episode_steps": limit}
            return envs.make(config.name, **kwargs)
        case AtariConfig():
            return lambda num_envs, seed, evaluation: envs.make_atari(
                config.game,
                num_envs=num_envs,
                seed=seed,
                workers=config.workers,
                sticky_actions=config.sticky_actions,
                max_noops=config.max_noops,
                life_loss_terminal=config.life_loss and not evaluation,
                full_episode_frames=4 * config.max_episode_steps,
            )
        case DmcConfig():
            return lambda num_envs, seed, evaluation: envs.make_dmc(
                config.task,
                num_envs=num_envs,
                seed=seed,
                workers=config.workers,
                action_repeat=config.action_repeat,
                camera=config.camera,
                rendering=config.rendering,
                max_episode_steps=config.max_episode_steps,
            )
        case GymnasiumConfig():
            return lambda num_envs, seed, evaluation: envs.make_gymnasium(
                config.id,
                num_envs=num_envs,
                seed=seed,
                workers=config.workers,
                max_episode_steps=config.max_episode_steps,
                pixels=config.pixels,
                resize=config.resize,
            )


def build(
    config: Config,
    env: EnvSource | None = None,
    *,
    num_devices: int = 1,
    axis_name: str | None = None,
) -> Parts:
    """Assemble environment, world model, agent and loop.

    Args:
      config: the run's.
      env: an environment of the caller's own, in place of the one that ``config.env`` names.
      num_devices: over which environments and batches are split.
      axis_name: the mapped axis of devices, if there are several.

    Raises:
      ValueError: for fields that do not fit together or an unknown environment.
    """
    validate(config)
    source = environment(config.env) if env is None else env
    if isinstance(source, Environment):
        spec, native, open_host = source.spec, source, None
    else:
        probe = source(1, 0, False)
        spec, native, open_host = probe.spec, None, source
        probe.close()
    dtype = jnp.bfloat16 if config.precision == "bf16" else jnp.float32
    import_configs()
    world_model = make_world_model(config.model, spec, axis_name, dtype)
    agent = make_agent(config.agent, world_model.feature_size, spec, axis_name, dtype)
    actor = make_actor(world_model, agent, spec, config.training.acting_context)
    local = per_device_config(config, num_devices).training
    updates = make_updates(local, world_model, agent, axis_name)
    halves = make_halves(config, spec, updates, actor, num_devices=num_devices, axis_name=axis_name)
    return Parts(spec, native, open_host, world_model, agent, actor, halves)
