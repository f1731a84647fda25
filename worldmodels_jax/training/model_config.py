"""The world model of a run: one config class for each system, and the factory it stands for."""

from typing import Any

from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.models.dreamer_v3 import make_dreamer_v3
from worldmodels_jax.models.dreamer_v3_config import DreamerV3Config
from worldmodels_jax.models.git_storm import GitStormConfig, make_git_storm
from worldmodels_jax.models.iris import make_iris
from worldmodels_jax.models.iris_config import DeltaIrisConfig, IrisConfig
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import EnvSpec

AnyModelConfig = GitStormConfig | DreamerV3Config | DeltaIrisConfig | IrisConfig

_FACTORIES: dict[type, Any] = {
    GitStormConfig: make_git_storm,
    DreamerV3Config: make_dreamer_v3,
    DeltaIrisConfig: make_delta_iris,
    IrisConfig: make_iris,
}


def make_world_model(
    config: AnyModelConfig, spec: EnvSpec, axis_name: str | None, dtype: Any
) -> WorldModel:
    """The world model that a config stands for.

    Args:
      config: of one of the systems.
      spec: what the environment looks like.
      axis_name: the mapped axis of devices, if there are several.
      dtype: of the computation.

    Raises:
      ValueError: if sizes do not fit together, naming the fields.
    """
    return _FACTORIES[type(config)](config, spec, axis_name, dtype)


def system_name(config: AnyModelConfig) -> str:
    """The name of the system, as it is told of a run."""
    match config:
        case GitStormConfig():
            return "GIT-STORM" if config.prior == "maskgit" else "STORM"
        case DreamerV3Config():
            return "DreamerV3"
        case DeltaIrisConfig():
            return "Delta-IRIS"
        case IrisConfig():
            return "IRIS"


def max_length(config: AnyModelConfig) -> int | None:
    """Steps that a sequence, or a context and its dream together, may have; None if any number."""
    return config.max_length if isinstance(config, GitStormConfig) else None
