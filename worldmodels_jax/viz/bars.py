"""What a benchmark measured: bars of the parts, and throughput over the number of seeds."""

import re
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
    _save(figure, path)


def plot_seed_throughput(path: Path, result: Mapping[str, Any]) -> None:
    """Draw agent steps per second, of all seeds together and of each, over the number of seeds.

    Args:
      path: the PNG.
      result: of ``experiments.benchmark`` with several numbers of seeds.

    Raises:
      ValueError: if no preset was measured with several numbers of seeds.
    """
    speeds: dict[str, dict[int, float]] = {}
    for name, row in result["rows"].items():
        if match := re.fullmatch(r"(.*): training step, (\d+) seeds?", name):
            speeds.setdefault(match[1], {})[int(match[2])] = row["steps_per_second"]
    speeds = {preset: by_number for preset, by_number in speeds.items() if len(by_number) > 1}
    if not speeds:
        raise ValueError("nothing was measured with several numbers of seeds: --seeds=1,2,4,8.")
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (preset, by_number) in enumerate(speeds.items()):
        numbers = sorted(by_number)
        total = [by_number[number] for number in numbers]
        each = [by_number[number] / number for number in numbers]
        colour = f"C{index}"
        axes.plot(numbers, total, "o-", color=colour, label=f"{preset}, all seeds")
        axes.plot(numbers, each, "s--", color=colour, label=f"{preset}, each seed")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("seeds in one program")
    axes.set_ylabel("agent steps per second")
    axes.set_title(f"{result['machine']['device']}", fontsize=9)
    axes.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
