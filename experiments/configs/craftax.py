"""Craftax-Classic presets: Crafter's game as a JAX-native environment, from pixels."""

import dataclasses

from experiments.configs.pixels import small_pixels
from worldmodels_jax.training.config import Config, TrainingConfig
from worldmodels_jax.training.env_config import EnvConfig


def craftax() -> Config:
    """GIT-STORM on Craftax-Classic pixels, 1M steps, the paper's sizes; for a GPU, not run here."""
    return Config(
        preset="craftax",
        env=EnvConfig(name="Craftax-Classic-Pixels", num_envs=16),
        training=TrainingConfig(
            steps=1_000_000,
            world_model_ratio=1 / 16,
            agent_ratio=1 / 16,
            checkpoint_every=50_000,
            evaluation_episodes=64,
        ),
    )


def craftax_small() -> Config:
    """A small GIT-STORM on Craftax-Classic from pixels: the whole loop, on a CPU."""
    base = small_pixels()
    return dataclasses.replace(
        base,
        preset="craftax_small",
        env=EnvConfig(name="Craftax-Classic-Pixels", num_envs=8),
        training=dataclasses.replace(base.training, evaluation_episodes=16),
    )
