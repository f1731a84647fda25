"""The observation module: a discrete autoencoder of single frames, categorical or VQ.

GIT-STORM tables 5.9 and 5.10 for 64x64 pixels; the same blocks with fewer levels serve small
grids, and an MLP serves vector observations. Both quantisers stand behind one interface: a
``Posterior`` of N one-hot tokens of V classes and the *vectors* that decoder, dynamics and agent
consume (the tokens themselves for the categorical VAE, codebook rows for the VQ).
"""

import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.chunks import module_in_chunks
from worldmodels_jax.nn.conv import Conv4S2, ConvTranspose4S2
from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.mlp import MLP
from worldmodels_jax.ops import categorical, twohot
from worldmodels_jax.ops.frames import from_uint8

_CHUNK = 262_144  # pixels that are encoded at once


class Posterior(NamedTuple):
    """q(z | o): distribution, sample, and the sample as other parts consume it."""

    probs: jax.Array  # (..., N, V), one-hot for the VQ, whose posterior is deterministic
    tokens: jax.Array  # (..., N, V) hard one-hot sample, no gradient
    vectors: jax.Array  # (..., N, K) straight-through sample; K = V or the size of a code
    loss: jax.Array  # () what the quantiser adds to the loss; 0 for the categorical


def padded_size(size: tuple[int, int], levels: int) -> tuple[int, int]:
    """The size of an image after zero-padding to a multiple of ``2**levels``.

    Raises:
      ValueError: if more than half of a side would be padding.
    """
    cell = 2**levels
    height, width = (math.ceil(side / cell) * cell for side in size)
    if height > 2 * size[0] or width > 2 * size[1]:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} is too small for an encoder of {levels} levels, each "
            f"of which halves it: give model.channels at most "
            f"{max(1, int(math.log2(2 * min(size))))} entries."
        )
    return height, width


class ConvEncoder(nn.Module):
    """Blocks of Conv(4, 2, 1, no bias) + BatchNorm + ReLU, then a flat vector (table 5.9)."""

    channels: tuple[int, ...]
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``(..., H, W, C)`` in [0, 1] ``-> (..., F)``."""
        size = x.shape[-3:-1]
        target = padded_size((size[0], size[1]), len(self.channels))
        pad = [(0, 0)] * (x.ndim - 3) + [(0, target[i] - size[i]) for i in range(2)] + [(0, 0)]
        x = jnp.pad(x, pad)
        for channels in self.channels:
            x = Conv4S2(channels, dtype=self.dtype)(x)
            x = nn.relu(_batch_norm(train, self.axis_name, self.dtype)(x))
        return x.reshape(*x.shape[:-3], -1)


def _encode(encoder: ConvEncoder, x: jax.Array) -> jax.Array:
    """Of frames 0..255, in inference; on a CPU so few at a time that they stay in the cache."""
    *leading, height, width, channels = x.shape
    count, size = math.prod(leading), max(1, _CHUNK // (height * width))
    rows = x.reshape(count, height, width, channels)
    y = module_in_chunks(
        lambda encoder, frames: encoder(from_uint8(frames), False), encoder, rows, size
    )
    return y.reshape(*leading, -1)


class ConvDecoder(nn.Module):
    """Mirror of the encoder (table 5.10); the last layer has a bias and no activation."""

    channels: tuple[int, ...]
    image_shape: tuple[int, int, int]
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``(..., F) -> (..., H, W, C)`` float32."""
        height, width, out_channels = self.image_shape
        levels = len(self.channels)
        target = padded_size((height, width), levels)
        grid = (target[0] >> levels, target[1] >> levels, self.channels[-1])
        x = Dense(math.prod(grid), use_bias=False, dtype=self.dtype)(x)
        x = x.reshape(*x.shape[:-1], *grid)
        x = nn.relu(_batch_norm(train, self.axis_name, self.dtype)(x))
        for channels in reversed(self.channels[:-1]):
            x = ConvTranspose4S2(channels, dtype=self.dtype)(x)
            x = nn.relu(_batch_norm(train, self.axis_name, self.dtype)(x))
        x = ConvTranspose4S2(out_channels, use_bias=True, dtype=self.dtype)(x)
        return x[..., :height, :width, :].astype(jnp.float32)


def _batch_norm(train: bool, axis_name: str | None, dtype: Any) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=axis_name,
        dtype=dtype,
    )


class Tokenizer(nn.Module):
    """Encoder, quantiser and decoder of single observations.

    Attributes:
      kind: ``"categorical"`` samples N categorical variables with straight-through gradients;
        ``"vq"`` takes the nearest of V codebook rows (table 5.7).
      observation_shape: ``(H, W, C)`` of uint8 frames, or ``(F,)`` of float32 vectors.
      num_tokens: N.
      num_classes: V.
      code_size: size of a VQ code.
      channels: channels of the convolution blocks, one per halving of the image.
      mlp_width: width of the two-layer MLPs that serve vector observations.
      unimix: share of the uniform distribution in the categorical posterior.
      commitment: weight of the VQ commitment loss.
      axis_name: mapped axis over which BatchNorm statistics are averaged in training.
      dtype: compute dtype.
    """

    kind: Literal["categorical", "vq"]
    observation_shape: tuple[int, ...]
    num_tokens: int
    num_classes: int
    code_size: int
    channels: tuple[int, ...]
    mlp_width: int
    unimix: float
    commitment: float = 0.25
    axis_name: str | None = None
    dtype: Any = None

    def setup(self) -> None:
        code = self.num_classes if self.kind == "categorical" else self.code_size
        if len(self.observation_shape) == 3:
            self.encoder = ConvEncoder(self.channels, self.axis_name, self.dtype)
            self.decoder = ConvDecoder(
                self.channels,
                self.observation_shape,
                self.axis_name,
                self.dtype,
            )
            self.to_code = Dense(self.num_tokens * code, dtype=jnp.float32)
        elif len(self.observation_shape) == 1:
            self.encoder = MLP(self.mlp_width, 2, self.num_tokens * code, dtype=self.dtype)
            self.decoder = MLP(self.mlp_width, 2, self.observation_shape[0], dtype=self.dtype)
        else:
            raise ValueError(
                f"observations of shape {self.observation_shape} are neither images (H, W, C) nor "
                "vectors (F,): reshape them in the environment's adapter."
            )
        if self.kind == "vq":
            self.codebook = self.param(
                "codebook",
                nn.initializers.normal(1.0),
                (self.num_classes, self.code_size),
                jnp.float32,
            )

    @property
    def is_image(self) -> bool:
        """Whether observations are frames rather than vectors."""
        return len(self.observation_shape) == 3

    def target(self, observation: jax.Array) -> jax.Array:
        """Observations as the decoder predicts them: pixels in [0, 1], vectors in symlog space."""
        if self.is_image:
            return from_uint8(observation)
        return twohot.symlog(observation.astype(jnp.float32))

    def encode(self, observation: jax.Array, key: jax.Array, train: bool = False) -> Posterior:
        """Encode and sample.

        Args:
          observation: ``(..., *observation_shape)``, uint8 or float32.
          key: a PRNG key.
          train: use and update the batch statistics of BatchNorm.

        Returns:
          The posterior over the leading axes of ``observation``.
        """
        chex.assert_shape(observation, (..., *self.observation_shape))
        if not self.is_image:
            x = self.encoder(self.target(observation))
        else:
            x = observation
            x = self.encoder(self.target(x), True) if train else _encode(self.encoder, x)
            x = self.to_code(x.astype(jnp.float32))
        x = x.reshape(*x.shape[:-1], self.num_tokens, -1)
        return self._categorical(x, key) if self.kind == "categorical" else self._nearest(x)

    def _categorical(self, logits: jax.Array, key: jax.Array) -> Posterior:
        log_probs = categorical.unimix_log_probs(logits, self.unimix)
        classes = categorical.sample_classes(key, jax.lax.stop_gradient(log_probs))
        tokens = jax.nn.one_hot(classes, self.num_classes)
        probs = jnp.exp(log_probs)
        vectors = categorical.straight_through(tokens, probs)
        return Posterior(probs, tokens, vectors, jnp.zeros(()))

    def _nearest(self, code: jax.Array) -> Posterior:
        distance = (
            (code**2).sum(-1, keepdims=True)
            - 2.0 * code @ self.codebook.T
            + (self.codebook**2).sum(-1)
        )
        classes = jnp.argmin(distance, axis=-1)
        tokens = jax.lax.stop_gradient(jax.nn.one_hot(classes, self.num_classes))
        nearest = tokens @ self.codebook
        sg = jax.lax.stop_gradient
        loss = (sg(code) - nearest) ** 2 + self.commitment * (code - sg(nearest)) ** 2
        # The mean over tokens and dimensions: summed, it outweighs the pixels and every code
        # collapses to one.
        loss = loss.mean()
        return Posterior(tokens, tokens, code + sg(nearest - code), loss)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """One-hot tokens ``(..., N, V)`` to vectors ``(..., N, K)``, without gradient tricks."""
        return tokens if self.kind == "categorical" else tokens @ self.codebook

    def decode(self, vectors: jax.Array, train: bool = False) -> jax.Array:
        """Vectors ``(..., N, K)`` to the space of ``target``: ``(..., *observation_shape)``."""
        flat = vectors.reshape(*vectors.shape[:-2], -1)
        return self.decoder(flat, train) if self.is_image else self.decoder(flat)

    def __call__(self, observation: jax.Array, key: jax.Array, train: bool = False) -> jax.Array:
        """Reconstruct observations, in the space of ``target``."""
        return self.decode(self.encode(observation, key, train).vectors, train)
