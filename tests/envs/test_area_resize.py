"""Area interpolation against literals and against a slow loop in exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from worldmodels_jax.envs.area_resize import area_resize, overlaps


def test_two_by_two_to_one_is_the_average():
    image = np.array([[[0, 255], [10, 255]], [[20, 255], [30, 254]]], np.uint8)
    # 60 / 4 = 15; 1019 / 4 = 254.75.
    np.testing.assert_array_equal(area_resize(image, (1, 1)), [[[15, 255]]])


def test_halves_go_up():
    image = np.array([[[1], [2], [2], [3], [254], [255]]], np.uint8)
    np.testing.assert_array_equal(area_resize(image, (1, 3))[0, :, 0], [2, 3, 255])


def test_three_pixels_to_two():
    # Each output covers one whole pixel and a half of the middle one.
    indices, weights = overlaps(3, 2)
    np.testing.assert_array_equal(indices, [[0, 1], [1, 2]])
    np.testing.assert_array_equal(weights, [[2, 1], [1, 2]])
    image = np.array([[[30], [90], [0]]], np.uint8)
    np.testing.assert_array_equal(area_resize(image, (1, 2))[0, :, 0], [50, 30])


def test_same_size_and_extremes_are_kept():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(area_resize(image, (5, 7)), image)
    white = np.full((210, 160, 3), 255, np.uint8)
    np.testing.assert_array_equal(area_resize(white, (64, 64)), 255)


def test_enlarging_repeats_and_mixes_pixels():
    image = np.array([[[0]], [[100]]], np.uint8)
    np.testing.assert_array_equal(area_resize(image, (3, 1))[:, 0, 0], [0, 50, 100])


@pytest.mark.parametrize("height", [210, 250])
def test_an_atari_screen_equals_the_slow_loop(height):
    image = np.random.default_rng(1).integers(0, 256, (height, 160, 3), np.uint8)
    resized = area_resize(image, (64, 64))
    assert resized.shape == (64, 64, 3)
    assert resized.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(resized[..., channel], _slow_resize(image[..., channel]))


def test_sums_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="4001x4003 to 64x64"):
        area_resize(np.zeros((4001, 4003, 1), np.uint8), (64, 64))


def _slow_resize(image: np.ndarray) -> np.ndarray:
    """Visits every output pixel and the input pixels between its edges, in fractions."""
    tall, wide = Fraction(image.shape[0], 64), Fraction(image.shape[1], 64)
    resized = np.zeros((64, 64), int)
    for row in range(64):
        for column in range(64):
            total = Fraction(0)
            for y, high in _covered(row * tall, (row + 1) * tall):
                for x, broad in _covered(column * wide, (column + 1) * wide):
                    total += high * broad * int(image[y, x])
            resized[row, column] = math.floor(total / (tall * wide) + Fraction(1, 2))
    return resized


def _covered(start: Fraction, end: Fraction) -> list[tuple[int, Fraction]]:
    pixels = range(math.floor(start), math.ceil(end))
    return [
        (pixel, min(end, Fraction(pixel + 1)) - max(start, Fraction(pixel))) for pixel in pixels
    ]
