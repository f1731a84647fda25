"""Finding the systems and data sets: each is a file, and no list has their names."""

import importlib
import pkgutil

from worldmodels_jax import models, training


def import_configs() -> None:
    """Import every file of ``models/`` and ``training/``: their configs and factories are known."""
    for package in (models, training):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
