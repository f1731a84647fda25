"""What each latent of an autoencoder does: a grid of images, a row a latent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmodels_jax.files import replacing

_CELL = 0.55  # inches
_GAP = 1  # pixels of the images
_DPI = 120


def plot_traversals(
    path: Path,
    images: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> None:
    """Draws decoded images, all of a row with another value of the same latent.

    Args:
      path: the PNG; its directory is made if missing.
      images: (K, Q, H, W, C) in [0, 1], C of 1 or 3; what lies outside is cut off.
      rows: K names of the latents.
      columns: Q names of the values.
      title: above the grid.

    Raises:
      ValueError: for other shapes, or as many names as there are not.
    """
    if images.ndim != 5 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"images are of shape {images.shape}; give (K, Q, H, W, C) with C of 1 or 3"
        )
    K, Q, H, W, _ = images.shape
    if (len(rows), len(columns)) != (K, Q):
        raise ValueError(
            f"there are {len(rows)} names of rows and {len(columns)} of columns for {K} rows of "
            f"{Q} images; give as many"
        )
    pad = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    cells = np.pad(np.clip(images, 0, 1), pad, constant_values=1.0)
    grid = cells.swapaxes(1, 2).reshape(K * (H + _GAP), Q * (W + _GAP), -1)
    figure = Figure(figsize=(_CELL * Q + 1, _CELL * K + 0.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(np.broadcast_to(grid, (*grid.shape[:2], 3)), interpolation="nearest")
    axes.set_yticks((np.arange(K) + 0.5) * (H + _GAP), rows, fontsize=7)
    axes.set_xticks((np.arange(Q) + 0.5) * (W + _GAP), columns, fontsize=7)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
