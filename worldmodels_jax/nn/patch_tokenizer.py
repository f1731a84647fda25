"""A small discrete autoencoder of frames: one token a patch, no convolution at full resolution.

What a CPU spends its time on in a VQGAN is its first and last layers; here a patch is cut out and
projected at once.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.quantiser import FrameCodes, FrameTokenizer
from worldmodels_jax.nn.resnet import Conv, conv_patches, unpatchify
from worldmodels_jax.nn.seeded_quantiser import euclidean_quantiser


class PatchTokenizer(FrameTokenizer):
    """Patches of p x p pixels, each a token; with the methods of `DeltaTokenizer`, single frames.

    Encoder: patches projected to a width, ``x + Conv3x3(SiLU(x))``, SiLU and a linear layer to the
    code; the decoder is its mirror. There is no normalisation: how much it rains in a frame would
    be divided out.

    Attributes:
      image_size: ``(H, W)``, multiples of the patch.
      image_channels: C.
      patch: p.
      width: channels of the map of patches.
      num_codes: V.
      code_size: K.
      commitment: weight of the commitment loss.
      reseed_every: see `SeededQuantiser`; 0 for codes that only their gradient moves.
      reseed_below: see `SeededQuantiser`.
      axis_name: mapped axis over which the use of codes is counted.
      dtype: compute dtype.
    """

    image_size: tuple[int, int]
    image_channels: int
    patch: int
    width: int
    num_codes: int
    code_size: int
    commitment: float
    reseed_every: int = 0
    reseed_below: int = 5
    axis_name: str | None = None
    dtype: Any = None

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def setup(self) -> None:
        def conv(features: int, *size_and_convolution: Any) -> Conv:
            return Conv(features, *size_and_convolution, dtype=self.dtype)

        self.encoder_in = conv(self.width, self.patch, conv_patches)
        self.encoder_residual = conv(self.width)
        self.to_code = conv(self.code_size, 1, conv_patches)
        self.quantiser = euclidean_quantiser(
            self.num_codes,
            self.code_size,
            self.commitment,
            self.reseed_every,
            self.reseed_below,
            self.axis_name,
        )
        self.from_code = conv(self.width, 1, conv_patches)
        self.decoder_residual = conv(self.width)
        self.decoder_out = conv(self.patch**2 * self.image_channels, 1, conv_patches)

    def encode(
        self,
        frame: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> FrameCodes:
        """Tokens of frames ``(..., H, W, C)``; see `DeltaTokenizer.encode`."""
        chex.assert_shape(frame, (..., *self.image_size, self.image_channels))
        x = self.encoder_in(frame.reshape(-1, *frame.shape[-3:]))
        x = x + self.encoder_residual(nn.silu(x))
        codes = self.to_code(nn.silu(x))
        return self.quantiser.encode(codes.reshape(*frame.shape[:-3], -1, self.code_size))

    def decode(
        self,
        vectors: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> jax.Array:
        """Frames ``(..., H, W, C)`` of codes ``(..., N, K)``; see `DeltaTokenizer.decode`."""
        rows, columns = self.cells
        chex.assert_shape(vectors, (..., rows * columns, self.code_size))
        x = self.from_code(vectors.reshape(-1, rows, columns, self.code_size))
        x = x + self.decoder_residual(nn.silu(x))
        x = unpatchify(self.decoder_out(nn.silu(x)), self.patch).astype(jnp.float32)
        return x.reshape(*vectors.shape[:-2], *x.shape[1:])
