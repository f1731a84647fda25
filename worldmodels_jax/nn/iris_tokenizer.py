"""The discrete autoencoder of IRIS: single frames, in the manner of VQGAN.

Micheli et al. (2023), after Esser et al. (2021): residual blocks of constant width, self-attention
at some resolutions and in the middle, one token per cell of the latent map.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.conv import conv4s2
from worldmodels_jax.nn.quantiser import FrameCodes, FrameTokenizer
from worldmodels_jax.nn.resnet import Conv, ResBlock, conv_patches, group_norm
from worldmodels_jax.nn.same_conv import upsample_conv
from worldmodels_jax.nn.seeded_quantiser import euclidean_quantiser

_EPSILON = 1e-6


def _halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution of stride 2 after one row and one column of zeros below and to the right.

    out[o] = sum_k kernel[k] x[2 o + k], which is ``conv4s2`` with a first tap of zero.
    """
    return conv4s2(x, jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))))


class _SelfAttention(nn.Module):
    """``x + Proj(attention(GN(x)))`` over the pixels of a map, one head, 1x1 convolutions."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        normed = group_norm(channels, _EPSILON, self.dtype, "norm")(x)

        def project(name: str) -> jax.Array:
            y = Conv(channels, 1, conv_patches, self.dtype, name=name)(normed)
            return y.reshape(batch, height * width, 1, channels)

        y = jax.nn.dot_product_attention(project("query"), project("key"), project("value"))
        return x + Conv(channels, 1, conv_patches, self.dtype, name="out")(y.reshape(x.shape))


class _Level(nn.Module):
    """Residual blocks of one resolution, with self-attention after each or none."""

    channels: int
    blocks: int
    attention: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = ResBlock(self.channels, _EPSILON, self.dtype, name=f"block_{i}")(x)
            if self.attention:
                x = _SelfAttention(self.dtype, name=f"attention_{i}")(x)
        return x


class _Middle(nn.Module):
    """Residual block, self-attention, residual block."""

    channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResBlock(self.channels, _EPSILON, self.dtype, name="block_0")(x)
        x = _SelfAttention(self.dtype, name="attention")(x)
        return ResBlock(self.channels, _EPSILON, self.dtype, name="block_1")(x)


class IrisTokenizer(FrameTokenizer):
    """VQGAN-style autoencoder with the methods of `DeltaTokenizer`, always of single frames.

    As many halvings as lead from S x S pixels to sqrt(N) x sqrt(N) latent cells; inside, frames are
    scaled to [-1, 1]. The quantiser is the ``euclidean`` one, between two 1x1 convolutions.

    Attributes:
      image_size: S.
      image_channels: C.
      num_tokens: N, a square number; S / sqrt(N) must be a power of two.
      num_codes: V.
      code_size: K.
      channels: of every level, or of each from the image's on.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      attention_sizes: sides of the maps whose levels have self-attention.
      latent: channels of the latent map.
      commitment: weight of the commitment loss.
      reseed_every: see `SeededQuantiser`; 0 for codes that only their gradient moves.
      reseed_below: see `SeededQuantiser`.
      axis_name: mapped axis over which the use of codes is counted.
      dtype: compute dtype.
    """

    image_size: int
    image_channels: int
    num_tokens: int
    num_codes: int
    code_size: int
    channels: int | tuple[int, ...]
    blocks: int
    attention_sizes: tuple[int, ...]
    latent: int
    commitment: float
    reseed_every: int = 0
    reseed_below: int = 5
    axis_name: str | None = None
    dtype: Any = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the maps, from the image's to the latent's."""
        halvings = (self.image_size // math.isqrt(self.num_tokens)).bit_length() - 1
        return tuple(self.image_size >> i for i in range(halvings + 1))

    def setup(self) -> None:
        sizes, widths = self.sizes, self.channels
        if isinstance(widths, int):
            widths = (widths,) * len(sizes)

        def conv(features: int, *size_and_convolution: Any) -> Conv:
            return Conv(features, *size_and_convolution, dtype=self.dtype)

        def levels(blocks: int) -> list[_Level]:
            return [
                _Level(width, blocks, size in self.attention_sizes, self.dtype)
                for width, size in zip(widths, sizes, strict=True)
            ]

        def norm(width: int, name: str) -> nn.GroupNorm:
            return group_norm(width, _EPSILON, self.dtype, name)

        self.encoder_in = conv(widths[0])
        self.encoder_levels = levels(self.blocks)
        self.halve = [conv(width, 3, _halve) for width in widths[:-1]]
        self.encoder_middle = _Middle(widths[-1], self.dtype)
        self.encoder_norm = norm(widths[-1], "encoder_norm")
        self.encoder_out = conv(self.latent)
        self.to_code = conv(self.code_size, 1, conv_patches)
        self.quantiser = euclidean_quantiser(
            self.num_codes,
            self.code_size,
            self.commitment,
            self.reseed_every,
            self.reseed_below,
            self.axis_name,
        )
        self.from_code = conv(self.latent, 1, conv_patches)
        self.decoder_in = conv(widths[-1])
        self.decoder_middle = _Middle(widths[-1], self.dtype)
        self.decoder_levels = levels(self.blocks + 1)
        # Each before the level of finer maps, so with the channels of the level of coarser ones.
        self.double = [conv(width, 3, upsample_conv) for width in widths[1:]]
        self.decoder_norm = norm(widths[0], "decoder_norm")
        self.decoder_out = conv(self.image_channels)

    def encode(
        self,
        frame: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> FrameCodes:
        """Tokens of frames ``(..., S, S, C)`` in [0, 1]; see `DeltaTokenizer.encode`."""
        chex.assert_shape(frame, (..., self.image_size, self.image_size, self.image_channels))
        x = self.encoder_in(2.0 * frame.reshape(-1, *frame.shape[-3:]) - 1.0)
        for i, level in enumerate(self.encoder_levels):
            x = level(x)
            if i < len(self.halve):
                x = self.halve[i](x)
        x = self.encoder_out(nn.silu(self.encoder_norm(self.encoder_middle(x))))
        codes = self.to_code(x).reshape(*frame.shape[:-3], self.num_tokens, self.code_size)
        return self.quantiser.encode(codes)

    def decode(
        self,
        vectors: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> jax.Array:
        """Frames ``(..., S, S, C)`` of codes ``(..., N, K)``; see `DeltaTokenizer.decode`."""
        chex.assert_shape(vectors, (..., self.num_tokens, self.code_size))
        side = self.sizes[-1]
        x = self.from_code(vectors.reshape(-1, side, side, self.code_size))
        x = self.decoder_middle(self.decoder_in(x))
        for i in reversed(range(len(self.decoder_levels))):
            x = self.decoder_levels[i](x)
            if i > 0:
                x = self.double[i - 1](x)
        x = self.decoder_out(nn.silu(self.decoder_norm(x))).astype(jnp.float32)
        return ((x + 1.0) / 2.0).reshape(*vectors.shape[:-2], *x.shape[1:])
