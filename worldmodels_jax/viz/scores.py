"""Score statistics of several systems as figures, drawn without pyplot and its global state.

Colours are Okabe and Ito's, told apart by the colour-blind too. Aggregates and profiles give the
same system the same colour if they are given the systems in the same order.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmodels_jax.files import replacing

Interval = tuple[float, float, float]  # value, lower end, upper end
Band = tuple[np.ndarray, np.ndarray, np.ndarray]  # the same, (K,) each

# Without their yellow, which is hardly seen on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_BAR = 0.6  # height of an interval, of the distance between two systems
_DPI = 120


def plot_aggregates(
    path: Path,
    estimates: Mapping[str, Mapping[str, Interval]],
    *,
    printed: Mapping[str, Mapping[str, float]] | None = None,
    bold: Collection[str] = (),
    title: str = "",
) -> None:
    """Draws a panel a statistic and in it, for each system, interval and value.

    A system of one run has no interval and shows a mark only.

    Args:
      path: the PNG; its directory is made if missing.
      estimates: system -> statistic -> (value, lower, upper); all of the same statistics.
      printed: statistic -> system -> a value that others printed, as a hollow circle.
      bold: systems whose names are written bold.
      title: above the panels.

    Raises:
      ValueError: no systems, or systems with different statistics.
    """
    _require(estimates, "systems")
    names = list(estimates)
    statistics = list(estimates[names[0]])
    for name in names:
        if list(estimates[name]) != statistics or not statistics:
            raise ValueError(
                f"{name} has the statistics {list(estimates[name])} and {names[0]} {statistics}; "
                "give all systems the same, in the same order"
            )
    figure = _figure(2.6 * len(statistics) + 1.2, 0.32 * len(names) + 1.3)
    panels = figure.subplots(1, len(statistics), squeeze=False)[0]
    for axes, statistic in zip(panels, statistics, strict=True):
        others = (printed or {}).get(statistic, {})
        for row, name in enumerate(names):
            _draw_interval(axes, row, estimates[name][statistic], _colour(names, name))
            if name in others:
                axes.plot(others[name], row, "o", mfc="none", mec="0.35", ms=7, zorder=4)
        axes.set_title(statistic.replace("_", " "), fontsize=10)
        _name_rows(axes, names if axes is panels[0] else [""] * len(names), bold)
    if printed:
        figure.supxlabel("hollow circle: as printed in the publication", fontsize=8)
    _save(path, figure, title)


def plot_profiles(
    path: Path,
    thresholds: np.ndarray,
    profiles: Mapping[str, Band],
    *,
    xlabel: str,
    bold: Collection[str] = (),
    title: str = "",
) -> None:
    """Draws performance profiles with their bands.

    Args:
      path: the PNG; its directory is made if missing.
      thresholds: (K,).
      profiles: system -> (share of runs above each threshold, lower, upper), (K,) each.
      xlabel: what the thresholds are.
      bold: systems drawn with a bold line.
      title: above the axes.

    Raises:
      ValueError: no systems, or shapes that do not fit.
    """
    _require(profiles, "systems")
    names = list(profiles)
    for name, band in profiles.items():
        if any(np.shape(part) != np.shape(thresholds) for part in band):
            raise ValueError(
                f"the profile of {name} has shapes {[np.shape(part) for part in band]} and the "
                f"thresholds {np.shape(thresholds)}; give (K,) for all"
            )
    figure = _figure(7.5, 4.5)
    axes = figure.add_subplot()
    for index, (name, (value, low, high)) in enumerate(profiles.items()):
        colour = _colour(names, name)
        style = _STYLES[index // len(_COLOURS) % len(_STYLES)]
        width = 2.6 if name in bold else 1.2
        axes.plot(thresholds, value, style, color=colour, linewidth=width, label=name)
        if np.any(np.asarray(high) > np.asarray(low)):
            axes.fill_between(thresholds, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel=xlabel, ylabel="share of runs with a higher score", ylim=(0, 1.02))
    axes.margins(x=0)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _save(path, figure, title)


def plot_improvement(
    path: Path, probabilities: Mapping[tuple[str, str], Interval], *, title: str = ""
) -> None:
    """Draws the probability of improvement P(X > Y) of pairs of systems, a row a pair.

    Args:
      path: the PNG; its directory is made if missing.
      probabilities: (X, Y) -> (value, lower, upper).
      title: above the axes.

    Raises:
      ValueError: no pairs.
    """
    _require(probabilities, "pairs")
    first = list(dict.fromkeys(x for x, _ in probabilities))
    figure = _figure(7.0, 0.32 * len(probabilities) + 1.3)
    axes = figure.add_subplot()
    for row, ((x, _), interval) in enumerate(probabilities.items()):
        _draw_interval(axes, row, interval, _colour(first, x))
    axes.axvline(0.5, color="0.3", linestyle="--", linewidth=1, zorder=1)
    _name_rows(axes, [f"{x} > {y}" for x, y in probabilities], ())
    axes.set(xlim=(-0.02, 1.02), xlabel="probability that a run of the former beats the latter's")
    _save(path, figure, title)


def _draw_interval(axes: Axes, row: int, interval: Interval, colour: str) -> None:
    value, low, high = interval
    if high > low:
        axes.barh(row, high - low, _BAR, left=low, color=colour, alpha=0.55)
        axes.plot([value, value], [row - _BAR / 2, row + _BAR / 2], color="black", linewidth=1.8)
    else:
        axes.plot(value, row, "D", color=colour, markersize=6)


def _name_rows(axes: Axes, names: list[str], bold: Collection[str]) -> None:
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in bold else "normal")
    axes.use_sticky_edges = False  # a bar's own end would be the end of the axis
    axes.margins(x=0.08)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)


def _colour(names: list[str], name: str) -> str:
    return _COLOURS[names.index(name) % len(_COLOURS)]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(path: Path, figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=11)
    with replacing(path) as temporary:
        # Without matplotlib's version in it, the same figure is the same file.
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _require(given: Mapping[Any, Any], what: str) -> None:
    if not given:
        raise ValueError(f"there are no {what} to draw; give at least one")
