"""Published scores to compare with: the tables of the GIT-STORM paper, and STORM's own runs.

The files in ``published/`` say of each table where it is from, what was transcribed, and which of
its numbers do not fit together. One protocol they are not: only two systems evaluated here, alike,
measure what divides them. STORM stands there twice, as re-run for the GIT-STORM paper and as
released by its authors, and the two differ by more than GIT-STORM's gain; show both.
"""

import csv
from importlib import resources
from typing import NamedTuple

import numpy as np

from worldmodels_jax.evaluation.scores import human_normalised


class Benchmark(NamedTuple):
    """Published results on a suite of tasks.

    Attributes:
      title: for headings.
      prefix: of the names of its environments in this library.
      tasks: their names as published.
      scale: what 0 and 1 are, in words.
      low: (tasks,) raw scores that are 0 when normalised.
      high: (tasks,) raw scores that are 1.
      scores: system -> (runs, tasks) raw scores; where only the mean over runs is published it
        counts as one run.
      printed: statistic -> system -> value on the normalised scale, as printed over all tasks. The
        interquartile mean and the optimality gap are of single runs there.
      thresholds: (K,) of performance profiles.
    """

    title: str
    prefix: str
    tasks: tuple[str, ...]
    scale: str
    low: np.ndarray
    high: np.ndarray
    scores: dict[str, np.ndarray]
    printed: dict[str, dict[str, float]]
    thresholds: np.ndarray

    def normalise(self, scores: np.ndarray) -> np.ndarray:
        """Normalises raw scores, (..., tasks)."""
        return human_normalised(scores, self.low, self.high)

    def task_of(self, environment: str) -> str | None:
        """The task that an environment's name means, e.g. ``atari/MsPacman`` or ``dmc/cup_catch``.

        Returns:
          A member of ``tasks``, or none if it is not among them.
        """
        if not environment.startswith(self.prefix):
            return None
        wanted = _plain(environment.removeprefix(self.prefix)).replace("ballincup", "cup")
        return next((task for task in self.tasks if _plain(task) == wanted), None)


def atari100k() -> Benchmark:
    """Table 5.5: 26 games after 100k agent steps, and STORM's released runs beside it."""
    games, columns = _columns("atari100k.csv")
    low, high = columns.pop("random"), columns.pop("human")
    released, runs = _columns("storm_released.csv")
    assert released == games
    scores: dict[str, np.ndarray] = {}
    for system, column in columns.items():
        scores[system] = column[None]
        if system == "STORM (re-run)":
            scores["STORM (released)"] = np.stack(list(runs.values()))
    return Benchmark(
        title="Atari 100k",
        prefix="atari/",
        tasks=games,
        scale="0 is the random policy, 1 the human reference of the published table",
        low=low,
        high=high,
        scores=scores,
        printed=_printed("atari100k_printed.csv"),
        thresholds=np.linspace(0, 2, 201),
    )


def dmc() -> Benchmark:
    """Table 5.6: 20 tasks of the DeepMind Control Suite from pixels, after 1M frames."""
    tasks, columns = _columns("dmc.csv")
    most = 1000.0  # rewards are in [0, 1] and an episode has 1000 frames
    return Benchmark(
        title="DeepMind Control Suite",
        prefix="dmc/",
        tasks=tasks,
        scale="the return over 1000, the most an episode can give",
        low=np.zeros(len(tasks)),
        high=np.full(len(tasks), most),
        scores={system: column[None] for system, column in columns.items()},
        printed={
            statistic: {system: value / most for system, value in row.items()}
            for statistic, row in _printed("dmc_printed.csv").items()
        },
        thresholds=np.linspace(0, 1, 101),
    )


def video_prediction(suite: str) -> dict[tuple[str, str], dict[str, float]]:
    """Tables 5.3 and 5.4: ``(task, system) -> {"fvd", "perplexity"}``.

    Args:
      suite: "atari" or "dmc".

    Raises:
      ValueError: another suite.
    """
    if suite not in ("atari", "dmc"):
        raise ValueError(
            f"no video prediction was published for suite {suite!r}; give atari or dmc"
        )
    return {
        (row["task"], row["system"]): {name: float(row[name]) for name in ("fvd", "perplexity")}
        for row in _rows(f"video_{suite}.csv")
    }


def video_prior() -> dict[tuple[str, str], float]:
    """Table 5.1: ``(system, dataset) -> FVD`` of TECO with an MLP and with a MaskGIT prior."""
    return {(row["system"], row["dataset"]): float(row["fvd"]) for row in _rows("video_prior.csv")}


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _rows(name: str) -> list[dict[str, str]]:
    """The rows of a file whose comments are lines that begin with #."""
    path = resources.files("worldmodels_jax") / "evaluation" / "published" / name
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _columns(name: str) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names of the rows and the numeric columns."""
    rows = _rows(name)
    first, *others = rows[0]
    columns = {other: np.array([float(row[other]) for row in rows]) for other in others}
    return tuple(row[first] for row in rows), columns


def _printed(name: str) -> dict[str, dict[str, float]]:
    return {
        row.pop("statistic"): {system: float(value) for system, value in row.items()}
        for row in _rows(name)
    }
