"""Presets of world models that learn from recorded video; sizes are those of ``sprite_jump``.

STORM and GIT-STORM on the world whose next frame is a whole sprite at a place that no one can
predict. They differ by their prior alone, which knows the tokens of a frame from each other
(MaskGIT) or does not (MLP); what that changes is measured by ``experiments.prior_comparison``.
About 4 minutes each on a CPU core.
"""

import dataclasses
from collections.abc import Callable

from experiments.configs.small import sprite_jump
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.training.data_video import VideoConfig
from worldmodels_jax.training.fit_config import FitConfig, FitTraining, OnePart, PartTraining
from worldmodels_jax.training.world_model_system import (
    WorldModelLossConfig,
    WorldModelSystemConfig,
)


def git_storm_sprite_jump_video() -> FitConfig:
    """GIT-STORM on random experience of SpriteJump."""
    online = sprite_jump()
    return FitConfig(
        preset="git_storm_sprite_jump_video",
        data=VideoConfig(env=online.env.name, count=1_000, length=online.training.batch_length),
        model=WorldModelSystemConfig(model=online.model),
        loss=WorldModelLossConfig(),
        parts=OnePart(
            PartTraining(lr=online.training.world_model_lr, clip=online.training.world_model_clip)
        ),
        training=FitTraining(
            steps=1_500, batch_size=online.training.batch_size, checkpoint_every=500
        ),
    )


def storm_sprite_jump_video() -> FitConfig:
    """STORM on the same."""
    base = git_storm_sprite_jump_video()
    assert isinstance(base.model, WorldModelSystemConfig)
    assert isinstance(base.model.model, GitStormConfig)
    model = dataclasses.replace(base.model.model, prior="mlp")
    return dataclasses.replace(
        base,
        preset="storm_sprite_jump_video",
        model=dataclasses.replace(base.model, model=model),
    )


PRESETS: dict[str, Callable[[], FitConfig]] = {
    "git_storm_sprite_jump_video": git_storm_sprite_jump_video,
    "storm_sprite_jump_video": storm_sprite_jump_video,
}
