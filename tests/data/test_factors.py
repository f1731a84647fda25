"""Factor sets: the grid by hand, and sprites against a slow renderer and their areas."""

import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.data import factors as factors_lib
from worldmodels_jax.data.factors import FactorSet, make_images, sprites, sprites16

KEY = jax.random.key(0)
SPRITES, COLOURED, SMALL = sprites(), sprites(rgb=True), sprites16()
render_sprites, render_coloured, render_small = (
    jax.jit(factor_set.render) for factor_set in (SPRITES, COLOURED, SMALL)
)


def toy_set() -> FactorSet:
    """A 1x1 image that shows its three factors as colours."""
    return FactorSet("toy", ("a", "b", "c"), (2, 3, 4), lambda f: f.astype(jnp.uint8)[None, None])


# The grid


def test_the_last_factor_varies_fastest() -> None:
    index = jnp.array([[0, 1], [4, 23]])
    expected = [[[0, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 2, 3]]]
    np.testing.assert_array_equal(toy_set().index_to_factors(index), expected)


@pytest.mark.parametrize(
    ("factor_set", "size"), [(SPRITES, 737_280), (COLOURED, 7_372_800), (SMALL, 12_000)]
)
def test_index_and_factors_are_a_bijection(factor_set: FactorSet, size: int) -> None:
    assert factor_set.grid_size == size
    assert len(factor_set.factor_names) == len(factor_set.factor_sizes)
    index = np.unique(np.linspace(0, size - 1, 5_000).astype(int))
    factors = np.asarray(factor_set.index_to_factors(jnp.asarray(index)))
    np.testing.assert_array_equal(np.ravel_multi_index(factors.T, factor_set.factor_sizes), index)


def test_sampled_factors_cover_each_value_evenly() -> None:
    factors = np.asarray(toy_set().sample_factors(KEY, 6_000))
    assert factors.dtype == np.int32
    for column, size in zip(factors.T, (2, 3, 4), strict=True):
        counts = np.bincount(column, minlength=size)
        assert len(counts) == size
        np.testing.assert_allclose(counts / 6_000, 1 / size, atol=0.03)
    assert abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.05


def test_intervention_sets_one_factor() -> None:
    toy = toy_set()
    factors = jnp.array([[0, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(toy.intervene(factors, 1, 1), [[0, 1, 0], [1, 1, 3]])
    each = jax.jit(lambda value: toy.intervene(factors, 2, value))(jnp.array([3, 1]))
    np.testing.assert_array_equal(each, [[0, 0, 3], [1, 2, 1]])


@pytest.mark.parametrize(
    ("factor", "value", "message"),
    [
        (3, 0, "no factor 3: give 0 to 2, for a, b, c"),
        (-1, 0, "no factor -1"),
        (1, 3, "b of toy cannot be 3: give 0 to 2"),
        (1, -1, "cannot be -1"),
    ],
)
def test_impossible_interventions_are_refused(factor: int, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_set().intervene(jnp.zeros((2, 3), jnp.int32), factor, value)


def test_drawn_images_are_distinct_and_show_their_factors() -> None:
    images, factors = make_images(toy_set(), KEY, 20)
    assert len(np.unique(factors, axis=0)) == 20
    np.testing.assert_array_equal(images[:, 0, 0], factors)
    assert not (np.diff(np.ravel_multi_index(np.asarray(factors).T, (2, 3, 4))) > 0).all()


def test_the_full_grid_is_in_order() -> None:
    _, factors = make_images(toy_set(), KEY, None)
    np.testing.assert_array_equal(factors, np.stack(np.unravel_index(range(24), (2, 3, 4)), 1))
    with pytest.raises(ValueError, match="toy has 24 combinations, 25"):
        make_images(toy_set(), KEY, 25)


def test_render_takes_any_leading_axes_and_more_than_a_batch() -> None:
    factors = SMALL.sample_factors(KEY, 70)
    images = render_small(factors)
    assert images.shape == (70, 16, 16, 3)
    assert images.dtype == jnp.uint8
    one = jax.jit(SMALL.render_one)
    for i in (0, 69):
        np.testing.assert_array_equal(images[i], one(factors[i]))
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(SMALL.render))(factors.reshape(7, 10, -1)).reshape(images.shape), images
    )
    np.testing.assert_array_equal(render_small(factors), images)


def test_hues_against_colorsys() -> None:
    hues = np.arange(24) / 24
    expected = [colorsys.hsv_to_rgb(hue, 1.0, 1.0) for hue in hues]
    np.testing.assert_allclose(factors_lib.hue_to_rgb(jnp.asarray(hues)), expected, atol=1e-5)


# Pictures


def slow_sprite(shape: int, scale: int, orientation: int, x: int, y: int) -> np.ndarray:
    """Coverage of 64x64 pixels by one shape, point by point."""
    half, angle = 10 * (0.5 + 0.1 * scale), 2 * math.pi * orientation / 39
    cx, cy = 16 + 32 * x / 31, 16 + 32 * y / 31
    counts = np.zeros((64, 64))
    for row in range(256):
        for column in range(256):
            right, up = (column + 0.5) / 4 - cx, cy - (row + 0.5) / 4
            # Clockwise by the angle: undone, seen from above with v up, by turning it back.
            turned = complex(right, up) * complex(math.cos(angle), math.sin(angle)) / half
            u, v = turned.real, turned.imag
            if shape == 0:
                inside = abs(u) <= 1 and abs(v) <= 1
            elif shape == 1:
                inside = u * u + v * v / 0.36 <= 1
            else:
                a, b = 1.2 * u, 1.2 * v
                inside = (a * a + b * b - 1) ** 3 <= a * a * b**3
            counts[row // 4, column // 4] += inside
    return counts / 16


@pytest.mark.parametrize(
    "factors", [(0, 5, 3, 7, 25), (1, 2, 9, 0, 31), (2, 4, 5, 20, 3)], ids=lambda f: str(f[0])
)
def test_sprites_against_a_slow_renderer(factors: tuple[int, ...]) -> None:
    expected = slow_sprite(*factors)
    image = np.asarray(render_sprites(jnp.array(factors)))
    assert (image == image[..., :1]).all()
    # A point on a border may fall on either side in float32.
    wrong = np.abs(image[..., 0] / 255 - expected) > 0.01
    assert wrong.sum() <= 2
    binary = np.asarray(jax.jit(sprites(binary=True).render)(jnp.array(factors)))
    assert set(np.unique(binary)) == {0, 255}
    assert ((binary[..., 0] == 255) != (expected >= 0.5)).sum() <= 1


@pytest.mark.parametrize(("shape", "unit_area"), [(0, 4.0), (1, 0.6 * math.pi), (2, 3.6617 / 1.44)])
def test_areas(shape: int, unit_area: float) -> None:
    factors = jnp.array([[shape, 0, 7, 10, 10], [shape, 5, 7, 10, 10]])
    area = np.asarray(render_sprites(factors))[..., 0].sum((1, 2)) / 255
    np.testing.assert_allclose(area, np.array([25, 100]) * unit_area, rtol=0.02)


def test_first_and_last_orientation_are_one_image() -> None:
    factors = jnp.array([[2, 4, 0, 10, 10], [2, 4, 39, 10, 10], [2, 4, 1, 10, 10]])
    images = render_sprites(factors)
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


def test_an_upright_heart_has_its_notch_above() -> None:
    heart = np.asarray(render_sprites(jnp.array([2, 5, 0, 0, 0])))[..., 0] > 127
    rows = np.flatnonzero(heart.any(1))
    assert heart[rows[0]].sum() >= 4  # two bumps
    assert heart[rows[-1]].sum() <= 2  # one tip
    assert not heart[rows[0], 16]  # the notch, at the centre's column


def test_the_hue_alone_changes_the_colour_alone() -> None:
    factors = COLOURED.intervene(COLOURED.sample_factors(KEY, 10), 0, jnp.arange(10))
    images = np.asarray(render_coloured(factors)).astype(int)
    white = np.asarray(render_sprites(factors[:, 1:])).astype(int)
    np.testing.assert_array_equal(images.max(-1), white[..., 0])
    full = images[0][white[0, ..., 0] == 255]
    assert (full == [255, 0, 0]).all()


def moments(factors: list[int]) -> tuple[float, float, float]:
    """Area and centre, in pixels, of an image of the small set."""
    image = np.asarray(render_small(jnp.array(factors))).max(-1) / 255
    area = image.sum()
    rows, columns = np.mgrid[:16, :16] + 0.5
    return area, (image * columns).sum() / area, (image * rows).sum() / area


@pytest.mark.parametrize(("shape", "unit_area"), [(0, 1.7**2), (1, math.pi), (2, 0.65 * 1.75**2)])
def test_small_sprites_have_area_and_place(shape: int, unit_area: float) -> None:
    area, x, y = moments([shape, 4, 2, 7, 3])
    np.testing.assert_allclose(area, unit_area * (16 * 0.24) ** 2, rtol=0.04)
    # The centroid of the triangle is a third of its height above its base.
    fall = (0.75 - 1.75 / 3) * 16 * 0.24 if shape == 2 else 0.0
    np.testing.assert_allclose((x, y), (4 + 8 * 2 / 9, 4 + 8 * 7 / 9 + fall), atol=0.1)


def test_small_scales_by_area() -> None:
    areas = [moments([1, scale, 4, 5, 0])[0] for scale in range(5)]
    radii = 16 * np.array([0.12, 0.15, 0.18, 0.21, 0.24])
    np.testing.assert_allclose(areas, math.pi * radii**2, rtol=0.05)


def test_small_hues_are_eighths() -> None:
    factors = jnp.array([[0, 4, 4, 4, hue] for hue in range(8)])
    colours = np.asarray(render_small(factors))[:, 7, 7]
    expected = [np.round(255 * np.array(colorsys.hsv_to_rgb(h / 8, 1, 1))) for h in range(8)]
    np.testing.assert_allclose(colours, expected, atol=1)
    assert (np.asarray(render_small(factors))[:, 0] == 0).all()
