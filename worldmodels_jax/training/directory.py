"""The directory of a run: what it says of the run, and that it holds no other."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from worldmodels_jax.config import diff, from_dict, to_dict
from worldmodels_jax.files import replacing
from worldmodels_jax.training import metrics as metrics_lib
from worldmodels_jax.training.checkpoint import CheckpointError, Checkpoints, open_checkpoints
from worldmodels_jax.training.known import import_configs
from worldmodels_jax.training.parallel import barrier, is_main_process

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def read_saved(directory: Path, kind: type) -> dict[str, Any]:
    """What ``config.json`` of a run says: its config, and what it was started with.

    Args:
      directory: of the run.
      kind: the dataclass of its config.

    Raises:
      CheckpointError: if the directory holds no run, or one with another kind of config.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(
            f"{directory} holds no run (no {CONFIG_FILE}): give --run the directory that a "
            "training command printed, e.g. runs/catch."
        )
    import_configs()  # a section of a config is found among the subclasses of its class
    try:
        saved = json.loads(path.read_text())
        if missing := {"config", "seed", "num_seeds"} - saved.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        return {**saved, "config": from_dict(kind, saved["config"])}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a config this version can read ({error}): it was damaged or written by "
            "another version. Nothing was changed; start a new run in another --run directory."
        ) from error


def is_fit(directory: Path) -> bool:
    """Whether a directory holds a run of ``fit``, as far as can be read."""
    try:
        return "data" in json.loads((directory / CONFIG_FILE).read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def claim(
    directory: Path, config: Any, started_with: Mapping[str, Any], resumable: Collection[str]
) -> None:
    """Write what a run is, or check that the directory holds this very run.

    Args:
      directory: of the run; made if missing.
      config: of the run.
      started_with: JSON values by name; those that are None are not written.
      resumable: paths of the config that may differ from what is there.

    Raises:
      CheckpointError: if the directory holds something else.
      OSError: if the disk is full.
    """
    path = directory / CONFIG_FILE
    if path.exists():
        _check_same(directory, config, started_with, resumable)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(
            f"{directory} exists and holds no run of this library (no {CONFIG_FILE}): nothing "
            "was written; choose another --run directory."
        )
    barrier("all hosts have looked at the run directory")
    if is_main_process():
        given = {name: value for name, value in started_with.items() if value is not None}
        _write(path, {"config": to_dict(config), **given})


def _check_same(
    directory: Path, config: Any, started_with: Mapping[str, Any], resumable: Collection[str]
) -> None:
    found = read_saved(directory, type(config))
    differences = diff(found["config"], config)
    changed = {name: pair for name, pair in differences.items() if name not in resumable}
    for name, new in started_with.items():
        if found.get(name) != new:
            # num_seeds is --seeds on the command line
            changed[_flag_name(name)] = (found.get(name), new)
    if changed:
        lines = "; ".join(
            f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in changed.items()
        )
        raise CheckpointError(
            f"{directory} holds a run with another config ({lines}). Nothing was changed: choose "
            "another --run directory, or ask for the config it was started with."
        )


def _flag_name(name: str) -> str:
    return {"num_seeds": "seeds"}.get(name, name.replace("_", " "))


def _write(path: Path, saved: Mapping[str, Any]) -> None:
    text = json.dumps(saved, indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        return
    with metrics_lib.writing(path), replacing(path) as temporary:
        temporary.write_text(text)


def choose_step(checkpoints: Checkpoints, step: int | None, checkpoint_every: int) -> int:
    """Which checkpoint of a run is meant.

    Args:
      checkpoints: of the run.
      step: the one asked for; None for the newest.
      checkpoint_every: of the run's config.

    Raises:
      CheckpointError: if there is none, or not that one.
    """
    directory, steps = Path(checkpoints.manager.directory).parent, checkpoints.steps()
    if not steps:
        raise CheckpointError(
            f"{directory} holds no finished checkpoint yet: train for at least "
            f"training.checkpoint_every={checkpoint_every} steps."
        )
    if step not in (None, *steps):
        raise CheckpointError(
            f"{directory} holds checkpoints at steps {', '.join(map(str, steps))}, not at {step}."
        )
    return steps[-1] if step is None else step


def seed_index(directory: Path, seed: int | None, first: int, count: int) -> int:
    """Where a seed is among those of a run; None means the first.

    Raises:
      CheckpointError: if the run does not have it.
    """
    index = 0 if seed is None else seed - first
    if not 0 <= index < count:
        raise CheckpointError(
            f"{directory} holds seeds {first}..{first + count - 1}, not seed {seed}."
        )
    return index


def saved_steps(directory: Path) -> list[int]:
    """Steps of a run's finished checkpoints, oldest first."""
    checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()
