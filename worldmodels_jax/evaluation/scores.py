"""Statistics of scores: interquartile mean, bootstrap intervals, human-normalised score. NumPy.

Definitions after Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264): a point estimate over few runs is reported with its interval.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike


class Summary(TypedDict):
    """What ``summary`` returns: statistics of the scores and the interval of their mean."""

    mean: float
    iqm: float
    std: float
    min: float
    max: float
    ci: tuple[float, float]


def interquartile_mean(x: ArrayLike) -> float:
    """Returns the mean of the middle half of all scores.

    With n scores in order, ⌊n/4⌋ are cut from each end, as by ``scipy.stats.trim_mean(x, 0.25)``:
    less swayed by outliers than the mean, and less wasteful of runs than the median.

    Args:
      x: (...) scores of runs, tasks or both; flattened.

    Raises:
      ValueError: no scores, or a score that is not finite.
    """
    ordered = np.sort(checked(x), axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def bootstrap_interval(
    x: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    seed: int,
    repetitions: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a statistic.

    Runs are drawn with replacement; of a table of runs and tasks, for each task anew (stratified),
    so that every resample has as many runs of each task as the original.

    Args:
      x: (runs,) or (runs, tasks) scores.
      statistic: maps an array of x's shape to a number, e.g. ``interquartile_mean``.
      seed: of the resampling; the same seed gives the same interval.
      repetitions: the number of resamples.
      confidence: the interval's mass, in (0, 1).

    Returns:
      The lower and the upper end. They coincide where there is only one run.

    Raises:
      ValueError: no scores, a score that is not finite, a third axis, or a confidence or number of
        repetitions out of range.
    """
    low, high = bootstrap(statistic, x, seed=seed, repetitions=repetitions, confidence=confidence)
    return float(low), float(high)


def bootstrap(
    statistic: Callable[..., ArrayLike],
    *scores: ArrayLike,
    seed: int,
    repetitions: int = 2000,
    confidence: float = 0.95,
) -> np.ndarray:
    """Returns the stratified percentile bootstrap interval of a statistic of several tables.

    The statistic may be an array, such as a performance profile, and may compare tables of
    independent runs, such as those of two systems: each table is resampled by itself.

    Args:
      statistic: maps arrays of the shapes of ``scores`` to a number or an array (...).
      *scores: each (runs,) or (runs, tasks); the number of runs may differ.
      seed: of the resampling; the same seed gives the same interval.
      repetitions: the number of resamples.
      confidence: the interval's mass, in (0, 1).

    Returns:
      (2, ...) the lower and the upper end.

    Raises:
      ValueError: as ``bootstrap_interval``.
    """
    tables = [checked(table) for table in scores]
    for table in tables:
        if table.ndim not in (1, 2):
            raise ValueError(
                f"x has shape {table.shape}; give (runs,) or (runs, tasks), "
                "for instance the mean return of each run's episodes"
            )
    if not 0 < confidence < 1 or repetitions < 1:
        raise ValueError(
            f"confidence is {confidence} and repetitions {repetitions}; "
            "give a confidence between 0 and 1 and at least one repetition"
        )
    rng = np.random.default_rng(seed)
    if all(len(table) == 1 for table in tables):
        repetitions = 1  # a single run can only be drawn as itself
    resampled = [
        statistic(
            *(
                np.take_along_axis(table, rng.integers(len(table), size=table.shape), axis=0)
                for table in tables
            )
        )
        for _ in range(repetitions)
    ]
    return np.quantile(np.asarray(resampled), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def human_normalised(score: ArrayLike, random: ArrayLike, human: ArrayLike) -> np.ndarray:
    """Returns (score - random) / (human - random): 0 is a random policy, 1 the human reference.

    Args:
      score: (..., tasks) raw scores.
      random: (tasks,) raw scores of a random policy.
      human: (tasks,) raw scores of the human reference.

    Raises:
      ValueError: a task whose two references are equal has no such scale.
    """
    score, random, human = (np.asarray(a, np.float64) for a in (score, random, human))
    if np.any(human == random):
        raise ValueError(
            f"human and random references are equal in {np.argwhere(human == random).tolist()}; "
            f"correct them (random {random.tolist()}, human {human.tolist()}) or leave the task out"
        )
    return (score - random) / (human - random)


def summary(returns: ArrayLike, seed: int = 0) -> Summary:
    """Summarises evaluation returns of one task.

    Episodes of one run share its parameters and are no independent evidence of the algorithm:
    where there are several runs, each counts once, with its mean return, and all statistics are
    over runs. Of a single run they are over its episodes, and tell nothing of other seeds.

    Args:
      returns: (S, episodes) or (episodes,) undiscounted returns.
      seed: of the bootstrap.

    Returns:
      "mean", "iqm", "std" (of a sample, n - 1; 0 of a single score), "min", "max", and "ci", the
      95 % bootstrap interval of the mean.

    Raises:
      ValueError: no returns, a return that is not finite, or more than two axes.
    """
    table = np.atleast_2d(checked(returns))
    if table.ndim != 2:
        raise ValueError(f"returns have shape {table.shape}; give (S, episodes) or (episodes,)")
    scores = table.mean(axis=1) if len(table) > 1 else table[0]
    return Summary(
        mean=float(scores.mean()),
        iqm=interquartile_mean(scores),
        std=float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
        min=float(scores.min()),
        max=float(scores.max()),
        ci=bootstrap_interval(scores, np.mean, seed),
    )


def checked(x: ArrayLike) -> np.ndarray:
    """Returns scores as float64, after a look at them.

    Raises:
      ValueError: no scores, or a score that is not finite.
    """
    scores = np.asarray(x, np.float64)
    if scores.size == 0:
        raise ValueError(f"there are no scores in an array of shape {scores.shape}; give some")
    if not np.isfinite(scores).all():
        where = np.argwhere(~np.isfinite(scores)).tolist()
        raise ValueError(
            f"scores at {where} are not finite; drop runs that failed or episodes that never ended "
            "before summarising, and say so"
        )
    return scores
