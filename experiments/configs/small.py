"""Presets that learn on two CPU cores."""

import dataclasses
from typing import Any

from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.models.git_storm import GitStormConfig, MaskGITConfig
from worldmodels_jax.training.config import Config, EnvConfig, TrainingConfig


def catch() -> Config:
    """GIT-STORM on Catch (10x5 grid), minutes on two CPU cores."""
    return Config(
        preset="catch",
        env=EnvConfig(name="Catch-bsuite", num_envs=4),
        model=GitStormConfig(
            num_tokens=8,
            num_classes=32,
            channels=(16, 32),
            width=64,
            heads=4,
            hidden=128,
            max_length=32,
            # A grid of 50 cells carries less than a nat a frame and its error is a sum over few
            # pixels: the paper's free bits and KL weight, made for 64x64x3, would drown the ball.
            free_bits=0.1,
            representation_scale=0.02,
            maskgit=MaskGITConfig(width=32, layers=2, heads=4, hidden=64),
        ),
        agent=ActorCriticConfig(width=64, entropy_scale=0.01),
        training=TrainingConfig(
            steps=12_000,
            warmup=512,
            replay_capacity=20_000,
            batch_size=16,
            batch_length=16,
            dream_batch=64,
            dream_context=4,
            horizon=10,
            acting_context=10,
            world_model_ratio=0.25,
            agent_ratio=0.25,
            world_model_lr=3e-3,
            agent_lr=3e-4,
            chunk=250,
            checkpoint_every=4_000,
            evaluation_episodes=100,
        ),
    )


def minatar_breakout() -> Config:
    """GIT-STORM on MinAtar Breakout (10x10x4 planes), under 45 minutes on two CPU cores."""
    base = on_breakout(catch(), "minatar_breakout")
    assert isinstance(base.model, GitStormConfig)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, channels=(32, 64)))


def on_breakout(base: Config, preset: str, **training: Any) -> Config:
    """What learns Catch, on MinAtar Breakout for 60,000 steps.

    Args:
      base: a preset of Catch.
      preset: the new one's name.
      **training: further fields of ``training``.
    """
    return dataclasses.replace(
        base,
        preset=preset,
        env=EnvConfig(name="Breakout-MinAtar", num_envs=4),
        training=dataclasses.replace(
            base.training,
            steps=60_000,
            warmup=2_000,
            replay_capacity=60_000,
            checkpoint_every=20_000,
            **training,
        ),
    )


def sprite_jump() -> Config:
    """GIT-STORM on SpriteJump, whose next frame is a whole sprite at a place no one can predict."""
    base = catch()
    assert isinstance(base.model, GitStormConfig)
    return dataclasses.replace(
        base,
        preset="sprite_jump",
        env=EnvConfig(name="SpriteJump", num_envs=4),
        model=dataclasses.replace(
            base.model,
            num_classes=8,
            maskgit=dataclasses.replace(base.model.maskgit, revise_rounds=4, repetitions=3),
        ),
    )


def debug() -> Config:
    """A few hundred steps of Catch with the smallest sizes that use every part; learns nothing."""
    return Config(
        preset="debug",
        env=EnvConfig(name="Catch-bsuite", num_envs=2),
        model=GitStormConfig(
            num_tokens=4,
            num_classes=4,
            channels=(8, 8),
            width=16,
            layers=1,
            heads=2,
            hidden=16,
            max_length=16,
            maskgit=MaskGITConfig(width=8, layers=1, heads=2, hidden=8, revise_rounds=2),
        ),
        agent=ActorCriticConfig(width=16),
        training=TrainingConfig(
            steps=160,
            warmup=40,
            replay_capacity=200,
            batch_size=2,
            batch_length=8,
            dream_batch=4,
            dream_context=3,
            horizon=3,
            acting_context=4,
            world_model_ratio=0.5,
            agent_ratio=0.5,
            chunk=20,
            small_products=True,
            checkpoint_every=80,
            evaluation_episodes=4,
        ),
    )
