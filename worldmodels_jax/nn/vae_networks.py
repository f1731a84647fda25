"""Encoders and decoders of variational autoencoders, and FactorVAE's discriminator.

The convolutional pair is Locatello et al.'s (2019): 766,295 parameters for 10 latents and 64x64x3
pixels. The fully connected pair is for images of any small size. K is the number of latents; an
encoder returns (..., 2K), means and then log-variances, a decoder logits of pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.conv import conv4s2, conv_transpose4s2, convolve
from worldmodels_jax.nn.dense import Dense

Distribution = Literal["normal", "uniform"]


def he_init(distribution: Distribution, variance: float = 2.0) -> nn.initializers.Initializer:
    """First values of a kernel, of a given variance times its fan-in; 0 starts at zero."""
    if variance == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(variance, "fan_in", distribution)


class DenseStack(nn.Module):
    """Dense layers with (leaky) ReLU, then a linear output in float32.

    Attributes:
      widths: units of the hidden layers.
      out_features: size of the output.
      slope: of the activation below 0; 0 is ReLU.
      distribution: of the kernels' first values, of variance 2 / fan_in.
      last_variance: of the output layer's, times its fan-in; 0 starts it at zero.
      dtype: the compute dtype of the hidden layers; parameters stay float32.
    """

    widths: tuple[int, ...]
    out_features: int
    slope: float = 0.0
    distribution: Distribution = "uniform"
    last_variance: float = 2.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., F) -> (..., out_features)`` float32."""
        for width in self.widths:
            x = Dense(width, kernel_init=he_init(self.distribution), dtype=self.dtype)(x)
            x = nn.leaky_relu(x, self.slope)
        init = he_init(self.distribution, self.last_variance)
        last = Dense(self.out_features, kernel_init=init, dtype=jnp.float32)
        return last(x.astype(jnp.float32))


class HeConvolution(nn.Module):
    """A convolution of ``nn.conv``, kernel 4 and stride 2, with He-uniform kernel and zero bias.

    Attributes:
      convolution: ``conv4s2`` or ``conv_transpose4s2``.
      features: F.
      fan_channels: channels that the fan-in counts, times 16: C, but in the reference code, whose
        framework stores a transposed kernel with its output channels second, F for those.
      dtype: the compute dtype; parameters stay float32.
    """

    convolution: Callable[[jax.Array, jax.Array], jax.Array]
    features: int
    fan_channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., H, W, C) to (..., H', W', F)."""
        bound = math.sqrt(6 / (16 * self.fan_channels))

        def init(key: jax.Array, shape: Sequence[int]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        shape = (4, 4, x.shape[-1], self.features)
        zeros = functools.partial(nn.initializers.zeros, dtype=jnp.float32)
        return convolve(self, self.convolution, x, shape, init, zeros)


class ConvTrunk(nn.Module):
    """The convolutional encoder up to its last hidden layer.

    Attributes:
      channels: of each level, which halves the map.
      hidden: units of the dense layer behind them.
      dtype: the compute dtype; parameters stay float32.
    """

    channels: tuple[int, ...] = (32, 32, 64, 64)
    hidden: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., H, W, C) -> (..., hidden)``; sides must be multiples of 2^levels (ValueError)."""
        for features in self.channels:
            x = nn.relu(HeConvolution(conv4s2, features, x.shape[-1], self.dtype)(x))
        x = x.reshape(*x.shape[:-3], -1)
        return nn.relu(Dense(self.hidden, kernel_init=he_init("uniform"), dtype=self.dtype)(x))


class ConvEncoder(nn.Module):
    """Convolutions, a dense layer and the parameters of a Gaussian.

    Attributes:
      num_latents: K.
      channels: see ``ConvTrunk``.
      hidden: see ``ConvTrunk``.
      dtype: the compute dtype of all but the last layer; parameters stay float32.
    """

    num_latents: int
    channels: tuple[int, ...] = (32, 32, 64, 64)
    hidden: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., H, W, C)`` in [0, 1] to ``(..., 2K)`` float32."""
        x = ConvTrunk(self.channels, self.hidden, self.dtype)(x)
        return DenseStack((), 2 * self.num_latents)(x)


class ConvDecoder(nn.Module):
    """The mirror image of ``ConvEncoder``.

    Attributes:
      shape: (H, W, C) of the image.
      channels: of the encoder, from the finest level to the coarsest.
      hidden: units of the first dense layer.
      dtype: the compute dtype; parameters stay float32.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 32, 64, 64)
    hidden: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """``(..., K) -> (..., H, W, C)`` logits, float32."""
        height, width = (side // 2 ** len(self.channels) for side in self.shape[:2])
        coarse = (height, width, self.channels[-1])
        for units in (self.hidden, math.prod(coarse)):
            z = nn.relu(Dense(units, kernel_init=he_init("uniform"), dtype=self.dtype)(z))
        x = z.reshape(*z.shape[:-1], *coarse)
        for features in self.channels[-2::-1]:
            x = nn.relu(HeConvolution(conv_transpose4s2, features, features, self.dtype)(x))
        last = HeConvolution(conv_transpose4s2, self.shape[-1], self.shape[-1], self.dtype)
        return last(x).astype(jnp.float32)


class MlpEncoder(nn.Module):
    """Dense layers on all pixels and the parameters of a Gaussian.

    Attributes:
      num_latents: K.
      widths: units of the hidden layers.
      dtype: the compute dtype of all but the last layer; parameters stay float32.
    """

    num_latents: int
    widths: tuple[int, ...] = (256, 128)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., H, W, C)`` in [0, 1] to ``(..., 2K)`` float32."""
        stack = DenseStack(self.widths, 2 * self.num_latents, 0.0, "normal", 0.5, self.dtype)
        return stack(x.reshape(*x.shape[:-3], -1))


class MlpDecoder(nn.Module):
    """The mirror image of ``MlpEncoder``.

    Attributes:
      shape: (H, W, C) of the image.
      widths: of the encoder's hidden layers, in its order.
      dtype: the compute dtype of all but the last layer; parameters stay float32.
    """

    shape: tuple[int, ...]
    widths: tuple[int, ...] = (256, 128)
    dtype: Any = None

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """``(..., K) -> (..., H, W, C)`` logits, float32."""
        size = math.prod(self.shape)
        stack = DenseStack(self.widths[::-1], size, 0.0, "normal", 0.5, self.dtype)
        return stack(z).reshape(*z.shape[:-1], *self.shape)


def factor_discriminator(width: int = 1000, depth: int = 6, dtype: Any = None) -> DenseStack:
    """FactorVAE's discriminator, (..., K) to 2 logits: of q(z), and of latents permuted.

    Its last layer starts at zero, so that at first it knows nothing: a total correlation of 0.

    Args:
      width: units of every hidden layer.
      depth: number of hidden layers, leaky ReLU of slope 0.2.
      dtype: the compute dtype of the hidden layers.
    """
    return DenseStack((width,) * depth, 2, slope=0.2, last_variance=0.0, dtype=dtype)
