"""The two convolutions of the frame encoder and decoder: kernel 4, stride 2, padding 1.

Each has two lowerings with the same result: the library convolution, and matrix products. Which one
is fast depends on the backend, so "auto" chooses.

One index rule serves both directions: kernel tap k joins pixel o of the fine map and pixel i of the
coarse map where o = 2 i - 1 + k, for rows and columns alike.
"""

import math
from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

Lowering = Literal["auto", "matmul", "lax"]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv4s2(x: jax.Array, kernel: jax.Array, lowering: Lowering = "auto") -> jax.Array:
    """Halves a feature map: convolution with kernel 4, stride 2, padding 1.

    out[o] = sum_k kernel[k] x[2 o - 1 + k] along either side, x being 0 outside.

    Args:
      x: (B, H, W, C), H and W even.
      kernel: (4, 4, C, F), of the same dtype as ``x``.
      lowering: "matmul" (patches times kernel), "lax" (library convolution) or "auto", which is
        "matmul" on CPU and "lax" elsewhere.

    Returns:
      (B, H/2, W/2, F).

    Raises:
      ValueError: if H or W is odd, or ``lowering`` is not one of the three.
    """
    _check(x, kernel)
    B, H, W, C = x.shape
    if H % 2 or W % 2:
        raise ValueError(
            f"A stride-2 convolution got a feature map of {H}x{W} pixels, but both sides must be "
            "even: pad or resize the frames so that every layer can halve them."
        )
    if not _use_matmul(lowering):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS
        )
    h, w, F = H // 2, W // 2, kernel.shape[-1]
    # Space to depth: a 4x4 window at stride 2 is a 2x2 window at stride 1 of 2x2 cells, and these
    # windows are four shifted slices, with no gather and so no scatter in the gradient.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cells = padded.reshape(B, h + 1, 2, w + 1, 2, C).swapaxes(2, 3).reshape(B, h + 1, w + 1, 4 * C)
    by_cell = kernel.reshape(2, 2, 2, 2, C, F).swapaxes(1, 2).reshape(16 * C, F)
    return _windows(cells) @ by_cell


def conv_transpose4s2(x: jax.Array, kernel: jax.Array, lowering: Lowering = "auto") -> jax.Array:
    """Doubles a feature map: PyTorch's ConvTranspose2d with kernel 4, stride 2, padding 1.

    out[o] = sum of kernel[o + 1 - 2 i] x[i] along either side: row 2 i + p (p = 0, 1) has tap 3 - p
    on input row i - 1 + p and tap 1 - p on input row i + p. No tap ever meets an inserted zero.

    Args:
      x: (B, H, W, C).
      kernel: (4, 4, C, F), of the same dtype as ``x``; input channels before output channels.
      lowering: "matmul" (one product, then overlapping sums), "lax" (library convolution) or
        "auto", which is "matmul" on CPU and "lax" elsewhere.

    Returns:
      (B, 2H, 2W, F).

    Raises:
      ValueError: if ``lowering`` is not one of the three.
    """
    _check(x, kernel)
    B, H, W, C = x.shape
    if not _use_matmul(lowering):
        return jax.lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=_DIMENSIONS
        )
    F = kernel.shape[-1]
    # Product first, shifts after: the shifted arrays have 16 F channels. Gathering the windows
    # first shifts 16 C, and a decoder's F is the smaller (about 3 times faster on CPU).
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(C, 16 * F)
    phases = products.reshape(B, H, W, 4, 4, F)
    phases = _sum_taps(_sum_taps(phases, side=1, tap=3), side=2, tap=4)  # (B, H, W, 2, 2, F)
    return phases.swapaxes(2, 3).reshape(B, 2 * H, 2 * W, F)


class Conv4S2(nn.Module):
    """Linen layer of :func:`conv4s2`, initialised as PyTorch initialises Conv2d.

    Attributes:
      features: F, the number of output channels.
      use_bias: whether a bias is added.
      lowering: see :func:`conv4s2`.
      dtype: compute type; None promotes the input with the float32 parameters.
    """

    features: int
    use_bias: bool = False
    lowering: Lowering = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., H, W, C) to (..., H/2, W/2, F); H and W must be even (ValueError)."""
        return _layer(self, conv4s2, x, fan_in=16 * x.shape[-1])


class ConvTranspose4S2(nn.Module):
    """Linen layer of :func:`conv_transpose4s2`, initialised as PyTorch initialises ConvTranspose2d.

    PyTorch stores that kernel as (C, F, 4, 4) and reads the fan-in off its second axis, so the
    bound is 1 / sqrt(16 F), of the *output* channels.

    Attributes:
      features: F, the number of output channels.
      use_bias: whether a bias is added.
      lowering: see :func:`conv_transpose4s2`.
      dtype: compute type; None promotes the input with the float32 parameters.
    """

    features: int
    use_bias: bool = False
    lowering: Lowering = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., H, W, C) to (..., 2H, 2W, F)."""
        return _layer(self, conv_transpose4s2, x, fan_in=16 * self.features)


def _layer(
    module: Conv4S2 | ConvTranspose4S2,
    convolution: Callable[[jax.Array, jax.Array, Lowering], jax.Array],
    x: jax.Array,
    fan_in: int,
) -> jax.Array:
    """The body that both layers share: parameters, compute type and leading axes."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    kernel = module.param("kernel", uniform, (4, 4, x.shape[-1], module.features))
    bias = module.param("bias", uniform, (module.features,)) if module.use_bias else None
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=module.dtype)
    *leading, H, W, C = x.shape
    y = convolution(x.reshape(math.prod(leading), H, W, C), kernel, module.lowering)
    if bias is not None:
        y = y + bias
    return y.reshape(*leading, *y.shape[1:])


def _check(x: jax.Array, kernel: jax.Array) -> None:
    chex.assert_rank(x, 4)
    chex.assert_shape(kernel, (4, 4, x.shape[-1], None))
    chex.assert_type(kernel, x.dtype)


def _use_matmul(lowering: Lowering) -> bool:
    if lowering not in ("auto", "matmul", "lax"):
        raise ValueError(f"lowering is {lowering!r}; choose 'auto', 'matmul' or 'lax'.")
    # On CPU the gradient of a library convolution is about 20 times slower inside lax.scan than
    # outside it, and a matrix product is not; accelerators do the library's convolution best.
    return lowering == "matmul" or (lowering == "auto" and jax.default_backend() == "cpu")


def _windows(x: jax.Array) -> jax.Array:
    """All 2x2 windows of (B, h + 1, w + 1, C), window rows before columns: (B, h, w, 4C)."""
    return jnp.concatenate([x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]], axis=-1)


def _sum_taps(products: jax.Array, side: int, tap: int) -> jax.Array:
    """Adds the four taps of one side into its even and odd output phase (axis ``tap``: 4 to 2)."""

    def shift(x: jax.Array, by: int) -> jax.Array:
        padding = [(0, 0, 0)] * x.ndim
        padding[side] = (by, -by, 0)  # a negative padding drops what was shifted out
        return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)

    k0, k1, k2, k3 = jnp.unstack(products, axis=tap)
    return jnp.stack([k1 + shift(k3, 1), k2 + shift(k0, -1)], axis=tap)
