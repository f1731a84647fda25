"""The grid of traversals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodels_jax.viz.traversals import plot_traversals


def test_each_image_is_in_its_row_and_column(tmp_path: Path) -> None:
    shades = np.array(
        [[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], [[1.0, 1, 0], [0, 1, 1], [1, 0, 1]]]
    )
    images = np.broadcast_to(shades[:, :, None, None], (2, 3, 4, 5, 3))
    path = tmp_path / "new" / "grid.png"
    plot_traversals(path, images, rows=["z0", "z1"], columns=["-1", "0", "+1"], title="a title")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    centres = np.array(
        [[np.argwhere((pixels == 255 * shade).all(-1)).mean(0) for shade in row] for row in shades]
    )
    assert np.isfinite(centres).all()
    assert (np.ptp(centres[..., 0], axis=1) < 2).all()  # one height in a row
    assert (np.ptp(centres[..., 1], axis=0) < 2).all()  # one place in a column
    assert centres[0, 0, 0] < centres[1, 0, 0]
    assert (np.diff(centres[0, :, 1]) > 10).all()


def test_grey_images_and_the_same_file_twice(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-0.5, 1.5, (2, 2, 4, 4, 1))
    for name in ("a.png", "b.png"):
        plot_traversals(tmp_path / name, images, rows=["0", "1"], columns=["0", "1"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 4, 4, 1))
    with pytest.raises(ValueError, match=r"give \(K, Q, H, W, C\)"):
        plot_traversals(tmp_path / "a.png", images[0], rows=["0"], columns=["0"])
    with pytest.raises(ValueError, match="3 names of rows and 2 of columns for 2 rows of 3"):
        plot_traversals(tmp_path / "a.png", images, rows=["0"] * 3, columns=["0"] * 2)
