"""Any world model of an environment as a system of ``fit``: trained on recorded video."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax import envs
from worldmodels_jax.evaluation.open_loop import open_loop
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.models.offline import Batch, LossConfig, PartLoss, Samples, SystemConfig
from worldmodels_jax.models.world_model import ModelConfig, WorldModel, make_world_model
from worldmodels_jax.ops.frames import from_uint8
from worldmodels_jax.types import DataSpec, EnvSpec, Metrics, PyTree, Record


@dataclasses.dataclass(frozen=True)
class WorldModelLossConfig(LossConfig):
    """The world model's own loss, whose weights are fields of the model."""


@dataclasses.dataclass(frozen=True)
class WorldModelSystemConfig(SystemConfig):
    """A world model, trained as one part, ``"model"``, on sequences of records.

    Attributes:
      model: the world model.
      num_actions: A, of discrete actions; 0 takes that of the JAX-native environment which the data
        set is named after.
      context: frames that are shown before a dream, in the pictures.
    """

    model: ModelConfig = GitStormConfig()
    num_actions: int = 0
    context: int = 4

    def make(
        self, loss: LossConfig, data: DataSpec, axis_name: str | None, dtype: Any
    ) -> "WorldModelSystem":
        """See ``SystemConfig``."""
        if not isinstance(loss, WorldModelLossConfig):
            raise ValueError(
                f"loss is a {type(loss).__name__}, which WorldModelSystemConfig does not minimise: "
                "give a WorldModelLossConfig."
            )
        spec, length = _spec(data, self.num_actions)
        _check_length(self, data, length)
        world_model = make_world_model(self.model, spec, axis_name, dtype)
        return make_world_model_system(world_model, spec, self.context)


class WorldModelSystem(NamedTuple):
    """A world model as an ``OfflineSystem``.

    Attributes:
      init: ``(key) -> variables``.
      losses: of ``"model"``.
      samples: ``dream``: of each sequence a row of real frames over one of the model's: its first
        frames reconstructed, the others dreamed under the recorded actions. Frames that are neither
        grey nor RGB are shown by the brightest of their planes; of vectors there are no pictures.
      world_model: itself, for evaluations.
      spec: of the environment it models.
    """

    init: Callable[[jax.Array], PyTree]
    losses: Mapping[str, PartLoss]
    samples: Samples
    world_model: WorldModel
    spec: EnvSpec


def make_world_model_system(
    world_model: WorldModel, spec: EnvSpec, context: int
) -> WorldModelSystem:
    """Adapts a world model to what ``fit`` asks of a system.

    Args:
      world_model: the model.
      spec: of its environment.
      context: frames shown before a dream, fewer than a sequence has.
    """

    def loss(
        variables: PyTree, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        del step
        return world_model.loss(variables, Record(**batch), key)

    def samples(variables: PyTree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        if len(spec.observation_shape) != 3:
            return {}
        records = Record(**batch)
        dreamed = open_loop(world_model, variables, records, key, context=context)
        rows = jnp.stack([_visible(records.observation), _visible(dreamed)], axis=1)
        return {"dream": rows.reshape(-1, *rows.shape[2:])}

    return WorldModelSystem(world_model.init, {"model": loss}, samples, world_model, spec)


def _visible(frames: jax.Array) -> jax.Array:
    """Frames (..., H, W, C) uint8 as float32 in [0, 1] with 1 or 3 channels."""
    if frames.shape[-1] not in (1, 3):
        frames = frames.max(axis=-1, keepdims=True)
    return from_uint8(frames)


def _spec(data: DataSpec, num_actions: int) -> tuple[EnvSpec, int]:
    """The environment that was recorded, as far as records tell, and T."""
    missing = [name for name in Record._fields if name not in data.shapes]
    if missing:
        raise ValueError(
            f"a world model learns from sequences of records, but {data.name} has "
            f"{dict(data.shapes)}, without {', '.join(missing)}: choose a data set of video."
        )
    length, *actions = data.shapes["action"]
    discrete = not actions
    if num_actions and not discrete:
        raise ValueError(
            f"model.num_actions={num_actions} counts discrete actions, but those of {data.name} "
            f"are vectors of {actions[0]}: leave it at 0."
        )
    if discrete and not num_actions:
        num_actions = _environment_actions(data.name)
    shape = tuple(data.shapes["observation"][1:])
    return EnvSpec(
        name=data.name,
        observation_shape=shape,
        observation_dtype="uint8" if len(shape) == 3 else "float32",
        num_actions=num_actions if discrete else actions[0],
        discrete=discrete,
        max_episode_steps=length,
    ), length


def _environment_actions(name: str) -> int:
    try:
        return envs.make(name).spec.num_actions
    except ValueError as error:
        raise ValueError(
            f"the data set {name!r} is not named after a JAX-native environment, which would tell "
            "the number of discrete actions: give model.num_actions."
        ) from error


def _check_length(config: WorldModelSystemConfig, data: DataSpec, length: int) -> None:
    if not 1 <= config.context < length:
        raise ValueError(
            f"model.context={config.context} frames are shown before a dream, but the sequences of "
            f"{data.name} have {length}: give 1 to {length - 1}."
        )
    longest = config.model.longest
    if longest is not None and length > longest:
        raise ValueError(
            f"the sequences of {data.name} have {length} records, but the position table only "
            f"{longest}: raise model.model.max_length to at least {length}, or shorten them."
        )
