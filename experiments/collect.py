"""Evaluations of runs for a report: found, read, named, and refused where they are not alike."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_KINDS = {"maskgit": "GIT-STORM", "mlp": "STORM"}  # by model.prior
_ABSENT = "absent"
# Entries of a protocol that say which environment, or which seed, and not how it was evaluated.
_NO_PROTOCOL = {"env", "environment", "evaluation_seed"}
# Those that may differ from one environment to another within a benchmark.
_OF_ENVIRONMENT = {"max_episode_steps", "training steps"}
# Fields of training that no score depends on.
_NO_SETTING = {
    f"training.{name}"
    for name in ("chunk", "checkpoint_every", "keep_checkpoints", "evaluation_episodes")
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an ``evaluation.json`` says.

    Attributes:
      path: of the file.
      system: label of what was trained; evaluations with the same label are pooled.
      preset: the preset it was trained with.
      environment: its name.
      means: seed -> mean return of its episodes.
      random: mean return of the random policy.
      protocol: how it was evaluated, and after how many training steps.
      settings: the fields of the run's config that make the system; empty if there is no config.
    """

    path: Path
    system: str
    preset: str
    environment: str
    means: Mapping[int, float]
    random: float
    protocol: Mapping[str, Any]
    settings: Mapping[str, Any]


def find(path: Path) -> list[Path]:
    """The evaluation files a path stands for: itself, or all below a directory.

    Raises:
      ValueError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise ValueError(f"{path} does not exist: give run directories or evaluation.json files.")
    found = sorted(path.rglob("*evaluation.json"))
    if not found:
        raise ValueError(
            f"{path} holds no evaluation.json: `python -m experiments.evaluate --run={path}` "
            "writes one, or give another directory."
        )
    return found


def collect(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[Evaluation]:
    """Read all evaluations that paths stand for.

    Args:
      paths: run directories, evaluation files, or directories that hold several.
      labels: a label for each path; by default one is made of each run's config.

    Raises:
      ValueError: a file is missing or damaged; as many labels as paths are not given; a seed is
        there twice; or runs with the same default label were trained differently.
    """
    if labels and len(labels) != len(paths):
        raise ValueError(
            f"--labels={','.join(labels)} names {len(labels)} of {len(paths)} paths: give one "
            "label for each, the same one for those that belong together."
        )
    names: Sequence[str | None] = labels or [None] * len(paths)
    evaluations = [
        read(file, label) for path, label in zip(paths, names, strict=True) for file in find(path)
    ]
    _refuse_twice(evaluations)
    if not labels and (problem := different_settings(evaluations)):
        raise ValueError(
            f"{problem}: name the systems with --labels, one label for each path given."
        )
    return evaluations


def read(path: Path, label: str | None = None) -> Evaluation:
    """Read an evaluation file and the config beside it.

    The config of ``X_evaluation.json`` is ``X_config.json``.

    Args:
      path: of the evaluation.
      label: of the system; none makes it of the config, e.g. ``GIT-STORM (atari100k)``.

    Raises:
      ValueError: the evaluation is damaged, or the config is missing and there is no label.
    """
    evaluation = _json(path)
    try:
        protocol = dict(evaluation["protocol"])
        means = {int(seed): float(mean) for seed, mean in evaluation["per_seed"].items()}
        random = float(evaluation["random_mean"])
        preset = str(evaluation["preset"])
        environment = protocol["environment"] if "environment" in protocol else protocol["env"]
        protocol["training steps"] = int(evaluation["step"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged or no evaluation of this library ({type(error).__name__}: "
            f"{error}): write it again with `python -m experiments.evaluate --run={path.parent}`."
        ) from error
    if not means or not all(map(math.isfinite, [random, *means.values()])):
        raise ValueError(
            f"{path} has the means {means} and {random} of the random policy; a report needs "
            "finite ones: evaluate the run again, or leave it out."
        )
    config_path = path.with_name(path.name.removesuffix("evaluation.json") + "config.json")
    settings: dict[str, Any] = {}
    if label is None or config_path.exists():
        settings = _settings(config_path)
    if label is None:
        kind = _KINDS.get(str(settings.get("model.prior")))
        label = f"{kind} ({preset})" if kind else preset
    return Evaluation(path, label, preset, environment, means, random, protocol, settings)


def different_settings(evaluations: Iterable[Evaluation]) -> str:
    """Which fields differ among the configs of a system; empty if none does."""
    by_system: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_system.setdefault(evaluation.system, []).append(evaluation)
    problems = [
        f"runs of {system} were trained differently ({differing})"
        for system, group in by_system.items()
        if (differing := _differing([(e.path, e.settings) for e in group], set(), absent=False))
    ]
    return "; ".join(problems)


def different_protocols(evaluations: Sequence[Evaluation]) -> str:
    """Which entries differ among the protocols of a benchmark's evaluations; empty if none does.

    Those of one environment must have the same entries; those of different environments may have
    other time limits and training lengths, and entries that the other's suite does not know.
    """
    problems = []
    for environment in sorted({e.environment for e in evaluations}):
        same = [(e.path, e.protocol) for e in evaluations if e.environment == environment]
        if differing := _differing(same, _NO_PROTOCOL, absent=True):
            problems.append(f"evaluations of {environment} differ: {differing}")
    everything = [(e.path, e.protocol) for e in evaluations]
    ignored = _NO_PROTOCOL | _OF_ENVIRONMENT
    if not problems and (differing := _differing(everything, ignored, absent=False)):
        problems.append(f"evaluations of one benchmark differ: {differing}")
    return "; ".join(problems)


def _differing(
    rows: Sequence[tuple[Path, Mapping[str, Any]]], ignored: set[str], *, absent: bool
) -> str:
    """Names, values and a file each; ``absent`` makes a missing entry a value of its own."""
    found = []
    for name in sorted({name for _, entries in rows for name in entries} - ignored):
        values: dict[str, Path] = {}
        for path, entries in rows:
            if name in entries or absent:
                values.setdefault(repr(entries[name]) if name in entries else _ABSENT, path)
        if len(values) > 1:
            found.append(
                f"{name} is " + " and ".join(f"{value} in {path}" for value, path in values.items())
            )
    return ", ".join(found)


def _refuse_twice(evaluations: Iterable[Evaluation]) -> None:
    seen: dict[tuple[str, str, int], Path] = {}
    for e in evaluations:
        for seed in e.means:
            key = (e.system, e.environment, seed)
            if key in seen:
                raise ValueError(
                    f"seed {seed} of {e.system} on {e.environment} is in {seen[key]} and in "
                    f"{e.path}: give each run once, or name different systems with --labels."
                )
            seen[key] = e.path


def _settings(path: Path) -> dict[str, Any]:
    """Model, agent and training fields of a config file, by their paths."""
    if not path.exists():
        raise ValueError(
            f"{path}, which names the system, is missing: give --labels, one label for each path, "
            "or the directory of the run itself."
        )
    config = _json(path).get("config")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(f"{path} is damaged or no config of this library: restore it.")
    sections = {name: config[name] for name in ("model", "agent", "training") if name in config}
    return {name: value for name, value in _flat(sections, "") if name not in _NO_SETTING}


def _flat(section: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}): write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, it holds no JSON object: write it again.")
    return content
