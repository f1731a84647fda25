"""Traced sets against a slow march through solids, and what each factor changes."""

import colorsys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.data import tracer
from worldmodels_jax.data.factors import FactorSet
from worldmodels_jax.data.traced_sets import cars3d_like, mpi3d_like, teapots_like

KEY = jax.random.key(0)
TEAPOTS, ROBOT, CARS = teapots_like(), mpi3d_like(), cars3d_like()
render_teapots, render_robot, render_cars = (jax.jit(s.render) for s in (TEAPOTS, ROBOT, CARS))
_COUNT = 8  # pictures of a call, so that each set is compiled once


def pictures_of(render: Callable[[Any], Any], factors: list[list[int]]) -> np.ndarray:
    padded = factors + factors[:1] * (_COUNT - len(factors))
    return np.asarray(render(jnp.array(padded)))[: len(factors)].astype(int)


def rays_of(
    target: tuple[float, ...], distance: float, yaw: float, pitch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Camera and unit rays (64, 64, 3), from angles in degrees."""
    yaw, pitch = np.deg2rad(yaw), np.deg2rad(pitch)
    away = np.array([np.sin(yaw) * np.cos(pitch), -np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.cross(-away, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, -away)
    line = np.tan(np.deg2rad(22.5)) * ((np.arange(64) + 0.5) / 32 - 1)
    rays = -away + line[:, None] * right - line[:, None, None] * up
    return np.array(target) + distance * away, rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def segment(p: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of points to the line from a to b."""
    along = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(p - a - along[..., None] * (b - a), axis=-1)


def assert_silhouette(drawn: np.ndarray, seen: np.ndarray) -> None:
    """A ray that passes within the hit distance counts as having met the body."""
    assert seen.sum() > 50
    assert (seen & ~drawn).sum() <= 4
    assert (drawn & ~seen).sum() <= 0.1 * seen.sum() + 4


# Teapots


def in_teapot(p: np.ndarray) -> np.ndarray:
    """Without what melts between the parts."""
    x, y, z = np.moveaxis(p, -1, 0)
    body = (x / 0.5) ** 2 + (y / 0.5) ** 2 + (z / 0.4) ** 2 < 1
    lid = x**2 + y**2 + (z - 0.45) ** 2 < 0.08**2
    spout = segment(p, np.array([0.4, 0, 0]), np.array([0.75, 0, 0.3])) < 0.07
    handle = (np.hypot(x + 0.5, z - 0.05) - 0.22) ** 2 + y**2 < 0.05**2
    return body | lid | spout | handle


@pytest.mark.parametrize(("azimuth", "elevation"), [(1, 2), (8, 7)])
def test_teapots_against_a_slow_march(azimuth: int, elevation: int) -> None:
    image = pictures_of(render_teapots, [[azimuth, elevation, 9, 4, 0]])[0]
    origin, rays = rays_of((0, 0, 0), 2.6, 36 * azimuth, 0.49 * 180 * elevation / 9)
    seen = np.zeros((64, 64), bool)
    for t in np.linspace(1.6, 3.6, 300):
        seen |= in_teapot(origin + t * rays)
    drawn = (image != 255).any(-1)
    assert_silhouette(drawn, seen)
    # Red is the shade itself, green 4/9 of it, blue nothing; shades are from .35 to 1.
    red, green, blue = image[drawn].T
    assert (blue == 0).all()
    np.testing.assert_allclose(green, red * 4 / 9, atol=1)
    assert red.min() >= 89
    assert red.max() > 240


def test_a_teapot_is_shaded_as_by_hand() -> None:
    image = pictures_of(render_teapots, [[0, 0, 9, 9, 9]])[0]
    origin, rays = rays_of((0, 0, 0), 2.6, 0, 0)
    half = np.array([0.5, 0.5, 0.4])
    for row, column in [(32, 32), (26, 28), (40, 36)]:  # of the body, far from its other parts
        o, r = origin / half, rays[row, column] / half
        b, a, c = o @ r, r @ r, o @ o - 1
        point = origin + (-b - np.sqrt(b * b - a * c)) / a * rays[row, column]
        normal = point / half**2
        light = max(0, normal / np.linalg.norm(normal) @ np.array([-0.4, -0.6, 0.7]) / 1.01**0.5)
        np.testing.assert_allclose(image[row, column], 255 * (0.35 + 0.65 * light), atol=3)


# The robot


def in_robot(p: np.ndarray, yaw: float, pitch: float, shape: int, size: float) -> tuple:
    """Whether points are in post or arm, and whether in the body."""
    yaw, pitch = np.deg2rad(yaw), np.deg2rad(pitch)
    top = np.array([0, 0, 0.5])
    ahead = np.array([np.sin(yaw) * np.cos(pitch), -np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    tip = top + 0.9 * ahead
    metal = (segment(p, np.zeros(3), top) < 0.05) | (segment(p, top, tip) < 0.04)
    side = np.array([np.cos(yaw), np.sin(yaw), 0])
    x, y, z = ((p - tip) @ axis / size for axis in (side, np.cross(ahead, side), ahead))
    radius, long = np.hypot(x, y), abs(z) < 1
    solids = [
        lambda: (abs(x) < 1) & (abs(y) < 1) & long,
        lambda: (radius < 1) & long,
        lambda: radius**2 + z**2 < 1,
        lambda: (radius < (1 - z) / 2) & long,
        lambda: (
            (abs(x) < 0.87)
            & (abs(x / 2 + y * 0.75**0.5) < 0.87)
            & long
            & (abs(x / 2 - y * 0.75**0.5) < 0.87)
        ),
        lambda: (np.maximum(abs(x), abs(y)) < (1 - z) / 2) & long,
    ]
    return metal, solids[shape]()


@pytest.mark.parametrize("shape", range(6))
def test_robots_against_a_slow_march(shape: int) -> None:
    image = pictures_of(render_robot, [[0, shape, 1, 1, 2, 5 + 6 * shape, 11]])[0]
    origin, rays = rays_of((0, 0, 0.7), 3.0, 0, 30)
    yaw, pitch = -60 + (5 + 6 * shape) * 120 / 39, 10 + 11 * 70 / 39
    body, metal = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    for t in np.linspace(1.7, 3.7, 250):
        in_metal, in_body = in_robot(origin + t * rays, yaw, pitch, shape, 0.2)
        body |= in_body & ~metal  # what is met first hides the rest
        metal |= in_metal & ~body
    # Red before a blue background.
    assert_silhouette((image[..., 0] > 0) & (image[..., 1] == 0), body)
    assert_silhouette(image[..., 2] != 128, body | metal)
    grey = (image[..., 0] == image[..., 2]) & (image[..., 0] > 0)
    assert abs(int(grey.sum()) - int(metal.sum())) <= 10
    assert (grey & metal).sum() > 0.8 * metal.sum()


def test_robots_stay_in_the_picture() -> None:
    far = [[0, 0, 1, h, 2, a, b] for h in (0, 2) for a in (0, 39) for b in (0, 39)]
    images = pictures_of(render_robot, far)
    for image in images:
        drawn = (image != [0, 0, 128]).any(-1)
        border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert drawn.sum() > 80
        assert not border.any()


def test_each_factor_of_the_robot_changes_what_it_names() -> None:
    base = [0, 0, 1, 1, 2, 20, 20]
    changed = [[v + 1 if i == j else v for i, v in enumerate(base)] for j in range(2)]
    smaller, other_background = [0, 0, 0, 1, 2, 20, 20], [0, 0, 1, 1, 0, 20, 20]
    images = pictures_of(render_robot, [base, *changed, smaller, other_background])
    before, colour, shape, small, background = images
    body = before[..., 0] > before[..., 1]
    # The second of six hues is yellow.
    assert (colour[body] == before[body][:, [0, 0, 2]]).all()
    np.testing.assert_array_equal(colour[~body], before[~body])
    assert (shape != before).any()
    area = (small[..., 0] > small[..., 1]).sum() / body.sum()
    np.testing.assert_allclose(area, 0.36, atol=0.08)
    behind = (before == [0, 0, 128]).all(-1)
    np.testing.assert_array_equal(background[behind], np.array([[128, 0, 0]] * behind.sum()))
    np.testing.assert_array_equal(background[~behind], before[~behind])


# Cars


def drawn_car(kind: int) -> np.ndarray:
    """The numbers of a type, drawn anew: length, width, height, cabin, offset, hue."""
    low, high = np.array([0.8, 0.4, 0.18, 0.35, -0.15, 0]), np.array([1.2, 0.55, 0.3, 0.7, 0.15, 1])
    return (low + (high - low) * np.random.default_rng(0).random((183, 6)))[kind]


@pytest.mark.parametrize(("elevation", "azimuth", "kind"), [(0, 3, 0), (3, 17, 182)])
def test_cars_against_a_slow_march(elevation: int, azimuth: int, kind: int) -> None:
    image = pictures_of(render_cars, [[elevation, azimuth, kind]])[0]
    length, width, height, cabin, offset, hue = drawn_car(kind)
    origin, rays = rays_of((0, 0, 0.25), 2.4, 15 * azimuth, 10 * (elevation + 1))
    seen = np.zeros((64, 64), bool)
    for t in np.linspace(1.5, 3.5, 300):
        x, y, z = np.moveaxis(origin + t * rays, -1, 0)
        body = (
            (abs(x) < length / 2) & (abs(y) < width / 2) & (abs(z - 0.07 - height / 2) < height / 2)
        )
        roof = (abs(x - offset * length) < cabin * length / 2) & (abs(y) < 0.425 * width)
        roof &= abs(z - 0.07 - 1.5 * height) < height / 2
        wheel = np.hypot(abs(x) - 0.3 * length, z - 0.11) < 0.11
        wheel &= abs(abs(y) - width / 2) < 0.04
        seen |= body | roof | wheel
    drawn = (image != 255).any(-1)
    assert_silhouette(drawn, seen)
    paint = np.array(colorsys.hsv_to_rgb(hue, 1, 1))
    coloured = image[drawn & (image.min(-1) == 0)]
    np.testing.assert_allclose(
        coloured / coloured.max(-1, keepdims=True), np.tile(paint, (len(coloured), 1)), atol=0.03
    )


def test_cars_turn() -> None:
    front, right, back = pictures_of(render_cars, [[1, 0, 3], [1, 6, 3], [1, 12, 3]])
    widths = [(image != 255).any((0, 2)).sum() for image in (front, right, back)]
    assert widths[0] == widths[2] > 1.4 * widths[1]  # along x: seen from its side at 0 and 180
    np.testing.assert_array_equal((front != 255).any(-1), (back != 255).any(-1)[:, ::-1])


# All of them


@pytest.mark.parametrize(
    ("factor_set", "render", "size"),
    [
        (TEAPOTS, render_teapots, 100_000),
        (ROBOT, render_robot, 1_036_800),
        (CARS, render_cars, 17_568),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_set_is_a_grid_of_pictures(
    factor_set: FactorSet, render: Callable[[Any], Any], size: int
) -> None:
    assert factor_set.grid_size == size
    assert len(factor_set.factor_names) == len(factor_set.factor_sizes)
    factors = np.asarray(factor_set.sample_factors(KEY, _COUNT))
    images = np.asarray(render(factors))
    assert images.shape == (_COUNT, 64, 64, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(render(factors), images)
    assert len(np.unique(images.reshape(_COUNT, -1), axis=0)) == _COUNT


# Bodies


def test_distances_by_hand() -> None:
    p = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.5]])
    np.testing.assert_allclose(tracer.box(p, (1.0, 1.0, 1.0)), [13**0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(
        tracer.capsule(p, (0.0, 0.0, 0.0), (3.0, 0.0, 0.0), 0.25), [3.75, 0.25], rtol=1e-6
    )
    across = jnp.array([5.0, 0.0])
    np.testing.assert_allclose(tracer.cylinder(p[:, 2], across, 1.0, 2.0), [4.0, -1.0], rtol=1e-6)
    normals = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(tracer.planes(p, normals, np.array([1.0, 2.0])), [4.0, -1.0])
    # On the x axis outside, exact on the surface, and nothing at the centre that is no number.
    q = jnp.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    found = tracer.ellipsoid(q, (2.0, 2.0, 0.5))
    np.testing.assert_allclose(found[:2], [0.0, 0.5], atol=1e-6)
    assert found[2] <= 0
    a, b = jnp.array([1.0, 1.0, 3.0]), jnp.array([1.0, 1.25, 1.0])
    np.testing.assert_allclose(
        tracer.smooth_minimum(a, b, 0.5), [1 - 0.5 / 4, 1 - 0.25**2 / 2, 1.0], rtol=1e-6
    )
