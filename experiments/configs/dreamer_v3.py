"""DreamerV3 presets, in the version of 2024.

World model, actor and critic learn in one update of one batch: dreams begin at all its states, and
the critic learns from the replayed states too, which trains the RSSM. What differs from the
original of 2024:

* a replayed sequence begins from the initial state, not from the latent stored when its first
  record was collected (replay context 0 in place of 1), and sequences are drawn uniformly, without
  a queue of the newest;
* the weight of a dream's first state is its record's own flag, gamma (1 - terminated), where the
  original takes the continuation head's word for it; the percentiles of the returns leave out
  dreams that begin at terminal records;
* world model and agent keep an optimiser state each (LaProp and its clipping are per tensor, so
  that at equal rates nothing follows from it).

The tiny presets have Adam with two learning rates, a shorter horizon and more entropy.
"""

import dataclasses

from experiments.configs.small import catch, on_breakout
from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.models import dreamer_v3_config as sizes
from worldmodels_jax.training.config import Config, TrainingConfig
from worldmodels_jax.training.env_config import AtariConfig, DmcConfig, EnvConfig, GymnasiumConfig

_GAMMA = 1 - 1 / 333

_TRAINING = TrainingConfig(
    joint=True,
    replay_value_scale=0.3,
    # Every state of a batch of sequences begins a dream.
    dream_batch=16 * 64,
    dream_context=1,
    dream_starts=64,
    horizon=15,
    acting_context=0,
    optimiser="laprop",
    optimiser_warmup=1_000,
    world_model_lr=4e-5,
    world_model_clip=0.3,
    agent_lr=4e-5,
    agent_clip=0.3,
)


def _agent(width: int, depth: int, entropy_scale: float) -> ActorCriticConfig:
    return ActorCriticConfig(
        width=width,
        depth=depth,
        network="dreamer_v3",
        critic_head="symexp_twohot",
        weighting="discounted",
        gamma=_GAMMA,
        entropy_scale=entropy_scale,
        actor_unimix=0.01,
        continuation="probability",
    )


def dreamer_v3_catch() -> Config:
    """DreamerV3, a tiny one, on Catch: minutes on two CPU cores."""
    base = catch()
    return dataclasses.replace(
        base,
        preset="dreamer_v3_catch",
        model=sizes.tiny(),
        agent=_agent(96, 2, 3e-3),
        training=dataclasses.replace(
            base.training,
            steps=8_000,
            warmup=200,
            joint=True,
            replay_value_scale=0.3,
            # A train ratio of 100: 0.625 updates of 16 x 10 records per agent step.
            batch_length=10,
            dream_batch=160,
            dream_context=1,
            dream_starts=10,
            horizon=8,
            acting_context=0,
            world_model_ratio=0.625,
            agent_ratio=0.625,
            world_model_lr=1e-3,
            world_model_clip=100.0,
            agent_lr=1e-4,
            agent_clip=10.0,
        ),
    )


def dreamer_v3_breakout() -> Config:
    """DreamerV3, a tiny one, on MinAtar Breakout."""
    return on_breakout(dreamer_v3_catch(), "dreamer_v3_breakout")


def dreamer_v3_cartpole() -> Config:
    """DreamerV3, a tiny one, on gymnasium's CartPole, observed as a vector; not run here."""
    base = dreamer_v3_catch()
    return dataclasses.replace(
        base,
        preset="dreamer_v3_cartpole",
        env=GymnasiumConfig(id="CartPole-v1"),
    )


def dreamer_v3_atari100k() -> Config:
    """DreamerV3 of 12 M parameters on Atari 100k, train ratio 256; for a GPU, not run here."""
    return Config(
        preset="dreamer_v3_atari100k",
        env=AtariConfig(),
        model=sizes.size12m(),
        agent=_agent(256, 3, 3e-4),
        training=dataclasses.replace(_TRAINING, world_model_ratio=0.25, agent_ratio=0.25),
    )


def dreamer_v3_dmc() -> Config:
    """DreamerV3 of 12 M parameters on DeepMind Control from pixels, ratio 256; not run here."""
    return Config(
        preset="dreamer_v3_dmc",
        env=DmcConfig(action_repeat=1),
        model=sizes.size12m(),
        agent=_agent(256, 3, 3e-4),
        training=dataclasses.replace(
            _TRAINING,
            steps=1_000_000,
            replay_capacity=500_000,
            world_model_ratio=0.25,
            agent_ratio=0.25,
            checkpoint_every=50_000,
        ),
    )


def dreamer_v3_craftax() -> Config:
    """DreamerV3 of 12 M parameters on Craftax-Classic, train ratio 512; for a GPU, not run here."""
    return Config(
        preset="dreamer_v3_craftax",
        env=EnvConfig(name="Craftax-Classic-Pixels", num_envs=1),
        model=sizes.size12m(),
        agent=_agent(256, 3, 3e-4),
        training=dataclasses.replace(
            _TRAINING,
            steps=1_000_000,
            world_model_ratio=0.5,
            agent_ratio=0.5,
            checkpoint_every=50_000,
            evaluation_episodes=64,
        ),
    )
