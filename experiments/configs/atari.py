"""Atari presets: the paper's, and one that a CPU can take a thousand steps of."""

import dataclasses

from worldmodels_jax.training.config import Config, EnvConfig


def atari100k() -> Config:
    """GIT-STORM on Atari 100k with the paper's sizes; made for a GPU, not run here."""
    return Config(preset="atari100k", env=EnvConfig(name="atari/Pong"))


def atari_cpu() -> Config:
    """The paper's network sizes with reduced batches: the whole loop on real pixels, on a CPU."""
    base = atari100k()
    return dataclasses.replace(
        base,
        preset="atari_cpu",
        training=dataclasses.replace(
            base.training,
            steps=1_000,
            warmup=200,
            replay_capacity=10_000,
            batch_size=2,
            batch_length=16,
            dream_batch=16,
            horizon=8,
            world_model_ratio=0.25,
            agent_ratio=0.25,
            chunk=50,
            checkpoint_every=250,
            evaluation_episodes=1,
        ),
    )
