"""DeepMind Control presets."""

import dataclasses

from experiments.configs.pixels import small_pixels
from worldmodels_jax.training.config import Config, TrainingConfig
from worldmodels_jax.training.env_config import DmcConfig


def dmc_vision() -> Config:
    """GIT-STORM on DeepMind Control from pixels with the paper's sizes; for a GPU, not run here."""
    return Config(
        preset="dmc_vision",
        env=DmcConfig(),
        # The paper gives 16 environments and 8 hours for 500k agent steps but no update ratio. One
        # update of each kind per step of all 16 makes that time at the speed of its Atari runs.
        training=TrainingConfig(
            steps=500_000,
            world_model_ratio=1 / 16,
            agent_ratio=1 / 16,
            chunk=100,
            checkpoint_every=20_000,
        ),
    )


def dmc_small() -> Config:
    """A small GIT-STORM on cartpole_balance with cheap rendering, to see it learn on a CPU."""
    base = small_pixels()
    return dataclasses.replace(
        base,
        preset="dmc_small",
        env=DmcConfig(task="cartpole_balance", num_envs=4, workers=1, rendering="fast"),
    )
