"""The numbers of a report: evaluations by benchmark, normalised, beside published columns."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.collect import Evaluation
from worldmodels_jax.evaluation import published
from worldmodels_jax.evaluation.aggregates import Comparison, compare
from worldmodels_jax.evaluation.published import Benchmark
from worldmodels_jax.evaluation.scores import (
    bootstrap_interval,
    human_normalised,
    interquartile_mean,
)

OTHER = "other"
PAPER = "GIT-STORM (paper)"
_OTHER_THRESHOLDS = np.linspace(0, 1.5, 151)

Runs = dict[str, dict[str, dict[int, float]]]  # system -> environment -> seed -> mean return


class Section(NamedTuple):
    """A benchmark's part of a report.

    Attributes:
      key: "atari100k", "dmc" or "other".
      title: of its heading.
      scale: what normalised scores mean.
      environments: those our systems were evaluated on, or all of the benchmark if there are none.
      tasks: environment -> its published name.
      low: environment -> mean return that is 0 when normalised.
      high: environment -> mean return that is 1; without an entry it cannot be normalised.
      high_is: environment -> what that is.
      random: environment -> mean return of the random policy in these evaluations.
      ours: the runs.
      published: system -> environment -> scores of its runs.
      printed: the benchmark's, where the aggregates are over all of it; else empty.
      notes: what a reader must know.
      shared: environments that the aggregates are over.
      comparison: of our and published systems on the shared environments; none without any.
    """

    key: str
    title: str
    scale: str
    environments: tuple[str, ...]
    tasks: dict[str, str]
    low: dict[str, float]
    high: dict[str, float]
    high_is: dict[str, str]
    random: dict[str, float]
    ours: Runs
    published: dict[str, dict[str, np.ndarray]]
    printed: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    shared: tuple[str, ...] = ()
    comparison: Comparison | None = None


def benchmarks() -> dict[str, Benchmark]:
    """The published benchmarks by key."""
    return {"atari100k": published.atari100k(), "dmc": published.dmc()}


def benchmark_of(environment: str) -> str:
    """The key of the benchmark that an environment belongs to."""
    matches = (k for k, b in benchmarks().items() if b.task_of(environment) is not None)
    return next(matches, OTHER)


def baseline(key: str, repetitions: int) -> Section:
    """The published columns alone."""
    benchmark = benchmarks()[key]
    tasks = {task: task for task in benchmark.tasks}
    return _published_section(key, benchmark, tasks, [], repetitions)


def published_benchmark(key: str, evaluations: Sequence[Evaluation], repetitions: int) -> Section:
    """Evaluations on Atari 100k or DMC, beside the published columns.

    Raises:
      ValueError: a system has the name of a published one.
    """
    benchmark = benchmarks()[key]
    if taken := sorted({e.system for e in evaluations} & set(benchmark.scores)):
        raise ValueError(
            f"{taken[0]!r} is the name of a published column of {benchmark.title}: choose another "
            "with --labels."
        )
    named = {e.environment: str(benchmark.task_of(e.environment)) for e in evaluations}
    order = sorted(named, key=lambda environment: benchmark.tasks.index(named[environment]))
    tasks = {environment: named[environment] for environment in order}
    return _published_section(key, benchmark, tasks, evaluations, repetitions)


def other_environments(
    evaluations: Sequence[Evaluation], references: Mapping[str, float], repetitions: int
) -> Section:
    """Evaluations on environments nobody published numbers of here.

    They are normalised from the random policy's mean to a reference, where one is given, or to the
    best system's mean.

    Raises:
      ValueError: a reference that is not above the random policy.
    """
    ours, random = runs_of(evaluations), _random(evaluations)
    environments = tuple(sorted(random))
    high, high_is, notes = {}, {}, []
    for environment in environments:
        low = random[environment]
        best = max(
            float(np.mean(list(runs[environment].values())))
            for runs in ours.values()
            if environment in runs
        )
        wanted = references.get(environment)
        if wanted is not None and wanted <= low:
            raise ValueError(
                f"--references={environment}={wanted} is not above the random policy's mean "
                f"{low:.4g}: give the mean return of a good player."
            )
        if wanted is None and best <= low:
            notes.append(
                f"{environment} has no normalised scores: no system is above the random policy."
            )
            continue
        high[environment] = best if wanted is None else wanted
        high_is[environment] = "best system here" if wanted is None else "reference"
    if "best system here" in high_is.values():
        notes.append(
            "Min-max normalised environments, where 1 is the best system here, compare systems "
            "within this report only: the scale moves with the systems that are in it."
        )
    section = Section(
        key=OTHER,
        title="Other environments",
        scale="0 is the random policy, 1 what the table says: a reference given with --references, "
        "or else the best system's mean return here (min-max)",
        environments=environments,
        tasks={environment: environment for environment in environments},
        low=random,
        high=high,
        high_is=high_is,
        random=random,
        ours=ours,
        published={},
        printed={},
        notes=tuple(notes),
    )
    return _compared(section, _OTHER_THRESHOLDS, repetitions)


def runs_of(evaluations: Sequence[Evaluation]) -> Runs:
    """Mean returns by system, environment and seed, seeds in order."""
    runs: Runs = {}
    for e in evaluations:
        runs.setdefault(e.system, {}).setdefault(e.environment, {}).update(e.means)
    return {
        system: {name: dict(sorted(means.items())) for name, means in by_environment.items()}
        for system, by_environment in runs.items()
    }


def as_json(section: Section, repetitions: int) -> dict[str, Any]:
    """The section as ``report.json`` holds it."""
    comparison = section.comparison
    result: dict[str, Any] = {
        "title": section.title,
        "scale": section.scale,
        "notes": list(section.notes),
        "environments": {
            environment: _environment(section, environment, repetitions)
            for environment in section.environments
        },
        "aggregated_over": list(section.shared),
    }
    if comparison is None:
        return result
    return result | {
        "aggregates": {
            system: {name: estimate._asdict() for name, estimate in row.items()}
            for system, row in comparison.aggregates.items()
        },
        "printed": section.printed,
        "profiles": {
            "thresholds": comparison.thresholds.tolist(),
            "systems": {
                system: {name: part.tolist() for name, part in profile._asdict().items()}
                for system, profile in comparison.profiles.items()
            },
        },
        "probability_of_improvement": [
            {"x": x, "y": y, **estimate._asdict()}
            for (x, y), estimate in comparison.improvement.items()
        ],
    }


def _published_section(
    key: str,
    benchmark: Benchmark,
    tasks: dict[str, str],
    evaluations: Sequence[Evaluation],
    repetitions: int,
) -> Section:
    place = {name: benchmark.tasks.index(task) for name, task in tasks.items()}
    notes = [
        "A published mean over runs counts as one run: it has no interval, and its interquartile "
        "mean and optimality gap are of such means, where the printed ones are of single runs.",
        "The published columns are not of one protocol, and not of ours: only systems evaluated "
        "here, alike and with the same seeds, measure what divides them.",
    ]
    if "STORM (released)" in benchmark.scores:
        notes.append(
            "STORM stands here twice, as re-run for the GIT-STORM paper and as released, run by "
            "run, by its own authors."
        )
    section = Section(
        key=key,
        title=benchmark.title,
        scale=benchmark.scale,
        environments=tuple(tasks),
        tasks=tasks,
        low={name: float(benchmark.low[i]) for name, i in place.items()},
        high={name: float(benchmark.high[i]) for name, i in place.items()},
        high_is={},
        random=_random(evaluations),
        ours=runs_of(evaluations),
        published={
            system: {name: scores[:, i] for name, i in place.items()}
            for system, scores in benchmark.scores.items()
        },
        printed=benchmark.printed if len(tasks) == len(benchmark.tasks) else {},
        notes=tuple(notes),
    )
    return _compared(section, benchmark.thresholds, repetitions)


def _compared(section: Section, thresholds: np.ndarray, repetitions: int) -> Section:
    """Adds the statistics over the environments that every one of our systems was evaluated on."""
    ours, notes = section.ours, list(section.notes)
    shared = tuple(
        name
        for name in section.environments
        if name in section.high and all(name in runs for runs in ours.values())
    )
    if left_out := [name for name in section.environments if name not in shared]:
        notes.append(
            f"Aggregates {'are over ' + ', '.join(shared) if shared else 'are not given'}: not "
            f"every system was evaluated on {', '.join(left_out)}, or it has no scale there."
        )
    if not shared:
        if len(ours) > 1:
            notes.append("Systems that belong together can be given one name with --labels.")
        return section._replace(notes=tuple(notes))
    scores: dict[str, np.ndarray] = {}
    for system, runs in ours.items():
        counts = [len(runs[name]) for name in shared]
        if min(counts) < max(counts):
            notes.append(
                f"{system} has {min(counts)} to {max(counts)} seeds per environment: its "
                f"aggregates use the first {min(counts)} of each."
            )
        scores[system] = np.array([list(runs[name].values())[: min(counts)] for name in shared]).T
    for system, column in section.published.items():
        scores[system] = np.stack([column[name] for name in shared], axis=1)
    zero, one = (
        np.array([scale[name] for name in shared]) for scale in (section.low, section.high)
    )
    return section._replace(
        printed={} if left_out else section.printed,
        notes=tuple(notes),
        shared=shared,
        comparison=compare(
            {name: human_normalised(table, zero, one) for name, table in scores.items()},
            list(ours) or [PAPER],
            thresholds,
            repetitions=repetitions,
        ),
    )


def _random(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Mean over the evaluations of each environment."""
    found: dict[str, list[float]] = {}
    for e in evaluations:
        found.setdefault(e.environment, []).append(e.random)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _environment(section: Section, environment: str, repetitions: int) -> dict[str, Any]:
    """The row of an environment: raw scores of every system, and the references."""
    low, high = section.low[environment], section.high.get(environment)
    rows = {}
    for system, runs in section.ours.items():
        if environment not in runs:
            continue
        means = runs[environment]
        scores = np.array(list(means.values()))
        mean = float(scores.mean())
        rows[system] = {
            "per_seed": {str(seed): score for seed, score in means.items()},
            "mean": mean,
            "interval_95": (
                list(bootstrap_interval(scores, np.mean, 0, repetitions))
                if len(scores) > 1
                else None
            ),
            "iqm": interquartile_mean(scores),
            "normalised_mean": None if high is None else (mean - low) / (high - low),
        }
    return {
        "task": section.tasks[environment],
        "random": section.random.get(environment),
        "zero": low,
        "one": high,
        "one_is": section.high_is.get(environment),
        "systems": rows,
        "published": {
            system: float(column[environment].mean())
            for system, column in section.published.items()
        },
    }
