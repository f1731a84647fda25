"""Atari presets: the paper's, and what a CPU can try."""

import dataclasses

from experiments.configs.pixels import small_pixels
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.env_config import AtariConfig

# The games of Atari 100k, as in table 5.5.
GAMES = (
    "Alien",
    "Amidar",
    "Assault",
    "Asterix",
    "BankHeist",
    "BattleZone",
    "Boxing",
    "Breakout",
    "ChopperCommand",
    "CrazyClimber",
    "DemonAttack",
    "Freeway",
    "Frostbite",
    "Gopher",
    "Hero",
    "Jamesbond",
    "Kangaroo",
    "Krull",
    "KungFuMaster",
    "MsPacman",
    "Pong",
    "PrivateEye",
    "Qbert",
    "RoadRunner",
    "Seaquest",
    "UpNDown",
)


def atari100k() -> Config:
    """GIT-STORM on Atari 100k with the paper's sizes; made for a GPU, not run here."""
    return Config(preset="atari100k", env=AtariConfig())


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


def atari_small() -> Config:
    """A small GIT-STORM on Atari Boxing, to see it learn on a CPU within an hour."""
    return dataclasses.replace(
        small_pixels(),
        preset="atari_small",
        env=AtariConfig(game="Boxing", num_envs=2),
    )
