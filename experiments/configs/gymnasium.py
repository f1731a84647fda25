"""A preset for any registered gymnasium environment."""

import dataclasses

from experiments.configs.small import catch
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.env_config import GymnasiumConfig


def gymnasium() -> Config:
    """A small GIT-STORM on a gymnasium environment: --config.env.id=CartPole-v1."""
    return dataclasses.replace(catch(), preset="gymnasium", env=GymnasiumConfig())
