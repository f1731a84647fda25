"""DreamerV3's encoder and decoder of frames, in both published versions.

Each stage halves (or doubles) the map and is followed by a norm over channels and SiLU.
``resampling="pool"`` (2024): 5x5 convolutions with 2x2 max-pooling, or after repeating pixels.
``resampling="stride"`` (2023): 4x4 convolutions with stride 2, transposed in the decoder.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.conv import conv4s2, conv_transpose4s2
from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.linear import BlockLinear, Fan, Hidden, Norm, NormKind, kernel_init
from worldmodels_jax.nn.same_conv import Convolution, conv_same, upsample_conv

Resampling = Literal["pool", "stride"]

_SMALLEST, _LARGEST = 3, 16


def coarse_size(size: tuple[int, int], stages: int) -> tuple[int, int]:
    """The size of the coarsest map, after padding frames to a multiple of ``2**stages``.

    Args:
      size: height and width of a frame.
      stages: halvings, at least 1.

    Returns:
      Height and width.

    Raises:
      ValueError: if a side of the coarsest map is outside of 3..16.
    """

    def halved(times: int) -> tuple[int, int]:
        return math.ceil(size[0] / 2**times), math.ceil(size[1] / 2**times)

    def fits(times: int) -> bool:
        return all(_SMALLEST <= side <= _LARGEST for side in halved(times))

    if not fits(stages):
        possible = [times for times in range(1, 10) if fits(times)]
        remedy = (
            f"give model.channels a length of {' or '.join(map(str, possible))}"
            if possible
            else "resize the frames, or flatten them with model.channels=()"
        )
        height, width = halved(stages)
        raise ValueError(
            f"frames of {size[0]}x{size[1]} become maps of {height}x{width} in {stages} stages "
            f"(one for each of model.channels), but their sides must be {_SMALLEST} to {_LARGEST}: "
            f"{remedy}."
        )
    return halved(stages)


class ImageEncoder(nn.Module):
    """Frames to flat vectors.

    Attributes:
      channels: of the stages, each of which halves the frame.
      resampling: how; see the top of this file.
      norm: see ``nn.linear.Norm``.
      fan: see ``nn.linear.kernel_init``.
      dtype: the compute dtype; parameters stay float32.
    """

    channels: tuple[int, ...]
    resampling: Resampling = "pool"
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., H, W, C)`` in [0, 1] ``-> (..., h w channels[-1])``."""
        stages = len(self.channels)
        coarse = coarse_size((x.shape[-3], x.shape[-2]), stages)
        pad = [
            (side << stages) - x.shape[axis] for side, axis in zip(coarse, (-3, -2), strict=True)
        ]
        x = jnp.pad(x - 0.5, [(0, 0)] * (x.ndim - 3) + [(0, pad[0]), (0, pad[1]), (0, 0)])
        convolution, size = (conv_same, 5) if self.resampling == "pool" else (conv4s2, 4)
        for channels in self.channels:
            x = Convolution(
                convolution, size, channels, self.norm == "rms", fan=self.fan, dtype=self.dtype
            )(x)
            if self.resampling == "pool":
                *leading, H, W, C = x.shape
                x = x.reshape(*leading, H // 2, 2, W // 2, 2, C).max((-4, -2))
            x = nn.silu(Norm(self.norm, self.dtype)(x))
        return x.reshape(*x.shape[:-3], -1)


class ImageDecoder(nn.Module):
    """States of the RSSM to frames; the mirror of ``ImageEncoder``.

    The coarsest map is, with pooling, SiLU(norm(BlockLinear(h) + Linear(hidden layer(z)))), each
    block of h making channels of its own; with strides, Linear([h, z]). The output is a sigmoid
    with pooling, and shifted by 1/2 with strides.

    Attributes:
      channels: those of the encoder.
      image_shape: ``(H, W, C)`` of a frame.
      width: units of the hidden layer of z (pooling only).
      blocks: groups of the BlockLinear (pooling only), a divisor of the size of h and of
        ``channels[-1]``.
      resampling: see the top of this file.
      norm: see ``nn.linear.Norm``.
      fan: see ``nn.linear.kernel_init``.
      dtype: the compute dtype; parameters stay float32.
    """

    channels: tuple[int, ...]
    image_shape: tuple[int, int, int]
    width: int
    blocks: int = 8
    resampling: Resampling = "pool"
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, deter: jax.Array, stoch: jax.Array) -> jax.Array:
        """``(..., D), (..., N V) -> (..., H, W, C)`` float32."""
        pool = self.resampling == "pool"
        x = self._from_blocks(deter, stoch) if pool else self._from_all(deter, stoch)
        convolution, size = (upsample_conv, 5) if pool else (conv_transpose4s2, 4)

        def double(x: jax.Array, channels: int, use_bias: bool) -> jax.Array:
            return Convolution(
                convolution, size, channels, use_bias, fan=self.fan, dtype=self.dtype
            )(x)

        for channels in reversed(self.channels[:-1]):
            x = double(x, channels, self.norm == "rms")
            x = nn.silu(Norm(self.norm, self.dtype)(x))
        height, width, channels = self.image_shape
        x = double(x, channels, True)[..., :height, :width, :].astype(jnp.float32)
        return nn.sigmoid(x) if pool else x + 0.5

    def _from_blocks(self, deter: jax.Array, stoch: jax.Array) -> jax.Array:
        (height, width), channels = self._coarse(), self.channels[-1]
        units = height * width * channels
        x = BlockLinear(units, self.blocks, self.fan, self.dtype)(deter)
        x = x.reshape(*x.shape[:-1], self.blocks, height, width, channels // self.blocks)
        x = jnp.moveaxis(x, -4, -2).reshape(*deter.shape[:-1], height, width, channels)
        y = Hidden(self.width, 1, self.norm, self.fan, self.dtype)(stoch)
        x = x + self._linear(units)(y).reshape(x.shape)
        return nn.silu(Norm(self.norm, self.dtype)(x))

    def _from_all(self, deter: jax.Array, stoch: jax.Array) -> jax.Array:
        grid = (*self._coarse(), self.channels[-1])
        x = self._linear(math.prod(grid))(jnp.concatenate([deter, stoch], -1))
        return x.reshape(*x.shape[:-1], *grid)

    def _coarse(self) -> tuple[int, int]:
        return coarse_size(self.image_shape[:2], len(self.channels))

    def _linear(self, features: int) -> Dense:
        return Dense(features, kernel_init=kernel_init(self.fan), dtype=self.dtype)
