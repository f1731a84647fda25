"""The two convolutions of the frame encoder and decoder: kernel 4, stride 2, padding 1.

Each has two lowerings with the same result: the library convolution, and matrix products. Which one
is fast depends on the backend, so "auto" chooses.

One index rule serves both directions: kernel tap k joins pixel o of the fine map and pixel i of the
coarse map where o = 2 i - 1 + k, for rows and columns alike.

The matrix products are those of Winograd's minimal filtering F(2, 2) where the sizes allow it: two
outputs of two taps from three products in place of four, for rows and columns, so 9/16 of the
arithmetic, with sums and differences only (Lavin and Gray, 2015).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from worldmodels_jax.nn.chunks import in_chunks
from worldmodels_jax.nn.dense import product

Lowering = Literal["auto", "matmul", "lax"]

Init = Callable[..., jax.Array]  # (key, shape) -> first values

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_CHUNK = 4096  # pixels of the finer map that are worked on at once, which then stay in the cache
_FEW = 16  # channels of the finer map below which the products are too thin to be worth transforms


def conv4s2(x: jax.Array, kernel: jax.Array, lowering: Lowering = "auto") -> jax.Array:
    """Halves a feature map: convolution with kernel 4, stride 2, padding 1.

    out[o] = sum_k kernel[k] x[2 o - 1 + k] along either side, x being 0 outside.

    Args:
      x: (B, H, W, C), H and W even.
      kernel: (4, 4, C, F), of the same dtype as ``x``.
      lowering: "matmul" (matrix products), "lax" (library convolution) or "auto", which is "matmul"
        on CPU and "lax" elsewhere.

    Returns:
      (B, H/2, W/2, F).

    Raises:
      ValueError: if H or W is odd, or ``lowering`` is not one of the three.
    """
    _check(x, kernel)
    _, H, W, C = x.shape
    if H % 2 or W % 2:
        raise ValueError(
            f"A stride-2 convolution got a feature map of {H}x{W} pixels, but both sides must be "
            "even: pad or resize the frames so that every layer can halve them."
        )
    if not use_matmul(lowering):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS
        )
    winograd = H % 4 == 0 and W % 4 == 0 and C >= _FEW
    return convolve_in_chunks(_winograd if winograd else _patches, x, kernel, H * W)


def conv_transpose4s2(x: jax.Array, kernel: jax.Array, lowering: Lowering = "auto") -> jax.Array:
    """Doubles a feature map: PyTorch's ConvTranspose2d with kernel 4, stride 2, padding 1.

    out[o] = sum of kernel[o + 1 - 2 i] x[i] along either side: row 2 i + p (p = 0, 1) has tap 3 - p
    on input row i - 1 + p and tap 1 - p on input row i + p. No tap ever meets an inserted zero.

    Args:
      x: (B, H, W, C).
      kernel: (4, 4, C, F), of the same dtype as ``x``; input channels before output channels.
      lowering: "matmul" (matrix products), "lax" (library convolution) or "auto", which is "matmul"
        on CPU and "lax" elsewhere.

    Returns:
      (B, 2H, 2W, F).

    Raises:
      ValueError: if ``lowering`` is not one of the three.
    """
    _check(x, kernel)
    _, H, W, _ = x.shape
    if not use_matmul(lowering):
        return jax.lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=_DIMENSIONS
        )
    winograd = H % 2 == 0 and W % 2 == 0 and kernel.shape[-1] >= _FEW
    return convolve_in_chunks(_winograd_transpose if winograd else _products, x, kernel, 4 * H * W)


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
        init = torch_uniform(16 * x.shape[-1])
        return convolve(
            self,
            lambda x, kernel: conv4s2(x, kernel, self.lowering),
            x,
            (4, 4, x.shape[-1], self.features),
            init,
            init if self.use_bias else None,
        )


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
        init = torch_uniform(16 * self.features)
        return convolve(
            self,
            lambda x, kernel: conv_transpose4s2(x, kernel, self.lowering),
            x,
            (4, 4, x.shape[-1], self.features),
            init,
            init if self.use_bias else None,
        )


def torch_uniform(fan_in: int) -> Init:
    """PyTorch's default for kernels and biases: uniform within 1 / sqrt(fan_in) of 0."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def convolve(
    module: nn.Module,
    convolution: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel_shape: tuple[int, ...],
    kernel_init: Init,
    bias_init: Init | None,
) -> jax.Array:
    """The body of every convolution layer: parameters, compute type and leading axes.

    Args:
      module: the layer; has a ``dtype``.
      convolution: ``(x (B, H, W, C), kernel) -> (B, H', W', F)``.
      x: (..., H, W, C).
      kernel_shape: (k, k, C, F).
      kernel_init: first values of the kernel.
      bias_init: of the bias; None for no bias.

    Returns:
      (..., H', W', F).
    """
    kernel = module.param("kernel", kernel_init, kernel_shape)
    bias = module.param("bias", bias_init, kernel_shape[-1:]) if bias_init else None
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=module.dtype)
    *leading, H, W, C = x.shape
    y = convolution(x.reshape(math.prod(leading), H, W, C), kernel)
    if bias is not None:
        y = y + bias
    return y.reshape(*leading, *y.shape[1:])


def _check(x: jax.Array, kernel: jax.Array) -> None:
    chex.assert_rank(x, 4)
    chex.assert_shape(kernel, (4, 4, x.shape[-1], None))
    chex.assert_type(kernel, x.dtype)


def use_matmul(lowering: Lowering) -> bool:
    """Whether a lowering is, here, that of matrix products.

    Raises:
      ValueError: if ``lowering`` is not one of the three.
    """
    if lowering not in ("auto", "matmul", "lax"):
        raise ValueError(f"lowering is {lowering!r}; choose 'auto', 'matmul' or 'lax'.")
    # On CPU the gradient of a library convolution is about 20 times slower inside lax.scan than
    # outside it, and a matrix product is not; accelerators do the library's convolution best.
    return lowering == "matmul" or (lowering == "auto" and jax.default_backend() == "cpu")


def convolve_in_chunks(
    convolution: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    pixels: int,
) -> jax.Array:
    """``convolution(x, kernel)``, so many frames at a time that the finer map's pixels fit."""
    return in_chunks(lambda part: convolution(part, kernel), x, max(1, _CHUNK // pixels))


def _cells(x: jax.Array, after: int = 1) -> jax.Array:
    """Padding and space to depth: (B, 2h, 2w, C) to the (B, h', w', 4C) cells of 2x2 pixels.

    There is a row of zeros before and ``after`` (odd) behind, so h' = h + (1 + after) / 2. A 4x4
    window at stride 2 is a 2x2 window of cells at stride 1, and all these windows are shifted
    slices, with no gather and so no scatter in the gradient.
    """
    B, H, W, C = x.shape
    h, w = (H + 1 + after) // 2, (W + 1 + after) // 2
    padded = jnp.pad(x, ((0, 0), (1, after), (1, after), (0, 0)))
    # Pixels of a row lie together already. Joining the two rows copies long runs; XLA's code for
    # the same as a transposition goes value by value (a sixth of the layer's time on a CPU).
    return jnp.concatenate(jnp.unstack(padded.reshape(B, h, 2, w, 2 * C), axis=2), axis=-1)


def _by_cell(kernel: jax.Array) -> jax.Array:
    """The kernel on cells: (4, 4, C, F) to (2, 2, 4C, F)."""
    C, F = kernel.shape[2:]
    return kernel.reshape(2, 2, 2, 2, C, F).swapaxes(1, 2).reshape(2, 2, 4 * C, F)


def _patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``conv4s2`` as one product of all windows with the kernel."""
    cells = _cells(x)
    windows = [cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]]
    return product(jnp.concatenate(windows, -1), _by_cell(kernel).reshape(-1, kernel.shape[-1]))


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``conv4s2`` for H and W divisible by four, by nine products over tiles of 2x2 outputs.

    Along one side, with cells d0, d1, d2 and taps g0, g1: the outputs are d0 g0 + d1 g1 = m0 + m1
    and d1 g0 + d2 g1 = m1 + m2, where m0 = (d0 - d1) g0, m1 = d1 (g0 + g1), m2 = (d2 - d1) g1.
    """
    B, H, W, _ = x.shape
    taps = _by_cell(kernel)
    rows = []
    for row, row_taps in zip(
        _tiles(_cells(x, after=3), 1), (taps[0], taps[0] + taps[1], taps[1]), strict=True
    ):
        column_taps = (row_taps[0], row_taps[0] + row_taps[1], row_taps[1])
        m = [product(tile, tap) for tile, tap in zip(_tiles(row, 2), column_taps, strict=True)]
        rows.append(jnp.stack([m[0] + m[1], m[1] + m[2]], axis=3))
    y = jnp.stack([rows[0] + rows[1], rows[1] + rows[2]], axis=2)
    return y.reshape(B, H // 2, W // 2, -1)


def _tiles(cells: jax.Array, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """d0 - d1, d1 and d2 - d1 of all tiles along one side, which has an even number of cells."""
    pairs = cells.reshape(*cells.shape[:side], -1, 2, *cells.shape[side + 1 :])
    even, odd = jnp.unstack(pairs, axis=side + 1)
    first, middle, last = (
        jax.lax.slice_in_dim(even, 0, -1, axis=side),
        jax.lax.slice_in_dim(odd, 0, -1, axis=side),
        jax.lax.slice_in_dim(even, 1, None, axis=side),
    )
    return first - middle, middle, last - middle


def _winograd_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``conv_transpose4s2`` for even H and W: the transpose of ``_winograd`` in its input."""
    B, H, W, _ = x.shape
    fine = jax.ShapeDtypeStruct((B, 2 * H, 2 * W, kernel.shape[-1]), x.dtype)
    (y,) = jax.linear_transpose(lambda fine: _winograd(fine, kernel.swapaxes(2, 3)), fine)(x)
    return y


def _products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``conv_transpose4s2`` as one product with the whole kernel, then overlapping sums."""
    B, H, W, C = x.shape
    F = kernel.shape[-1]
    # Product first, shifts after: the shifted arrays have 16 F channels. Gathering the windows
    # first shifts 16 C, and a decoder's F is the smaller (about 3 times faster on CPU).
    products = product(x, kernel.transpose(2, 0, 1, 3).reshape(C, 16 * F))
    phases = products.reshape(B, H, W, 4, 4, F)
    phases = _sum_taps(_sum_taps(phases, side=1, tap=3), side=2, tap=4)  # (B, H, W, 2, 2, F)
    return phases.swapaxes(2, 3).reshape(B, 2 * H, 2 * W, F)


def _sum_taps(products: jax.Array, side: int, tap: int) -> jax.Array:
    """Adds the four taps of one side into its even and odd output phase (axis ``tap``: 4 to 2)."""

    def shift(x: jax.Array, by: int) -> jax.Array:
        padding = [(0, 0, 0)] * x.ndim
        padding[side] = (by, -by, 0)  # a negative padding drops what was shifted out
        return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)

    k0, k1, k2, k3 = jnp.unstack(products, axis=tap)
    return jnp.stack([k1 + shift(k3, 1), k2 + shift(k0, -1)], axis=tap)
