"""Statistics of systems over many tasks and few runs, with stratified bootstrap intervals. NumPy.

Definitions after Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264), and equal to those of their library rliable. Scores are normalised,
so that tasks can be pooled: 0 is a random policy, 1 the reference (human, or the most there is).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from worldmodels_jax.evaluation.scores import bootstrap, checked, interquartile_mean


class Estimate(NamedTuple):
    """A statistic and its 95 % interval, whose ends are the value where there is one run only.

    Attributes:
      value: of all runs.
      low: lower end.
      high: upper end.
    """

    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """A performance profile and its pointwise 95 % band.

    Attributes:
      value: (K,) of all runs.
      low: (K,) lower end.
      high: (K,) upper end.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Comparison(NamedTuple):
    """What ``compare`` returns.

    Attributes:
      aggregates: system -> statistic (the names of ``AGGREGATES``) -> estimate.
      thresholds: (K,) of the profiles.
      profiles: system -> its profile.
      improvement: (X, Y) -> probability that a run of X beats one of Y.
    """

    aggregates: dict[str, dict[str, Estimate]]
    thresholds: np.ndarray
    profiles: dict[str, Profile]
    improvement: dict[tuple[str, str], Estimate]


def mean_of_tasks(scores: ArrayLike) -> float:
    """Returns the mean of the tasks' means; (runs, tasks) normalised scores."""
    return float(_table(scores).mean(axis=0).mean())


def median_of_tasks(scores: ArrayLike) -> float:
    """Returns the median of the tasks' means; (runs, tasks) normalised scores."""
    return float(np.median(_table(scores).mean(axis=0)))


def optimality_gap(scores: ArrayLike, gamma: float = 1.0) -> float:
    """Returns by how much runs fail to reach gamma on average: gamma - mean(min(score, gamma)).

    What exceeds gamma makes up for nothing. Lower is better.

    Args:
      scores: (runs, tasks) normalised scores.
      gamma: the score that is wanted; 1 is the reference.
    """
    return float(gamma - np.minimum(_table(scores), gamma).mean())


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Returns the share of runs of all tasks whose score is above each threshold.

    This is the run-score distribution: its area from 0 up is the mean of scores that are not
    negative, its height 0.25, 0.5 and 0.75 are quartiles of the pooled runs.

    Args:
      scores: (runs, tasks) normalised scores.
      thresholds: (K,).

    Returns:
      (K,) shares in [0, 1], falling.
    """
    pooled = np.sort(_table(scores), axis=None)
    return 1.0 - np.searchsorted(pooled, np.asarray(thresholds), side="right") / pooled.size


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Returns the probability that a run of X beats a run of Y on a task, averaged over tasks.

    Per task this is the Mann-Whitney statistic over the number of pairs; a tie counts one half.

    Args:
      x: (runs of X, tasks) scores.
      y: (runs of Y, tasks) scores, of the same tasks.

    Raises:
      ValueError: different numbers of tasks.
    """
    x, y = _table(x), _table(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"scores of X are of {x.shape[1]} tasks and those of Y of {y.shape[1]}; "
            "give both of the same tasks in the same order"
        )
    difference = x[:, None] - y[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


AGGREGATES: dict[str, Callable[[ArrayLike], float]] = {
    "mean": mean_of_tasks,
    "median": median_of_tasks,
    "iqm": interquartile_mean,
    "optimality_gap": optimality_gap,
}


def compare(
    scores: Mapping[str, ArrayLike],
    focus: Sequence[str],
    thresholds: ArrayLike,
    *,
    seed: int = 0,
    repetitions: int = 2000,
) -> Comparison:
    """Computes all statistics of systems on the same tasks.

    Args:
      scores: system -> (runs, tasks) normalised scores; the number of runs may differ.
      focus: systems whose probability of improvement over every other one is computed, once a
        pair.
      thresholds: (K,) of the performance profiles.
      seed: of the bootstrap.
      repetitions: resamples per interval.

    Raises:
      ValueError: tables of different tasks, or without scores, or with one that is not finite.
    """
    tables = {name: _table(table) for name, table in scores.items()}
    taus = np.asarray(thresholds, np.float64)

    def number(statistic: Callable[..., float], *of: np.ndarray) -> Estimate:
        low, high = bootstrap(statistic, *of, seed=seed, repetitions=repetitions)
        return Estimate(statistic(*of), float(low), float(high))

    def profile(table: np.ndarray) -> Profile:
        low, high = bootstrap(
            lambda runs: performance_profile(runs, taus), table, seed=seed, repetitions=repetitions
        )
        return Profile(performance_profile(table, taus), low, high)

    pairs = [
        (x, y) for rank, x in enumerate(focus) for y in tables if y != x and y not in focus[:rank]
    ]
    return Comparison(
        aggregates={
            name: {label: number(statistic, table) for label, statistic in AGGREGATES.items()}
            for name, table in tables.items()
        },
        thresholds=taus,
        profiles={name: profile(table) for name, table in tables.items()},
        improvement={
            (x, y): number(probability_of_improvement, tables[x], tables[y]) for x, y in pairs
        },
    )


def _table(scores: ArrayLike) -> np.ndarray:
    table = checked(scores)
    if table.ndim != 2:
        raise ValueError(
            f"scores have shape {table.shape}; give (runs, tasks), one row for each run"
        )
    return table
