"""Sizes for 64x64 frames that a CPU can train."""

from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.models.git_storm import GitStormConfig, MaskGITConfig
from worldmodels_jax.training.config import Config, TrainingConfig


def small_pixels() -> Config:
    """A small GIT-STORM for 64x64 frames; the presets of the suites put an environment to it."""
    return Config(
        model=GitStormConfig(
            num_tokens=16,
            num_classes=16,
            channels=(8, 16, 32, 64),
            width=128,
            heads=4,
            hidden=256,
            max_length=32,
            maskgit=MaskGITConfig(width=64, layers=2, heads=4, hidden=128),
        ),
        agent=ActorCriticConfig(width=128, entropy_scale=0.001),
        training=TrainingConfig(
            steps=15_000,
            warmup=1_000,
            replay_capacity=20_000,
            batch_size=4,
            batch_length=16,
            dream_batch=64,
            dream_context=4,
            horizon=10,
            acting_context=8,
            world_model_ratio=0.25,
            agent_ratio=0.25,
            world_model_lr=4e-4,
            agent_lr=1e-4,
            chunk=100,
            checkpoint_every=1_000,
            evaluation_episodes=10,
        ),
    )
