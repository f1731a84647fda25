"""Bars with quartiles: how long each part of a training step takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmodels_jax.files import replacing


def plot_benchmark(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the rows of a benchmark on a logarithmic time axis.

    Args:
      path: the PNG.
      result: ``{"machine": {"device": ...}, "rows": {name: {"median", "low", "high", ...}}}``,
        times in seconds.

    Raises:
      ValueError: if there are no rows.
    """
    rows = result["rows"]
    if not rows:
        raise ValueError("the benchmark has no rows to draw: name presets and parts that exist.")
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = list(range(len(rows)))
    medians = [1e3 * row["median"] for row in rows.values()]
    errors = [
        [1e3 * (row["median"] - row["low"]) for row in rows.values()],
        [1e3 * (row["high"] - row["median"]) for row in rows.values()],
    ]
    axes.barh(places, medians, xerr=errors, color="#4477aa", ecolor="#222222")
    axes.set_yticks(places, list(rows), fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a call (median and quartiles)")
    axes.set_title(f"{result['machine']['device']}", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
