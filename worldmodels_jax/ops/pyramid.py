"""Laplacian pyramids (Burt & Adelson, 1983): how two pictures differ, scale by scale."""

import chex
import jax
import jax.numpy as jnp

_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def laplacian_pyramid(x: jax.Array, levels: int) -> list[jax.Array]:
    """Band-pass pictures from the finest scale on, and what is left at the coarsest.

    Args:
      x: ``(..., H, W, C)``.
      levels: number of pictures, at least 1.

    Returns:
      Pictures ``(..., H/2^i, W/2^i, C)``.

    Raises:
      ValueError: if a side cannot be halved so often.
    """
    chex.assert_rank(x, {3, 4, 5, 6})
    factor = 2 ** (levels - 1)
    height, width = x.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(
            f"pictures of {height}x{width} have no pyramid of {levels} levels: their sides must be "
            f"multiples of {factor}; take loss.perceptual=none or another grid."
        )
    pictures = []
    for _ in range(levels - 1):
        coarse = _blur(x)[..., ::2, ::2, :]
        pictures.append(x - _blur(coarse.repeat(2, -3).repeat(2, -2)))
        x = coarse
    return [*pictures, x]


def laplacian_pyramid_l1(a: jax.Array, b: jax.Array, levels: int = 4) -> jax.Array:
    """The sum over scales of mean absolute differences of two pictures' pyramids.

    A perceptual distance without learned weights (Bojanowski et al., 2018): an error of a coarse
    scale counts as much as the many pixels of a fine one.

    Args:
      a: ``(..., H, W, C)``.
      b: the same.
      levels: of the pyramids.

    Returns:
      ``(...)``.
    """
    chex.assert_equal_shape([a, b])
    # The pyramid is linear.
    distances = [jnp.abs(x).mean((-3, -2, -1)) for x in laplacian_pyramid(a - b, levels)]
    return jnp.stack(distances).sum(0)


def _blur(x: jax.Array) -> jax.Array:
    """A binomial filter of five taps along either side; pictures go on as at their borders."""
    for axis in (-3, -2):
        size = x.shape[axis]
        pad = [(0, 0)] * x.ndim
        pad[axis] = (2, 2)
        padded = jnp.pad(x, pad, mode="edge")
        x = sum(
            (
                tap * jax.lax.slice_in_dim(padded, i, i + size, axis=x.ndim + axis)
                for i, tap in enumerate(_TAPS)
            ),
            jnp.zeros_like(x),
        )
    return x
