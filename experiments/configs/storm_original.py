"""The behaviour of the public STORM code in one place, to compare with."""

from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.training.config import Config, TrainingConfig
from worldmodels_jax.training.env_config import AtariConfig


def storm_original() -> Config:
    """STORM as its public code runs it, on Atari; not run here."""
    return Config(
        preset="storm_original",
        env=AtariConfig(sticky_actions=0.25, max_noops=0),
        model=GitStormConfig(prior="mlp", cross_episode_attention=True, acting_latent="prior"),
        agent=ActorCriticConfig(
            critic_regulariser="ema_return", bootstrap="current", mask_after_end=False
        ),
        # One frame more than STORM's context: with acting_latent=prior the last frame is not
        # encoded but predicted, as STORM's dreams begin.
        training=TrainingConfig(dream_context=9),
    )
