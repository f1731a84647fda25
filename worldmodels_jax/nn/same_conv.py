"""Convolutions with an odd kernel that keep the size of a map, or double it after a nearest-x2.

As in ``nn.conv``, each has two lowerings with the same result: the library convolution, and matrix
products in chunks.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from worldmodels_jax.nn.conv import Lowering, convolve, convolve_in_chunks, use_matmul
from worldmodels_jax.nn.dense import product
from worldmodels_jax.nn.linear import Fan, kernel_init


def conv_same(x: jax.Array, kernel: jax.Array, lowering: Lowering = "auto") -> jax.Array:
    """Convolution with stride 1 that keeps the size of the map.

    out[o] = sum_k kernel[k] x[o + k - r] along either side, r = (K - 1) / 2, x being 0 outside.

    Args:
      x: (B, H, W, C).
      kernel: (K, K, C, F), K odd, of the same dtype as ``x``.
      lowering: "matmul" (matrix products), "lax" (library convolution) or "auto", which is "matmul"
        on CPU and "lax" elsewhere.

    Returns:
      (B, H, W, F).

    Raises:
      ValueError: if K is even, or ``lowering`` is not one of the three.
    """
    _check(x, kernel)
    if not use_matmul(lowering):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return convolve_in_chunks(_products, x, kernel, x.shape[1] * x.shape[2])


def upsample_conv(x: jax.Array, kernel: jax.Array, lowering: Lowering = "auto") -> jax.Array:
    """``conv_same`` of the map enlarged twofold by repeating its pixels.

    The enlarged map is never made: output pixel 2 i + p has tap k on input pixel
    i + floor((p + k - r) / 2), so taps that meet the same input are added first. For K = 5 this
    leaves 3 by 3 sums for each of the four phases (p, q), 36% of the products.

    Args:
      x: (B, H, W, C).
      kernel: (K, K, C, F), K odd, of the same dtype as ``x``.
      lowering: see :func:`conv_same`.

    Returns:
      (B, 2H, 2W, F).

    Raises:
      ValueError: if K is even, or ``lowering`` is not one of the three.
    """
    _check(x, kernel)
    B, H, W, C = x.shape
    size, F = kernel.shape[0], kernel.shape[-1]
    radius = size // 2
    reach = (radius + 1) // 2
    sums = np.zeros((2, 2 * reach + 1, size))  # phase, input pixel, tap
    for phase in range(2):
        for tap in range(size):
            sums[phase, (phase + tap - radius) // 2 + reach, tap] = 1
    by_phase = jnp.einsum("pak,qbl,klcf->abcpqf", sums, sums, kernel).astype(x.dtype)
    y = conv_same(x, by_phase.reshape(*by_phase.shape[:2], C, 4 * F), lowering)
    return y.reshape(B, H, W, 2, 2, F).swapaxes(2, 3).reshape(B, 2 * H, 2 * W, F)


class Convolution(nn.Module):
    """Linen layer of a convolution, its kernel initialised as DreamerV3's are.

    Attributes:
      convolution: ``(x (B, H, W, C), kernel (K, K, C, F)) -> (B, H', W', F)``, one of this file
        or of ``nn.conv``.
      size: K.
      features: F.
      use_bias: whether a bias is added.
      fan: see ``nn.linear.kernel_init``.
      dtype: the compute dtype; parameters stay float32.
    """

    convolution: Callable[[jax.Array, jax.Array], jax.Array]
    size: int
    features: int
    use_bias: bool = True
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., H, W, C) -> (..., H', W', F)``."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        bias_init = nn.initializers.zeros if self.use_bias else None
        return convolve(self, self.convolution, x, shape, kernel_init(self.fan), bias_init)


def _check(x: jax.Array, kernel: jax.Array) -> None:
    chex.assert_rank(x, 4)
    size = kernel.shape[0]
    chex.assert_shape(kernel, (size, size, x.shape[-1], None))
    chex.assert_type(kernel, x.dtype)
    if size % 2 == 0:
        raise ValueError(f"A kernel of {size}x{size} has no middle: its side must be odd.")


def _products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Windows of one row of taps, concatenated; then one product per row of taps."""
    _, H, W, _ = x.shape
    size, F = kernel.shape[0], kernel.shape[-1]
    r = size // 2
    padded = jnp.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
    # Slices only: a gather would scatter in the gradient.
    rows = jnp.concatenate([padded[:, :, k : k + W] for k in range(size)], axis=-1)
    products = [product(rows[:, k : k + H], kernel[k].reshape(-1, F)) for k in range(size)]
    return sum(products[1:], start=products[0])
