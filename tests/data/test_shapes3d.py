"""The room of 3DShapes against a slow march through solids, an analytic sphere and hand shades."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.data.shapes3d import shapes3d_like

ROOM = shapes3d_like()
render = jax.jit(ROOM.render)
RED, CYAN, BLUE_CYAN = 0, 5, 6
LIGHT = np.array([-0.4, -0.6, 0.7]) / 1.01**0.5


def rays_of(orientation: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera and unit rays (64, 64, 3), by looking from a point at another."""
    yaw, pitch = np.deg2rad(-30 + orientation * 60 / 14), np.deg2rad(18)
    target = np.array([0, 0, 0.45])
    away = np.array([np.sin(yaw) * np.cos(pitch), -np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    origin = target + 3.6 * away
    forward = (target - origin) / 3.6
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    slope = np.tan(np.deg2rad(22.5))
    rays = np.empty((64, 64, 3))
    for row in range(64):
        for column in range(64):
            x, y = (column + 0.5) / 32 - 1, 1 - (row + 0.5) / 32
            ray = forward + slope * (x * right + y * up)
            rays[row, column] = ray / np.linalg.norm(ray)
    return origin, rays


def is_inside(p: np.ndarray, shape: int, scale: float) -> np.ndarray:
    x, y, z = np.moveaxis(p / scale, -1, 0)
    z = z - 0.5
    radius = np.hypot(x, y)
    if shape == 0:
        return (abs(x) < 0.42) & (abs(y) < 0.42) & (abs(z) < 0.5)
    if shape == 1:
        return (radius < 0.45) & (abs(z) < 0.5)
    if shape == 2:
        return radius**2 + z**2 < 0.25
    ends = [radius**2 + (z - end) ** 2 < 0.0625 for end in (-0.25, 0.25)]
    return ((radius < 0.25) & (abs(z) < 0.25)) | ends[0] | ends[1]


@pytest.mark.parametrize("shape", range(4))
def test_silhouettes_against_a_slow_march(shape: int) -> None:
    factors = (CYAN, CYAN, RED, 5, shape, 3)
    image = np.asarray(render(jnp.array(factors)))
    origin, rays = rays_of(3)
    seen = np.zeros((64, 64), bool)
    for t in np.linspace(2.0, 5.0, 600):
        seen |= is_inside(origin + t * rays, shape, 0.75 + 5 * 0.5 / 7)
    drawn = image[..., 0] > 0
    # A ray that passes within the hit distance counts as having met the object.
    assert (seen & ~drawn).sum() <= 4
    assert (drawn & ~seen).sum() <= 0.05 * seen.sum()


def test_a_sphere_is_shaded_as_by_hand() -> None:
    image = np.asarray(render(jnp.array([CYAN, CYAN, RED, 2, 2, 11])))
    radius = 0.5 * (0.75 + 2 * 0.5 / 7)
    origin, rays = rays_of(11)
    centre = np.array([0, 0, radius])
    along = ((centre - origin) * rays).sum(-1)
    inside = radius**2 - ((origin + along[..., None] * rays - centre) ** 2).sum(-1)
    clear = inside > 0.1 * radius**2  # not at the rim, where a pixel is a wide angle
    depth = along[clear] - np.sqrt(inside[clear])
    normal = (origin + depth[:, None] * rays[clear] - centre) / radius
    expected = 255 * (0.45 + 0.55 * np.maximum(0, normal @ LIGHT))
    assert clear.sum() > 100
    np.testing.assert_allclose(image[clear][:, 0].astype(int), expected, atol=2.5)
    assert (image[clear][:, 1:] == 0).all()


def test_walls_are_shaded_as_by_hand() -> None:
    # Light falls by .6 on the back wall and .4 on the right one, both over |(.4, .6, .7)|; the left
    # one looks away from it.
    left_turn, right_turn = render(
        jnp.array([[RED, CYAN, RED, 0, 0, 14], [RED, CYAN, RED, 0, 0, 0]])
    )
    shades = [255 * (0.45 + 0.55 * light / 1.01**0.5) for light in (0.6, 0.4, 0.0)]
    np.testing.assert_allclose(left_turn[0, 63], [0, shades[0], shades[0]], atol=1)
    np.testing.assert_allclose(left_turn[0, 0], [0, shades[2], shades[2]], atol=1)
    np.testing.assert_allclose(right_turn[0, 0], [0, shades[0], shades[0]], atol=1)
    np.testing.assert_allclose(right_turn[0, 63], [0, shades[1], shades[1]], atol=1)


def test_the_floor_is_dark_near_the_object_only() -> None:
    image = np.asarray(render(jnp.array([RED, CYAN, CYAN, 7, 3, 7])))[..., 0].astype(int)
    origin, rays = rays_of(7)
    for row, column in [(63, 0), (48, 32), (46, 38)]:
        ray = rays[row, column]
        point = origin - ray * origin[2] / ray[2]
        distance = point[0] ** 2 + point[1] ** 2
        shade = 0.45 + 0.55 * LIGHT[2]
        expected = 255 * shade * (1 - 0.35 * np.exp(-distance / (0.5 * 1.25) ** 2))
        np.testing.assert_allclose(image[row, column], expected, atol=1.5)


def test_a_hue_changes_what_it_names_and_nothing_else() -> None:
    base = jnp.array([CYAN, CYAN, RED, 4, 1, 5])
    floor, wall, thing = (ROOM.intervene(base, j, BLUE_CYAN) for j in range(3))
    before, *after = np.asarray(render(jnp.stack([base, floor, wall, thing])))
    changed = np.stack([(image != before).any(-1) for image in after])
    np.testing.assert_array_equal(changed.sum(0), 1)  # each pixel is of one of the three
    assert (changed[2] == (before[..., 0] > 0)).all()
    assert changed[0, 63].all()
    assert changed[1, 0].all()


def test_the_grid_is_that_of_3dshapes() -> None:
    assert ROOM.grid_size == 480_000
    assert ROOM.factor_names[3:] == ("scale", "shape", "orientation")
    factors = ROOM.sample_factors(jax.random.key(0), 3)
    images = render(factors)
    assert images.shape == (3, 64, 64, 3)
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images[2], render(factors[2]))
