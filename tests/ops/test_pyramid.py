"""Laplacian pyramids: what comes back, what they see, and a slow one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from worldmodels_jax.ops.pyramid import laplacian_pyramid, laplacian_pyramid_l1


def slow(x: np.ndarray, levels: int) -> list[np.ndarray]:
    taps = np.array([1, 4, 6, 4, 1]) / 16

    def blur(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = ndimage.correlate1d(x, taps, axis, mode="nearest")
        return x

    out = []
    for _ in range(levels - 1):
        coarse = blur(x)[::2, ::2]
        out.append(x - blur(np.kron(coarse, np.ones((2, 2)))))
        x = coarse
    return [*out, x]


def test_against_a_slow_one() -> None:
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 8, 16, 1)))
    pictures = jax.jit(laplacian_pyramid, static_argnums=1)(jnp.asarray(x), 3)
    assert [p.shape for p in pictures] == [(2, 8, 16, 1), (2, 4, 8, 1), (2, 2, 4, 1)]
    for i in range(2):
        for fast, expected in zip(pictures, slow(x[i, ..., 0], 3), strict=True):
            np.testing.assert_allclose(fast[i, ..., 0], expected, atol=1e-5)


def test_distance() -> None:
    a = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    b = a.at[0].add(0.5)
    distance = jax.jit(laplacian_pyramid_l1)
    # An even difference is in the coarsest picture alone.
    np.testing.assert_allclose(distance(b, a), [0.5, 0, 0], atol=1e-6)
    # A checkerboard averages out: it is in the finest alone.
    board = jnp.asarray(np.indices((8, 8)).sum(0) % 2 * 2.0 - 1)[None, ..., None]
    far = distance(a + board, a)
    np.testing.assert_allclose(far, [1, 1, 1], atol=0.2)
    with pytest.raises(ValueError, match=r"8x8 have no pyramid of 5 levels.*perceptual=none"):
        laplacian_pyramid(a, 5)
