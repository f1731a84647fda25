"""What the entry points share: flags, presets, the compilation cache, errors without tracebacks."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, logging

from experiments.configs import PRESETS
from worldmodels_jax.config import ConfigError, apply_overrides, describe, split_flags
from worldmodels_jax.training.checkpoint import CheckpointError
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.metrics import NonFiniteLossError


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, where the user has not chosen a place already."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "worldmodels_jax" / "jax"))


def make_config(preset: str, overrides: dict[str, str]) -> Config:
    """A preset with the command line's ``--config.path=value`` applied.

    Raises:
      ValueError: for an unknown preset, or an unknown or ill-typed field.
    """
    if preset not in PRESETS:
        raise ValueError(
            f"unknown preset --config={preset}: choose one of {', '.join(sorted(PRESETS))}."
        )
    return apply_overrides(PRESETS[preset](), overrides)


def run_app(main: Callable[[dict[str, str]], None], *, fields: bool = False) -> None:
    """Parse flags and run an entry point.

    Args:
      main: takes the overrides given as ``--config.path=value``.
      fields: whether the program takes such overrides; ``--help`` then lists them.
    """
    module = sys.modules["__main__"]
    if fields:
        presets = "\n".join(
            f"  {name}: {(make.__doc__ or '').strip().splitlines()[0]}"
            for name, make in sorted(PRESETS.items())
        )
        module.__doc__ = (
            f"{module.__doc__}\n\nPresets (--config=NAME):\n{presets}\n\n"
            f"Fields (--config.path=value), with the values of the default preset of the library:\n"
            f"{describe(Config())}"
        )
    overrides: dict[str, str] = {}

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest, found = split_flags(argv) if fields else (list(argv), {})
        except ConfigError as error:
            sys.exit(f"error: {error}")
        overrides.update(found)
        return app.parse_flags_with_usage(rest)

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        use_compilation_cache()
        logging.set_verbosity(logging.ERROR)  # orbax reports every step of every save
        try:
            main(overrides)
        except (ValueError, CheckpointError, NonFiniteLossError, ImportError, OSError) as error:
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=parse)
