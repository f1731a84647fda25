"""The discrete autoencoder of Delta-IRIS: frames given the frame and the action before them.

Micheli et al. (2024), section 3.1 and table 2. Encoder and decoder both see x_{t-1} and a_{t-1}, so
that the few tokens of x_t need only say what these do not determine. ``kind="frame"`` is the same
network without that conditioning: the tokens say everything.
"""

import math
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.quantiser import FrameCodes, FrameTokenizer, Quantiser
from worldmodels_jax.nn.resnet import FrameDecoder, FrameEncoder, patchify, unpatchify

_NORMAL = nn.initializers.normal(0.02)


class DeltaTokenizer(FrameTokenizer):
    """ResNet autoencoder with N tokens, each a square patch of the latent map.

    A token's patch is flattened (row, column, channel), projected to a code's size, quantised
    (`Quantiser`, ``cosine_ema``), and projected back. Actions are maps looked up in a table, one
    channel for the encoder and ``action_channels`` for the decoder, which also sees x_{t-1} through
    an encoder of its own.

    Attributes:
      kind: ``delta`` or ``frame``; the latter takes neither x_{t-1} nor a_{t-1}.
      image_size: S; frames are S x S.
      image_channels: C.
      num_actions: A.
      num_tokens: N, a square number.
      num_codes: V.
      code_size: K.
      encoder_channels: of each level, see `FrameEncoder`.
      latent: channels of the latent map.
      embedder_channels: of the decoder's view of x_{t-1}.
      embedder_latent: channels of that view.
      action_channels: of the decoder's action map.
      decoder_channels: of each level, see `FrameDecoder`.
      halve_after: levels that end in a halving, for all three networks.
      patch: side of the patches at the entrance of all three networks.
      commitment: weight of the commitment loss.
      revival_limit: see `quantiser.update_codebook`.
      axis_name: mapped axis over which the codebook's updates are summed.
      dtype: compute dtype.
    """

    kind: Literal["delta", "frame"]
    image_size: int
    image_channels: int
    num_actions: int
    num_tokens: int
    num_codes: int
    code_size: int
    encoder_channels: tuple[int, ...]
    latent: int
    embedder_channels: tuple[int, ...]
    embedder_latent: int
    action_channels: int
    decoder_channels: tuple[int, ...]
    halve_after: tuple[int, ...]
    patch: int
    commitment: float
    revival_limit: int | None = None
    axis_name: str | None = None
    dtype: Any = None

    def setup(self) -> None:
        common: dict[str, Any] = {
            "halve_after": self.halve_after,
            "patch": self.patch,
            "dtype": self.dtype,
        }
        self.encoder = FrameEncoder(self.encoder_channels, self.latent, **common)
        self.decoder = FrameDecoder(self.decoder_channels, self.image_channels, **common)
        if self.kind == "delta":
            self.embedder = FrameEncoder(self.embedder_channels, self.embedder_latent, **common)
            self.encoder_actions = self._table(self.image_size**2)
            self.decoder_actions = self._table(self.action_channels * self.latent_size**2)
        self.to_code = Dense(self.code_size, kernel_init=_NORMAL, dtype=self.dtype)
        self.from_code = Dense(
            self.token_size**2 * self.latent, kernel_init=_NORMAL, dtype=self.dtype
        )
        self.quantiser = Quantiser(
            "cosine_ema",
            self.num_codes,
            self.code_size,
            self.commitment,
            self.revival_limit,
            self.axis_name,
        )

    def _table(self, features: int) -> nn.Embed:
        return nn.Embed(self.num_actions, features, embedding_init=_NORMAL, dtype=self.dtype)

    @property
    def latent_size(self) -> int:
        """Side of the latent map."""
        return self.image_size // (self.patch * 2 ** len(self.halve_after))

    @property
    def token_size(self) -> int:
        """Side of the patch of the latent map that one token stands for."""
        return self.latent_size // math.isqrt(self.num_tokens)

    def encode(
        self,
        frame: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> FrameCodes:
        """Tokens of frames.

        Args:
          frame: ``(..., S, S, C)`` in [0, 1], x_t.
          previous: the same shape, x_{t-1}; ignored by ``kind="frame"``.
          action: ``(...)`` int32, a_{t-1}; ignored by ``kind="frame"``.

        Returns:
          The codes ``(..., N)``.
        """
        chex.assert_shape(frame, (..., self.image_size, self.image_size, self.image_channels))
        inputs: list[Any] = [frame]
        if self.kind == "delta":
            chex.assert_equal_shape([frame, previous])
            action_map = self.encoder_actions(action).reshape(*frame.shape[:-1], 1)
            inputs = [previous, action_map, frame]
        x = jnp.concatenate(inputs, -1)
        x = self.encoder(x.reshape(-1, *x.shape[-3:]))
        tokens = patchify(x, self.token_size).reshape(*frame.shape[:-3], self.num_tokens, -1)
        return self.quantiser.encode(self.to_code(tokens))

    def decode(
        self,
        vectors: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> jax.Array:
        """Frames of codes.

        Args:
          vectors: ``(..., N, K)``.
          previous: ``(..., S, S, C)`` in [0, 1], x_{t-1}; ignored by ``kind="frame"``.
          action: ``(...)`` int32, a_{t-1}; ignored by ``kind="frame"``.

        Returns:
          ``(..., S, S, C)`` float32, not confined to [0, 1].
        """
        chex.assert_shape(vectors, (..., self.num_tokens, self.code_size))
        leading, side = vectors.shape[:-2], math.isqrt(self.num_tokens)
        x = self.from_code(vectors).reshape(-1, side, side, self.token_size**2 * self.latent)
        inputs: list[Any] = [unpatchify(x, self.token_size)]
        if self.kind == "delta":
            frame_shape = (self.image_size, self.image_size, self.image_channels)
            chex.assert_shape(previous, (*leading, *frame_shape))
            map_shape = (self.latent_size, self.latent_size, self.action_channels)
            inputs = [
                self.embedder(jnp.asarray(previous).reshape(-1, *frame_shape)),
                self.decoder_actions(action).reshape(-1, *map_shape),
                *inputs,
            ]
        x = self.decoder(jnp.concatenate(inputs, -1))
        return x.reshape(*leading, *x.shape[1:])
