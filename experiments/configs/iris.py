"""Delta-IRIS and IRIS presets.

The published schedules count epochs: so many environment steps, then so many updates of tokenizer,
world model and agent, in turn. ``training.epoch`` is that of the paper, ratios are updates of an
epoch over its steps. Published burn-in segments are cut off at an episode's ends; here they have
the neighbouring records there, which every loss and memory tells apart.
"""

import dataclasses

from experiments.configs.small import on_breakout
from worldmodels_jax.agents.recurrent_actor_critic import RecurrentActorCriticConfig
from worldmodels_jax.models import iris_config as sizes
from worldmodels_jax.training.config import Config, TokenizerTraining, TrainingConfig
from worldmodels_jax.training.env_config import AtariConfig, EnvConfig


def delta_iris_catch() -> Config:
    """Delta-IRIS, a tiny one, on Catch: minutes on two CPU cores."""
    base = sizes.delta_iris_tiny16()
    return Config(
        preset="delta_iris_catch",
        env=EnvConfig(name="Catch-bsuite", num_envs=4),
        model=dataclasses.replace(
            base,
            tokenizer=dataclasses.replace(
                base.tokenizer,
                encoder_channels=(16, 16),
                embedder_channels=(16,),
                decoder_channels=(16, 16, 16),
            ),
            world_model=dataclasses.replace(base.world_model, width=64, frame_channels=(16,)),
        ),
        agent=RecurrentActorCriticConfig(
            image_size=12,
            channels=(16, 16),
            latent=4,
            halve_after=(0,),
            patch=2,
            width=128,
            gamma=0.985,
            # With the published 0.01 three of five policies were sure of themselves before they
            # had caught anything, and stayed so.
            entropy_scale=0.03,
        ),
        training=TrainingConfig(
            steps=8_000,
            warmup=512,
            replay_capacity=20_000,
            batch_size=16,
            batch_length=10,
            dream_batch=64,
            dream_context=4,
            horizon=9,
            acting_context=0,
            exploration=0.01,
            sampling="episodes",
            sampling_power=1.0,
            epoch=100,
            world_model_ratio=0.25,
            world_model_first=100,
            agent_ratio=0.25,
            agent_start=1_000,
            world_model_lr=1e-3,
            world_model_clip=10.0,
            world_model_decay=0.01,
            agent_lr=1e-3,
            agent_eps=1e-8,
            agent_clip=10.0,
            tokenizer=TokenizerTraining(
                ratio=0.1, first=300, batch_size=16, batch_length=6, lr=2e-3, decay=0.01
            ),
            chunk=250,
            checkpoint_every=4_000,
            evaluation_episodes=100,
        ),
    )


def iris_catch() -> Config:
    """IRIS with the sizes, the schedule and the four tokens of delta_iris_catch."""
    # A frame of Catch is one of 250: four tokens of 64 codes hold it.
    return _with_frame_tokens(delta_iris_catch(), "iris_catch", 4)


def delta_iris_breakout() -> Config:
    """Delta-IRIS, a tiny one, on MinAtar Breakout."""
    return on_breakout(delta_iris_catch(), "delta_iris_breakout", agent_start=4_000)


def iris_breakout() -> Config:
    """IRIS of 16 tokens a frame with the sizes and the schedule of delta_iris_breakout."""
    return _with_frame_tokens(delta_iris_breakout(), "iris_breakout", 16)


def delta_iris_craftax() -> Config:
    """Delta-IRIS as published for Crafter, on Craftax-Classic pixels; for a GPU, not run here."""
    return Config(
        preset="delta_iris_craftax",
        env=EnvConfig(name="Craftax-Classic-Pixels", num_envs=16),
        model=sizes.delta_iris_crafter(),
        agent=RecurrentActorCriticConfig(),
        training=TrainingConfig(
            steps=10_000_000,
            warmup=100_000,
            # The paper keeps all 10 M frames in host memory; these are 12 GB of device memory.
            replay_capacity=1_000_000,
            batch_size=32,
            batch_length=21,
            dream_batch=86,
            dream_context=6,
            horizon=15,
            acting_context=0,
            exploration=0.01,
            sampling="episodes",
            sampling_power=5.0,
            epoch=10_000,
            world_model_ratio=500 / 10_000,
            world_model_first=2_000,
            agent_ratio=500 / 10_000,
            world_model_clip=10.0,
            world_model_decay=0.01,
            agent_lr=1e-4,
            agent_eps=1e-8,
            agent_clip=10.0,
            tokenizer=TokenizerTraining(ratio=500 / 10_000, first=4_500, decay=0.01),
            chunk=625,
            checkpoint_every=500_000,
            evaluation_episodes=256,
        ),
    )


def iris_craftax() -> Config:
    """IRIS as Delta-IRIS's paper compares it on Crafter, 16 tokens; for a GPU, not run here."""
    base = delta_iris_craftax()
    return dataclasses.replace(
        base, preset="iris_craftax", model=sizes.iris_crafter(), agent=_iris_agent()
    )


def delta_iris_atari100k() -> Config:
    """Delta-IRIS as published on Atari 100k; for a GPU, not run here."""
    return Config(
        preset="delta_iris_atari100k",
        env=AtariConfig(),
        model=sizes.delta_iris_atari(),
        agent=RecurrentActorCriticConfig(gamma=0.995, entropy_scale=0.002, critic_head="mse"),
        training=TrainingConfig(
            steps=100_000,
            warmup=2_000,
            batch_size=64,
            batch_length=26,
            dream_batch=64,
            dream_context=6,
            horizon=20,
            acting_context=0,
            exploration=0.01,
            sampling="episodes",
            sampling_power=1.0,
            epoch=200,
            world_model_ratio=120 / 200,
            world_model_start=2_000 + 49 * 200,
            agent_ratio=200 / 200,
            agent_start=2_000 + 74 * 200,
            world_model_clip=10.0,
            world_model_decay=0.01,
            agent_lr=1e-4,
            agent_eps=1e-8,
            agent_clip=10.0,
            tokenizer=TokenizerTraining(
                ratio=200 / 200, start=2_000 + 4 * 200, first=200, batch_size=16
            ),
            checkpoint_every=10_000,
            evaluation_episodes=100,
        ),
    )


def iris_atari100k() -> Config:
    """IRIS as published on Atari 100k, but for the perceptual loss; for a GPU, not run here."""
    base = delta_iris_atari100k()
    return dataclasses.replace(
        base,
        preset="iris_atari100k",
        model=sizes.iris_atari(),
        agent=_iris_agent(),
        training=dataclasses.replace(
            base.training,
            warmup=200,
            batch_length=20,
            dream_context=21,
            # Of the 20 steps of a published dream the last gives the bootstrap only.
            horizon=19,
            sampling_power=0.0,
            world_model_ratio=200 / 200,
            world_model_start=25 * 200,
            agent_start=50 * 200,
            tokenizer=TokenizerTraining(
                ratio=200 / 200, start=5 * 200, batch_size=256, batch_length=1
            ),
        ),
    )


def _with_frame_tokens(base: Config, preset: str, num_tokens: int) -> Config:
    """IRIS in the place of Delta-IRIS, with networks and training of the same sizes."""
    assert isinstance(base.model, sizes.DeltaIrisConfig)
    model, width = sizes.iris_tiny16(num_tokens), base.model.world_model.width
    model = dataclasses.replace(
        model,
        resnet=dataclasses.replace(base.model.tokenizer, kind="frame", num_tokens=num_tokens),
        world_model=dataclasses.replace(model.world_model, width=width),
    )
    return dataclasses.replace(base, preset=preset, model=model)


def _iris_agent() -> RecurrentActorCriticConfig:
    return RecurrentActorCriticConfig(
        encoder="pool",
        channels=(32, 32, 64, 64),
        critic_head="mse",
        gamma=0.995,
        target="online",
        mask_after_end=False,
    )
