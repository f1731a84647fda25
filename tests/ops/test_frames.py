"""Frames between pixels and networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.ops.frames import from_square, from_uint8, to_pixels, to_square, to_uint8


def test_frames_are_padded_below_and_to_the_right_and_cropped_again():
    frames = jax.random.uniform(jax.random.key(0), (2, 10, 5, 1))
    square = to_square(frames, 16)
    assert square.shape == (2, 16, 16, 1)
    assert square.sum() == pytest.approx(float(frames.sum()), rel=1e-5)
    np.testing.assert_array_equal(from_square(square, (10, 5, 1)), frames)


def test_decoded_frames_are_confined_and_rounded_to_pixels():
    frames = jnp.array([-0.5, 0.0, 0.1, 0.5, 1.0, 1.5])
    expected = np.array([0, 0, 26, 128, 255, 255])
    np.testing.assert_allclose(to_pixels(frames), expected / 255, atol=1e-6)
    np.testing.assert_array_equal(to_uint8(to_pixels(frames)), expected)
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(every / 255.0)), every)
    np.testing.assert_array_equal(to_uint8(from_uint8(jnp.asarray(every))), every)
    np.testing.assert_array_equal(to_uint8(frames), expected)
