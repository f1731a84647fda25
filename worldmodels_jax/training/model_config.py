"""Finding the systems: each is a file of ``models/``, and no list has their names."""

import importlib
import pkgutil

from worldmodels_jax import models
from worldmodels_jax.models.world_model import ModelConfig

AnyModelConfig = ModelConfig


def import_models() -> None:
    """Import every file of ``models/``: their configs and factories are then known."""
    for module in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"{models.__name__}.{module.name}")
