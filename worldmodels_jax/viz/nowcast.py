"""Forecasts of rain beside what was observed: a grid of maps, a row a forecast, a column a time."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from worldmodels_jax.files import replacing

DRY_RATE, TOP_RATE = 0.1, 50.0  # mm/h, the ends of the colours
_CELL = 1.0  # inches
_DPI = 100


def plot_nowcast(
    path: Path,
    context: np.ndarray,
    rows: Mapping[str, np.ndarray],
    *,
    minutes: int = 30,
    title: str = "",
) -> None:
    """Draws the frames before a forecast, then what came and what was forecast.

    Colours are logarithmic from 0.1 to 50 mm/h; what is drier is white.

    Args:
      path: the PNG; its directory is made if missing.
      context: (C, H, W) mm/h, the last of them at the time of the forecast.
      rows: name -> (L, H, W) mm/h.
      minutes: between frames.
      title: above the grid.

    Raises:
      ValueError: for no row, or maps of other shapes.
    """
    shapes = {np.shape(x) for x in rows.values()}
    if context.ndim != 3 or len(shapes) != 1 or next(iter(shapes))[1:] != context.shape[1:]:
        raise ValueError(
            f"a context of shape {context.shape} and rows of {sorted(shapes)}: give (C, H, W), and "
            "at least one row (L, H, W), all of one shape."
        )
    shown, leads = len(context), next(iter(shapes))[0]
    colours = matplotlib.colormaps["turbo"].with_extremes(under="white", bad="0.85")
    norm = LogNorm(DRY_RATE, TOP_RATE)
    size = (_CELL * (shown + leads) + 2, _CELL * len(rows) + 0.6)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), shown + leads, squeeze=False)
    for number, (name, forecast) in enumerate(rows.items()):
        line = grid[number]
        for column, axes in enumerate(line):
            axes.set_xticks([])
            axes.set_yticks([])
            if column >= shown or number == 0:
                frame = context[column] if column < shown else forecast[column - shown]
                # A logarithm of nothing is no colour.
                frame = np.maximum(frame, DRY_RATE / 10)
                image = axes.imshow(frame, cmap=colours, norm=norm, interpolation="nearest")
            else:
                axes.set_axis_off()
        line[shown if number else 0].set_ylabel(name, fontsize=8)
    for column, axes in enumerate(grid[0]):
        axes.set_title(f"{minutes * (column - shown + 1):+d} min", fontsize=8)
    figure.colorbar(image, ax=grid, label="mm/h", extend="both", shrink=0.8)
    if title:
        figure.suptitle(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None}, bbox_inches="tight")
