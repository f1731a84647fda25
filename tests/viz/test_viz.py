"""Dream panels, GIFs, contact sheets and learning curves, pixel by pixel where it can be."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worldmodels_jax.viz import bars, curves, dream
from worldmodels_jax.viz.bars import plot_benchmark, plot_seed_throughput

BLUE, ORANGE, DARK = (64, 128, 255), (255, 144, 32), (24, 24, 24)
# Layout: a header of 14 pixels over each panel, a border of 3 around it, 4 between panels.
TOP, LEFT, BORDER, GAP = 17, 3, 3, 4


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_panels_are_real_dream_and_absolute_difference() -> None:
    real, dreamed = _noise(4, 10, 6, 3), _noise(4, 10, 6, 3, seed=1)
    panels = dream.dream_panels(real, dreamed, context=1, scale=20)
    width = 6 * 20 + 2 * BORDER
    assert panels.dtype == np.uint8
    assert panels.shape == (4, TOP + 200 + BORDER, 3 * width + 2 * GAP, 3)
    difference = np.abs(real.astype(int) - dreamed.astype(int))
    for index, expected in enumerate((real, dreamed, difference)):
        left = LEFT + index * (width + GAP)
        inside = panels[:, TOP:-BORDER, left : left + 120]
        # Every pixel of each enlarged block, so that smoothing or a shift is seen.
        blocks = inside.reshape(4, 10, 20, 6, 20, 3)
        assert (blocks == expected[:, :, None, :, None]).all()
        for t, colour in enumerate((BLUE, ORANGE, ORANGE, ORANGE)):
            assert (panels[t, 14:TOP, left - LEFT : left - LEFT + width] == colour).all()
            assert (panels[t, -BORDER:, left - LEFT : left - LEFT + width] == colour).all()
            assert (panels[t, TOP:, left - LEFT : left] == colour).all()
            assert (panels[t, TOP:, left + 120 : left + 123] == colour).all()
    for left in (width, 2 * width + GAP):
        assert (panels[:, :, left : left + GAP] == DARK).all()


def test_panels_are_readable_and_labelled() -> None:
    """Catch is 10 x 5: 16 pixels a pixel. The labels differ and stay in their panels' headers."""
    frames = _noise(2, 10, 5, 1)
    panels = dream.dream_panels(frames, frames)
    width = 80 + 2 * BORDER
    assert panels.shape == (2, TOP + 160 + BORDER, 3 * width + 2 * GAP, 3)
    assert (panels[:, 14] == ORANGE).any()
    assert not (panels == BLUE).all(axis=-1).any()  # no context: nothing was seen
    headers = [panels[:, :14, i * (width + GAP) : i * (width + GAP) + width] for i in range(3)]
    ink = [(header[0] > 100).any(axis=-1) for header in headers]
    assert all(marks.any() for marks in ink)
    lengths = [np.flatnonzero(marks.any(axis=0)).max() for marks in ink]
    assert lengths[0] < lengths[1] < lengths[2] < width - BORDER  # real < dream < difference
    assert all((header[0] == header[1]).all() for header in headers)


def test_narrow_panels_make_room_for_their_labels() -> None:
    frames = _noise(1, 160, 2, 3)
    assert dream.dream_panels(frames, frames).shape[1:3] == (4800 + 20, 3 * 66 + 8)
    small = dream.dream_panels(frames, frames, scale=1)
    assert small.shape[1:3] == (160 + 20, 3 * 8 + 8)


def test_difference_of_planes_shows_the_plane_that_differs() -> None:
    real = np.zeros((1, 2, 2, 4), np.uint8)
    dreamed = real.copy()
    dreamed[0, 0, 0, 2] = 255
    panels = dream.dream_panels(real, dreamed, scale=1)
    alone = dream.to_rgb(dreamed)[0, 0, 0]
    left = LEFT + 2 * (2 + 2 * BORDER + GAP)
    assert alone.any()
    assert (panels[0, TOP, left] == alone).all()
    assert not panels[0, TOP, left + 1].any()


def test_panel_errors() -> None:
    frames = _noise(2, 4, 4, 3)
    with pytest.raises(ValueError, match=r"frames are float32 of shape \(2, 4, 4, 3\); give"):
        dream.dream_panels(frames.astype(np.float32), frames)
    with pytest.raises(ValueError, match=r"frames are uint8 of shape \(4, 4, 3\)"):
        dream.dream_panels(frames, frames[0])
    with pytest.raises(ValueError, match=r"real frames are \(2, .*, dreamed ones \(1, "):
        dream.dream_panels(frames, frames[:1])
    with pytest.raises(ValueError, match="context is 3; of 2 frames"):
        dream.dream_panels(frames, frames, context=3)
    with pytest.raises(ValueError, match="scale is 0; give"):
        dream.dream_panels(frames, frames, scale=0)


def test_rgb_and_grey() -> None:
    colour, grey = _noise(2, 3, 4, 3), _noise(3, 4, 1)
    assert (dream.to_rgb(colour) == colour).all()
    shown = dream.to_rgb(grey)
    assert shown.shape == (3, 4, 3)
    assert (shown == grey).all()


def test_planes_blend_by_intensity() -> None:
    """Sky blue (86, 180, 233) is plane 0, orange (230, 159, 0) plane 1; a hand-computed blend."""
    pixels = np.array(
        [[[0, 0], [255, 0], [0, 255], [255, 255], [0, 51], [255, 85]]], np.uint8
    )  # (1, 6, 2)
    expected = [
        (0, 0, 0),
        (86, 180, 233),
        (230, 159, 0),
        (158, 170, 116),  # the mean, (158, 169.5, 116.5), to the even
        (46, 32, 0),  # a fifth of orange: dimmer, the same hue
        (122, 175, 175),  # three quarters and one: (86 * 3 + 230) / 4, (180 * 3 + 159) / 4, 174.75
    ]
    np.testing.assert_array_equal(dream.to_rgb(pixels)[0], expected)


@pytest.mark.parametrize("channels", [2, 10, 16])
def test_plane_colours_are_distinct_and_bright(channels: int) -> None:
    shown = dream.to_rgb(255 * np.eye(channels, dtype=np.uint8)[None])[0].astype(int)
    distances = np.abs(shown[:, None] - shown[None]).sum(axis=-1) + 1000 * np.eye(channels)
    assert distances.min() > 30
    assert shown.max(axis=-1).min() >= 150


def test_gif_plays_the_frames(tmp_path: Path) -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    for t, colour in enumerate([(255, 0, 0), (0, 255, 0), (10, 20, 250)]):
        frames[t, :, t:] = colour
    path = tmp_path / "deep" / "dream.gif"
    dream.write_gif(path, frames, fps=8)
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert image.n_frames == 3
        assert image.info["loop"] == 0
        for t in range(3):
            image.seek(t)
            assert image.info["duration"] == 120  # 125 ms, in hundredths of a second
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frames[t])
    assert list(path.parent.iterdir()) == [path]


def test_gif_of_planes_and_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "planes.gif"
    planes = np.zeros((1, 4, 4, 2), np.uint8)
    planes[..., 0] = 255
    dream.write_gif(path, planes, fps=50)
    with Image.open(path) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (86, 180, 233)
    for fps in (0, -1, 51, math.nan):
        with pytest.raises(ValueError, match=f"fps is {fps}; a GIF plays"):
            dream.write_gif(path, planes, fps=fps)
    with pytest.raises(ValueError, match=r"shape \(0, 4, 4, 2\); give at least one frame"):
        dream.write_gif(path, planes[:0], fps=10)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: dream.write_gif(path, _noise(2, 4, 4, 3), fps=10),
        lambda path: dream.write_contact_sheet(path, _noise(2, 4, 4, 3), columns=2),
    ],
)
def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "dream"
    path.write_bytes(b"earlier")

    def interrupted(image: Image.Image, file: Path, **options: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_contact_sheet_runs_row_by_row(tmp_path: Path) -> None:
    frames = _noise(5, 6, 7, 3)
    path = tmp_path / "sheet.png"
    dream.write_contact_sheet(path, frames, columns=3)
    with Image.open(path) as image:
        assert image.format == "PNG"
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 6 + GAP, 3 * 7 + 2 * GAP, 3)
    for t, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        top, left = row * (6 + GAP), column * (7 + GAP)
        np.testing.assert_array_equal(sheet[top : top + 6, left : left + 7], frames[t])
    assert (sheet[6:10] == DARK).all()
    assert (sheet[10:, 2 * 11 :] == DARK).all()  # the empty sixth cell
    dream.write_contact_sheet(path, frames[:2], columns=9)
    with Image.open(path) as image:
        assert image.size == (2 * 7 + GAP, 6)
    with pytest.raises(ValueError, match="columns is 0; a row has at least 1"):
        dream.write_contact_sheet(path, frames, columns=0)


def test_curves_draw_seeds_mean_band_and_reference() -> None:
    steps = np.array([0, 10, 20])
    values = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, np.nan]])
    figure = curves.curves_figure(
        steps, values, ylabel="return", reference={"random": -0.5}, title="Catch"
    )
    (axes,) = figure.axes
    first, second, mean, random = axes.lines
    assert [list(line.get_xdata()) for line in (first, second, mean)] == [[0, 10, 20]] * 3
    assert list(first.get_ydata()) == [0.0, 1.0, 5.0]
    assert list(np.ma.compressed(second.get_ydata())) == [2.0, 3.0]
    assert list(mean.get_ydata()) == [1.0, 2.0, 5.0]  # at 20 one seed is left
    assert mean.get_linewidth() > 2 * first.get_linewidth()
    assert list(random.get_ydata()) == [-0.5, -0.5]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(0, 0), (0, 2), (10, 1), (10, 3), (20, 5)} <= corners
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["min–max", "one seed", "mean of 2 seeds", "random"]
    assert (axes.get_ylabel(), axes.get_title()) == ("return", "Catch")


def test_one_seed_has_neither_mean_nor_band() -> None:
    (axes,) = curves.curves_figure(np.arange(2), np.ones((1, 2)), ylabel="x").axes
    assert len(axes.lines) == 1
    assert not axes.collections


@pytest.mark.parametrize("shape", [(3,), (2, 4), (0, 3)])
def test_curves_refuse_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"steps are \(3,\) and values \(.*give \(K,\) and"):
        curves.curves_figure(np.arange(3), np.zeros(shape), ylabel="x")


def test_runs_are_interpolated_to_common_steps() -> None:
    runs = [
        [{"step": 0, "time": 1.0, "r": 0.0}, {"step": 20, "time": 2.0, "r": 4.0}],
        [{"step": 10, "r": math.nan}, {"step": 15, "r": 7.0}, {"step": 5, "r": 5.0}, {"step": 9}],
    ]
    steps, values = curves.align_runs(runs, "r")
    np.testing.assert_array_equal(steps, [0, 5, 15, 20])
    np.testing.assert_array_equal(values, [[0, 1, 3, 4], [np.nan, 5, 7, np.nan]])


def test_runs_without_the_metric_are_refused() -> None:
    row = {"step": 0, "time": 0.0, "loss": 1.0, "return": math.nan}
    with pytest.raises(ValueError, match=r"run 1 has no finite value of 'return'; .*'loss', 'ret"):
        curves.align_runs([[{"step": 0, "return": 1.0}], [row]], "return")
    with pytest.raises(ValueError, match="no runs to take 'return' from"):
        curves.align_runs([], "return")


def test_learning_curves_become_a_png_without_pyplot(tmp_path: Path) -> None:
    runs = [[{"step": s, "return": float(s + seed)} for s in range(3)] for seed in range(2)]
    path = tmp_path / "plots" / "curves.png"
    loaded = "matplotlib.pyplot" in sys.modules
    curves.plot_learning_curves(path, runs, "return", reference={"random": 0.0}, title="Catch")
    with Image.open(path) as image:
        assert image.format == "PNG"
        shown = np.asarray(image.convert("RGB"))
    assert shown.shape == (540, 840, 3)
    assert (shown != 255).any(axis=-1).mean() > 0.01
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_benchmark_bars_need_rows(tmp_path: Path) -> None:
    row = {"median": 2e-3, "low": 1e-3, "high": 4e-3}
    result = {"machine": {"device": "a machine"}, "rows": {"catch: act": row}}
    plot_benchmark(tmp_path / "bars.png", result)
    first = (tmp_path / "bars.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    row["median"] = 3e-3
    plot_benchmark(tmp_path / "bars.png", result)
    assert (tmp_path / "bars.png").read_bytes() != first
    with pytest.raises(ValueError, match="no rows to draw"):
        plot_benchmark(tmp_path / "none.png", {**result, "rows": {}})
    assert not (tmp_path / "none.png").exists()


def test_throughput_over_seeds_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(bars, "_save", lambda figure, path: figures.append(figure))
    speeds = {"training step, 1 seed": 10.0, "training step, 4 seeds": 32.0, "act": 500.0}
    rows = {f"catch: {name}": {"steps_per_second": speed} for name, speed in speeds.items()}
    result = {"machine": {"device": "cpu"}, "rows": rows}
    plot_seed_throughput(tmp_path / "seeds.png", result)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figures[-1].axes[0].lines}
    assert lines == {
        "catch, all seeds": [[1.0, 10.0], [4.0, 32.0]],
        "catch, each seed": [[1.0, 10.0], [4.0, 8.0]],
    }
    del rows["catch: training step, 4 seeds"]
    with pytest.raises(ValueError, match="--seeds=1,2,4,8"):
        plot_seed_throughput(tmp_path / "none.png", result)
