"""Figures of score statistics: what is drawn, where, and that the same is drawn again."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from worldmodels_jax.viz import scores

ESTIMATES = {
    "GIT-STORM": {"mean": (1.0, 0.5, 2.0), "iqm": (0.6, 0.4, 0.7)},
    "STORM (released)": {"mean": (0.8, 0.8, 0.8), "iqm": (0.5, 0.5, 0.5)},
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_aggregates_are_intervals_with_their_values(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "deep" / "a.png"
    printed = {"mean": {"STORM (released)": 0.9}}
    scores.plot_aggregates(path, ESTIMATES, printed=printed, bold=["GIT-STORM"], title="Atari")
    mean, iqm = drawn[0].axes
    assert drawn[0].get_suptitle() == "Atari"
    assert [mean.get_title(), iqm.get_title()] == ["mean", "iqm"]
    (bar,) = mean.patches  # the single run has none
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == (0.5, 2.0)
    tick, single, hollow = mean.lines
    assert list(tick.get_xdata()) == [1.0, 1.0]
    assert (list(single.get_xdata()), list(single.get_ydata())) == ([0.8], [1])
    assert (list(hollow.get_xdata()), list(hollow.get_ydata())) == ([0.9], [1])
    assert hollow.get_markerfacecolor() == "none"
    assert len(iqm.lines) == 2
    labels = mean.get_yticklabels()
    assert [label.get_text() for label in labels] == list(ESTIMATES)
    assert [label.get_fontweight() for label in labels] == ["bold", "normal"]
    assert mean.yaxis_inverted()  # the first system on top
    assert mean.get_xlim()[0] < 0.5
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 500


def test_profiles_have_bands_and_their_own_line(tmp_path: Path, drawn: list[Figure]) -> None:
    taus = np.linspace(0, 2, 5)
    value = np.array([1.0, 0.8, 0.5, 0.2, 0.0])
    profiles = {f"system {i}": (value, value, value) for i in range(9)}
    profiles["system 0"] = (value, value - 0.1, value + 0.1)
    scores.plot_profiles(tmp_path / "p.png", taus, profiles, xlabel="score", bold=["system 1"])
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 9
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), value)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), taus)
    assert len(axes.collections) == 1  # a band where there is an interval
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 9  # told apart, beyond the number of colours
    assert axes.lines[1].get_linewidth() > axes.lines[0].get_linewidth()
    assert axes.get_xlabel() == "score"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(profiles)


def test_improvement_names_both_systems(tmp_path: Path, drawn: list[Figure]) -> None:
    pairs = {("A", "B"): (0.7, 0.6, 0.9), ("A", "C"): (0.2, 0.2, 0.2)}
    scores.plot_improvement(tmp_path / "i.png", pairs)
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A > B", "A > C"]
    low, high = axes.get_xlim()
    assert low <= 0 < 1 <= high
    (bar,) = axes.patches
    np.testing.assert_allclose([bar.get_x(), bar.get_width()], [0.6, 0.3])
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)  # neither is better


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        scores.plot_aggregates(tmp_path / name, ESTIMATES, title="again")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    "seen",
    [
        np.eye(3),
        # Machado et al. 2009, severity 1: deuteranopia, protanopia.
        np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
        np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    ],
)
def test_every_eye_tells_the_colours_apart(seen: np.ndarray) -> None:
    colours = np.array([to_rgb(colour) for colour in scores._COLOURS])
    shown = colours @ seen.T
    distance = np.linalg.norm(shown[:, None] - shown[None], axis=-1)
    assert (distance + np.eye(len(colours))).min() > 0.15
    assert (colours @ [0.21, 0.72, 0.07]).max() < 0.7  # on white


def test_plot_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no systems to draw; give at least one"):
        scores.plot_aggregates(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match=r"B has the statistics \['iqm'\] and A \['mean'\]"):
        scores.plot_aggregates(
            tmp_path / "a.png", {"A": {"mean": (1, 1, 1)}, "B": {"iqm": (1, 1, 1)}}
        )
    band = (np.ones(2), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"profile of A has shapes .*\(3,\)"):
        scores.plot_profiles(tmp_path / "a.png", np.ones(3), {"A": band}, xlabel="x")
    with pytest.raises(ValueError, match="no pairs to draw"):
        scores.plot_improvement(tmp_path / "a.png", {})
    assert not list(tmp_path.iterdir())
