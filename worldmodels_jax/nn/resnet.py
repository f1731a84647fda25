"""Residual convolution blocks and the frame encoder and decoder made of them.

Those of Delta-IRIS (Micheli et al., 2024): two 3x3 convolutions a block, each after GroupNorm and
SiLU. Convolutions of disjoint patches, 1x1 ones among them, are matrix products on every backend.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.conv import convolve, torch_uniform
from worldmodels_jax.nn.dense import product
from worldmodels_jax.nn.same_conv import conv_same, upsample_conv

Convolve = Callable[[jax.Array, jax.Array], jax.Array]


def patchify(x: jax.Array, size: int) -> jax.Array:
    """Space to depth: ``(..., H, W, C) -> (..., H/s, W/s, s s C)``, rows before columns before C.

    Raises:
      ValueError: if a side is not a multiple of the patch.
    """
    *leading, height, width, channels = x.shape
    if height % size or width % size:
        raise ValueError(
            f"a map of {height}x{width} cannot be cut into patches of {size}x{size}: choose sizes "
            "that divide one another (image_size, patch, the halvings, the grid of tokens)."
        )
    x = x.reshape(*leading, height // size, size, width // size, size, channels)
    return x.swapaxes(-4, -3).reshape(*leading, height // size, width // size, -1)


def unpatchify(x: jax.Array, size: int) -> jax.Array:
    """The inverse of ``patchify``: ``(..., h, w, s s C) -> (..., h s, w s, C)``."""
    *leading, height, width, _ = x.shape
    x = x.reshape(*leading, height, width, size, size, -1)
    return x.swapaxes(-4, -3).reshape(*leading, height * size, width * size, -1)


def conv_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution whose stride is the kernel's side: one matrix product of disjoint patches.

    Args:
      x: ``(..., H, W, C)``, H and W multiples of k.
      kernel: ``(k, k, C, F)``.

    Returns:
      ``(..., H/k, W/k, F)``.
    """
    return product(patchify(x, kernel.shape[0]), kernel.reshape(-1, kernel.shape[-1]))


class Conv(nn.Module):
    """A convolution with bias, initialised as PyTorch initialises Conv2d.

    Attributes:
      features: F.
      size: k, the side of the kernel.
      convolution: of ``x (B, H, W, C)`` and ``kernel (k, k, C, F)``.
      dtype: compute type; None promotes the input with the float32 parameters.
    """

    features: int
    size: int = 3
    convolution: Convolve = conv_same
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., H, W, C) -> (..., H', W', F)``."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = torch_uniform(self.size**2 * x.shape[-1])
        return convolve(self, self.convolution, x, shape, init, init)


def group_norm(channels: int, epsilon: float, dtype: Any, name: str) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of as many as a smaller number of channels can be split into.

    That is the largest power of two up to 32 that divides the channels.
    """
    groups = math.gcd(channels, 32)
    return nn.GroupNorm(num_groups=groups, epsilon=epsilon, dtype=dtype, name=name)


class ResBlock(nn.Module):
    """``x' + Conv(SiLU(GN(Conv(SiLU(GN(x))))))`` with 3x3 convolutions.

    x' is x, or a 1x1 convolution of it where the number of channels changes.

    Attributes:
      features: output channels.
      epsilon: of GroupNorm.
      dtype: compute type.
    """

    features: int
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(B, H, W, C) -> (B, H, W, features)``."""
        y = x
        for i in range(2):
            norm = group_norm(y.shape[-1], self.epsilon, self.dtype, f"norm_{i}")
            y = Conv(self.features, dtype=self.dtype, name=f"conv_{i}")(nn.silu(norm(y)))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, conv_patches, self.dtype, name="skip")(x)
        return x + y


class FrameEncoder(nn.Module):
    """Residual blocks of given channels, some of them followed by a halving.

    3x3 convolution (or disjoint patches) to the first level's channels; per level a `ResBlock` and,
    if it is among ``halve_after``, a 2x2 convolution of stride 2; GN, SiLU, 3x3 convolution.

    Attributes:
      channels: of each level.
      latent: channels of the output.
      halve_after: indices of the levels that end in a halving.
      patch: side of the disjoint patches the image is cut into at the entrance; 1 for none.
      dtype: compute type.
    """

    channels: tuple[int, ...]
    latent: int
    halve_after: tuple[int, ...] = ()
    patch: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(B, H, W, C) -> (B, H/s, W/s, latent)``, s = patch times 2 per halving."""
        entrance = (3, conv_same) if self.patch == 1 else (self.patch, conv_patches)
        x = Conv(self.channels[0], *entrance, self.dtype, name="in")(x)
        for level, channels in enumerate(self.channels):
            x = ResBlock(channels, dtype=self.dtype, name=f"block_{level}")(x)
            if level in self.halve_after:
                x = Conv(channels, 2, conv_patches, self.dtype, name=f"halve_{level}")(x)
        x = nn.silu(group_norm(x.shape[-1], 1e-5, self.dtype, "norm_out")(x))
        return Conv(self.latent, dtype=self.dtype, name="out")(x)


class FrameDecoder(nn.Module):
    """The encoder's levels in reverse, with a doubling for each halving.

    A doubling is a 3x3 convolution of the map with every pixel repeated along either side. The
    block of a level leads to the channels of the level before it. With patches, the last
    convolution gives all pixels of a patch. No activation at the end.

    Attributes:
      channels: of the encoder's levels.
      features: channels of the image.
      halve_after: as in the encoder.
      patch: as in the encoder.
      dtype: compute type.
    """

    channels: tuple[int, ...]
    features: int
    halve_after: tuple[int, ...] = ()
    patch: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(B, h, w, latent) -> (B, h s, w s, features)`` float32."""
        x = Conv(self.channels[-1], dtype=self.dtype, name="in")(x)
        for level in reversed(range(len(self.channels))):
            if level in self.halve_after:
                x = Conv(x.shape[-1], 3, upsample_conv, self.dtype, name=f"double_{level}")(x)
            features = self.channels[max(level - 1, 0)]
            x = ResBlock(features, dtype=self.dtype, name=f"block_{level}")(x)
        x = nn.silu(group_norm(x.shape[-1], 1e-5, self.dtype, "norm_out")(x))
        x = Conv(self.patch**2 * self.features, dtype=self.dtype, name="out")(x)
        return unpatchify(x, self.patch).astype(jnp.float32)
