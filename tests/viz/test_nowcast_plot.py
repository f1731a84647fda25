"""The grid of maps: what is drawn where, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodels_jax.viz.nowcast import plot_nowcast


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_maps_are_in_their_places(tmp_path: Path) -> None:
    """Every map counts, each in its own place: as one of them rains, one place changes."""
    dry = {"observed": np.zeros((2, 4, 4)), "model": np.zeros((2, 4, 4))}
    context = np.zeros((2, 4, 4))
    plot_nowcast(tmp_path / "sheet.png", context, dry, title="a day")
    base = drawn(tmp_path / "sheet.png")
    places = []
    for name, index in (
        ("", 0),
        ("", 1),
        ("observed", 0),
        ("observed", 1),
        ("model", 0),
        ("model", 1),
    ):
        wet, rows = context.copy(), {key: x.copy() for key, x in dry.items()}
        (rows[name] if name else wet)[index] = 30.0
        plot_nowcast(tmp_path / "wet.png", wet, rows, title="a day")
        changed = np.abs(drawn(tmp_path / "wet.png") - base).sum(-1) > 60
        assert changed.any()
        places.append(tuple(np.argwhere(changed).mean(0)))
    rows, columns = np.array(places).round(-1).T
    assert (np.diff(columns[:4]) > 0).all()
    assert columns[4:].tolist() == columns[2:4].tolist()
    assert len(set(rows[:4])) == 1
    assert rows[4] == rows[5] > rows[0]


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    for context, rows in (
        (np.zeros((2, 4, 4)), {}),
        (np.zeros((4, 4)), {"a": np.zeros((2, 4, 4))}),
        (np.zeros((2, 4, 5)), {"a": np.zeros((2, 4, 4))}),
        (np.zeros((2, 4, 4)), {"a": np.zeros((2, 4, 4)), "b": np.zeros((3, 4, 4))}),
    ):
        with pytest.raises(ValueError, match="at least one row"):
            plot_nowcast(tmp_path / "none.png", context, rows)
    assert not any(tmp_path.iterdir())
