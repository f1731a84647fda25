"""Persistence at a place and along the motion, on rain whose motion is known; pySTEPS' wrapper."""

import dataclasses
import sys
import warnings

import jax
import numpy as np
import pytest

from worldmodels_jax.data import rain
from worldmodels_jax.evaluation.nowcast_baselines import (
    eulerian_persistence,
    lagrangian_persistence,
    motion,
    moved,
    pysteps_steps,
)
from worldmodels_jax.evaluation.nowcasting import mean_squared_error


def blob(rows: int, columns: int, at: tuple[float, float], periodic: bool) -> np.ndarray:
    """A downpour in drizzle, smooth enough to be moved by parts of a pixel."""
    far = [np.arange(n) - place for n, place in zip((rows, columns), at, strict=True)]
    if periodic:
        far = [(d + n / 2) % n - n / 2 for d, n in zip(far, (rows, columns), strict=True)]
    return 0.2 + 20 * np.exp(-(far[0][:, None] ** 2) / 8 - far[1] ** 2 / 5)


def test_eulerian_persistence_repeats_the_last_frame() -> None:
    context = np.random.default_rng(0).random((2, 3, 4, 5))
    forecast = eulerian_persistence(context, 6)
    assert forecast.shape == (2, 6, 4, 5)
    assert (forecast == context[:, 2:]).all()


@pytest.mark.parametrize("by", [(2.0, -3.0), (-1.35, 0.6), (0.0, 0.0)])
def test_motion_is_found_to_parts_of_a_pixel(by: tuple[float, float]) -> None:
    """Down is positive, and to the right."""
    before = blob(16, 20, (6.0, 9.0), True)
    after = blob(16, 20, (6.0 + by[0], 9.0 + by[1]), True)
    np.testing.assert_allclose(motion(before, after, "periodic"), by, atol=0.1)
    before, after = (blob(40, 40, (18.0 + r, 22.0 + c), False) for r, c in ((0, 0), by))
    np.testing.assert_allclose(motion(before, after, "open"), by, atol=0.3)


def test_motion_across_the_border() -> None:
    before, after = blob(16, 20, (14.0, 1.0), True), blob(16, 20, (17.0, -1.0), True)
    np.testing.assert_allclose(motion(before, after, "periodic"), (3, -2), atol=0.1)


def test_nothing_moves_where_it_is_dry() -> None:
    dry = np.zeros((8, 8))
    assert (motion(dry, blob(8, 8, (3.0, 3.0), True), "periodic") == 0).all()
    assert (motion(dry, dry) == 0).all()


def test_fields_are_moved() -> None:
    field = np.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(moved(field, np.array([1, 0]), "periodic"), np.roll(field, 1, 0))
    expected = np.zeros((3, 4))
    expected[:, :3] = field[:, 1:]
    np.testing.assert_allclose(moved(field, np.array([0, -1])), expected)
    half = moved(field, np.array([0, 0.5]), "periodic")
    np.testing.assert_allclose(half, (field + np.roll(field, 1, 1)) / 2)
    with pytest.raises(ValueError, match="boundary='closed'"):
        moved(field, np.zeros(2), "closed")  # type: ignore[arg-type]


def test_lagrangian_persistence_goes_on() -> None:
    places = [(4.0 + 1.5 * t, 15.0 - 2.0 * t) for t in range(6)]
    frames = np.stack([blob(16, 16, place, True) for place in places])
    forecast = lagrangian_persistence(frames[None, :3], 3, "periodic")
    assert forecast.shape == (1, 3, 16, 16)
    for lead in range(3):
        # Linear interpolation flattens what is moved by half a pixel.
        error = np.abs(forecast[0, lead] - frames[3 + lead]).max()
        assert error < 2.5
        assert error < np.abs(frames[2] - frames[3 + lead]).max() / 4
    with pytest.raises(ValueError, match=r"two frames: the context is of shape \(1, 1, 16, 16\)"):
        lagrangian_persistence(frames[None, :1], 3)


def test_simulated_rain_is_followed() -> None:
    """The simulator's velocity is found to half a pixel, and following it pays."""
    physics = dataclasses.replace(rain.toy_physics(), rows=16, columns=16)
    simulate = jax.jit(jax.vmap(lambda key: rain.simulate(key, physics)))
    events = jax.tree.map(np.asarray, simulate(jax.random.split(jax.random.key(0), 24)))
    east, north = events.storm.velocity.T
    true = np.stack([-north, east], 1) / 2 / physics.pixel_km  # pixels in half an hour
    found = [motion(frames[1], frames[2], "periodic") for frames in events.frames]
    assert (np.hypot(*(np.array(found) - true).T) < 0.5).mean() > 0.9
    context, observed = events.frames[:, :3], events.frames[:, 3:]
    lagrangian = mean_squared_error(lagrangian_persistence(context, 6, "periodic"), observed)
    eulerian = mean_squared_error(eulerian_persistence(context, 6), observed)
    assert lagrangian.mean(0)[0] < 0.7 * eulerian.mean(0)[0]
    assert lagrangian.mean() < eulerian.mean()


def test_pysteps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, and those of what it imports
        pytest.importorskip("pysteps")
        frames = [blob(64, 64, (20.0 + t, 30.0), False) - 0.2 for t in range(7)]
        maps, later = np.stack(frames[:3]), np.stack(frames[3:])
        made = pysteps_steps(maps, 4, pixel_km=2.0, members=2, motion_method="VET", seed=1)
        again = pysteps_steps(maps, 4, pixel_km=2.0, members=2, motion_method="VET", seed=1)
    assert made.shape == (2, 4, 64, 64)
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    np.testing.assert_array_equal(made, again)
    # Where it rains is forecast roughly.
    assert np.corrcoef(made.mean(0)[0].ravel(), later[0].ravel())[0, 1] > 0.5


def test_what_pysteps_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"give \(3, rows, columns\)"):
        pysteps_steps(np.ones((2, 8, 8)), 6, pixel_km=1.0)
    with pytest.raises(ValueError, match=r"no rain of 0\.1 mm/h"):
        pysteps_steps(np.zeros((3, 8, 8)), 6, pixel_km=1.0)
    for name in ("pysteps", "pysteps.utils.transformation"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install worldmodels_jax\[nowcast\]"):
        pysteps_steps(np.ones((3, 8, 8)), 6, pixel_km=1.0)
