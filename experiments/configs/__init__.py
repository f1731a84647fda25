"""Named presets: functions that return a config. Each says what it measured, or that it did not."""

from collections.abc import Callable

from experiments.configs import atari, small, storm_original
from worldmodels_jax.training.config import Config

PRESETS: dict[str, Callable[[], Config]] = {
    "debug": small.debug,
    "catch": small.catch,
    "minatar_breakout": small.minatar_breakout,
    "sprite_jump": small.sprite_jump,
    "atari100k": atari.atari100k,
    "atari_cpu": atari.atari_cpu,
    "storm_original": storm_original.storm_original,
}
