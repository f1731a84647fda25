"""Learning curves of several seeds, drawn without pyplot and so without its global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from worldmodels_jax.files import replacing

Row = Mapping[str, float]  # of training.metrics.read_metrics: "step", "time" and the metrics


def plot_learning_curves(
    path: Path,
    runs: Sequence[Sequence[Row]],
    metric: str,
    *,
    reference: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Plots one metric of several runs, one a seed, from their metric histories.

    Args:
      path: the PNG; its directory is made if missing.
      runs: S histories, each as from ``training.metrics.read_metrics``.
      metric: the metric's name in the rows; also the label of the axis.
      reference: label -> height of horizontal lines, such as the random policy's return.
      title: above the axes.

    Raises:
      ValueError: a run has no finite value of the metric.
    """
    steps, values = align_runs(runs, metric)
    plot_curves(path, steps, values, ylabel=metric, reference=reference, title=title)


def align_runs(runs: Sequence[Sequence[Row]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Brings one metric of several runs to common steps.

    A run's value between two of its own steps is interpolated, and it has none before its first or
    after its last. Rows without a finite value of the metric count as not written.

    Args:
      runs: S histories, each as from ``training.metrics.read_metrics``.
      metric: the metric's name in the rows.

    Returns:
      steps (K,), every step at which any run has the metric, and values (S, K), NaN where there
      is none.

    Raises:
      ValueError: no runs, or one without a finite value of the metric.
    """
    points = [
        {
            row["step"]: row[metric]
            for row in sorted(run, key=lambda row: row["step"])
            if np.isfinite(row.get(metric, np.nan))
        }
        for run in runs
    ]
    for index, (run, own) in enumerate(zip(runs, points, strict=True)):
        if not own:
            names = sorted({name for row in run for name in row} - {"step", "time"})
            raise ValueError(
                f"run {index} has no finite value of {metric!r}; its metrics are {names}"
            )
    if not points:
        raise ValueError(f"there are no runs to take {metric!r} from; give at least one history")
    steps = np.array(sorted(set().union(*points)))
    values = [
        np.interp(steps, list(own), list(own.values()), left=np.nan, right=np.nan) for own in points
    ]
    return steps, np.stack(values)


def plot_curves(
    path: Path,
    steps: np.ndarray,
    values: np.ndarray,
    *,
    ylabel: str,
    reference: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draws ``curves_figure`` into a PNG; arguments and errors as there.

    Args:
      path: the PNG; its directory is made if missing.
      steps: (K,) the horizontal axis.
      values: (S, K) one curve a seed.
      ylabel: what the values are.
      reference: label -> height of horizontal lines.
      title: above the axes.
    """
    figure = curves_figure(steps, values, ylabel=ylabel, reference=reference, title=title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def curves_figure(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    ylabel: str,
    reference: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Draws a thin line a seed, their mean in bold and, from two seeds, the band from min to max.

    Mean and band at a step are over the seeds that have a value there.

    Args:
      steps: (K,) the horizontal axis, in environment steps.
      values: (S, K) one curve a seed; NaN where it has no value.
      ylabel: what the values are.
      reference: label -> height of horizontal dashed lines, such as the random policy's return.
      title: above the axes.

    Raises:
      ValueError: shapes that do not fit, or no curve.
    """
    steps, values = np.asarray(steps), np.asarray(values)
    if values.ndim != 2 or steps.shape != values.shape[1:] or not values.size:
        raise ValueError(
            f"steps are {steps.shape} and values {values.shape}; give (K,) and (S, K), not empty"
        )
    seeds = np.ma.masked_invalid(values)
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(seeds) > 1:
        axes.fill_between(
            steps, seeds.min(axis=0), seeds.max(axis=0), color="C0", alpha=0.15, label="min–max"
        )
    width, alpha = (0.8, 0.5) if len(seeds) > 1 else (2.4, 1.0)
    for index, seed in enumerate(seeds):
        label = "one seed" if index == 0 else "_nolegend_"
        axes.plot(steps, seed, color="C0", linewidth=width, alpha=alpha, label=label)
    if len(seeds) > 1:
        label = f"mean of {len(seeds)} seeds"
        axes.plot(steps, seeds.mean(axis=0), color="C0", linewidth=2.4, label=label)
    for index, (label, height) in enumerate((reference or {}).items(), start=1):
        axes.axhline(height, color=f"C{index}", linestyle="--", linewidth=1.2, label=label)
    axes.set(xlabel="environment steps", ylabel=ylabel, title=title)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure
