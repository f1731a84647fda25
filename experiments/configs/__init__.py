"""Named presets: functions that return a config. Each says what it measured, or that it did not."""

from collections.abc import Callable

from experiments.configs import (
    atari,
    craftax,
    dmc,
    dreamer_v3,
    factor_files,
    gymnasium,
    iris,
    nowcasting,
    representation,
    small,
    storm_original,
    video_models,
)
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.fit_config import FitConfig

PRESETS: dict[str, Callable[[], Config]] = {
    "debug": small.debug,
    "catch": small.catch,
    "minatar_breakout": small.minatar_breakout,
    "sprite_jump": small.sprite_jump,
    "atari100k": atari.atari100k,
    "atari_cpu": atari.atari_cpu,
    "atari_small": atari.atari_small,
    "dmc_vision": dmc.dmc_vision,
    "dmc_small": dmc.dmc_small,
    "craftax": craftax.craftax,
    "craftax_small": craftax.craftax_small,
    "gymnasium": gymnasium.gymnasium,
    "dreamer_v3_catch": dreamer_v3.dreamer_v3_catch,
    "dreamer_v3_breakout": dreamer_v3.dreamer_v3_breakout,
    "dreamer_v3_cartpole": dreamer_v3.dreamer_v3_cartpole,
    "dreamer_v3_dmc": dreamer_v3.dreamer_v3_dmc,
    "dreamer_v3_atari100k": dreamer_v3.dreamer_v3_atari100k,
    "dreamer_v3_craftax": dreamer_v3.dreamer_v3_craftax,
    "delta_iris_catch": iris.delta_iris_catch,
    "delta_iris_breakout": iris.delta_iris_breakout,
    "delta_iris_atari100k": iris.delta_iris_atari100k,
    "delta_iris_craftax": iris.delta_iris_craftax,
    "iris_catch": iris.iris_catch,
    "iris_breakout": iris.iris_breakout,
    "iris_atari100k": iris.iris_atari100k,
    "iris_craftax": iris.iris_craftax,
    "storm_original": storm_original.storm_original,
}

# Of ``experiments.fit``.
OFFLINE_PRESETS: dict[str, Callable[[], FitConfig]] = {
    **representation.PRESETS,
    **factor_files.PRESETS,
    **nowcasting.PRESETS,
    **video_models.PRESETS,
}
