"""DreamerV3's layers: Linear -> norm -> SiLU, in stacks, and the block-diagonal Linear.

In the version of 2024 the norm is RMSNorm and kernels are scaled by their fan-in; in that of 2023
it is LayerNorm, after a Linear without bias, and the fan is the average of both sides.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from worldmodels_jax.nn.dense import Dense

NormKind = Literal["rms", "layer"]
Fan = Literal["fan_in", "fan_avg"]


def kernel_init(fan: Fan = "fan_in", scale: float = 1.0) -> nn.initializers.Initializer:
    """Normal numbers truncated at two deviations, of standard deviation ``scale / sqrt(fan)``.

    Args:
      fan: what the deviation is scaled by. All axes of a kernel but the last two count in either
        fan, as a convolution's window does.
      scale: 0 starts an output layer at zero, so that an untrained head predicts nothing.

    Returns:
      A flax initialiser.
    """
    if scale == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, fan, "truncated_normal")


class Norm(nn.Module):
    """RMSNorm (epsilon 1e-4, learned scale) or LayerNorm (1e-3, scale and offset) of channels.

    Attributes:
      kind: which of the two.
      dtype: the compute dtype; statistics are float32.
    """

    kind: NormKind = "rms"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., F) -> (..., F)``."""
        if self.kind == "rms":
            return nn.RMSNorm(epsilon=1e-4, dtype=self.dtype)(x)
        return nn.LayerNorm(epsilon=1e-3, dtype=self.dtype)(x)


class Hidden(nn.Module):
    """A stack of hidden layers, each Linear -> norm -> SiLU.

    Attributes:
      width: units of every layer.
      depth: number of layers; 0 is the identity.
      norm: see ``Norm``.
      fan: see ``kernel_init``.
      dtype: the compute dtype; parameters stay float32.
    """

    width: int
    depth: int = 1
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., F) -> (..., width)``."""
        for _ in range(self.depth):
            # LayerNorm has an offset of its own.
            x = Dense(
                self.width,
                use_bias=self.norm == "rms",
                kernel_init=kernel_init(self.fan),
                dtype=self.dtype,
            )(x)
            x = nn.silu(Norm(self.norm, self.dtype)(x))
        return x


class SiluMLP(nn.Module):
    """Hidden layers, then a linear output in float32.

    Attributes:
      width: units of every hidden layer.
      depth: number of hidden layers.
      out_features: size of the output.
      output_scale: scales the output layer's first kernel; 0 predicts 0 (or the uniform).
      norm: see ``Norm``.
      fan: see ``kernel_init``.
      dtype: the compute dtype of the hidden layers; parameters stay float32.
    """

    width: int
    depth: int
    out_features: int
    output_scale: float = 1.0
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., F) -> (..., out_features)`` float32."""
        x = Hidden(self.width, self.depth, self.norm, self.fan, self.dtype)(x)
        init = kernel_init(self.fan, self.output_scale)
        return Dense(self.out_features, kernel_init=init, dtype=jnp.float32)(x.astype(jnp.float32))


class BlockLinear(nn.Module):
    """A Linear whose weights are block-diagonal: G groups of inputs make G groups of outputs.

    The fan of its kernel counts the inputs of all blocks, as in the original: an output's first
    deviation is 1 / sqrt(G) of a dense layer's.

    Attributes:
      features: size of the output, a multiple of G.
      blocks: G.
      fan: see ``kernel_init``.
      dtype: the compute dtype; parameters stay float32.
    """

    features: int
    blocks: int
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., F) -> (..., features)``, groups contiguous on either side.

        Raises:
          ValueError: if F or ``features`` is not a multiple of ``blocks``.
        """
        if x.shape[-1] % self.blocks or self.features % self.blocks:
            raise ValueError(
                f"{x.shape[-1]} inputs and {self.features} outputs cannot both be split into "
                f"{self.blocks} blocks: choose multiples of it, or fewer blocks."
            )
        groups = x.reshape(*x.shape[:-1], self.blocks, -1)
        shape = (self.blocks, groups.shape[-1], self.features // self.blocks)
        kernel = self.param("kernel", kernel_init(self.fan), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        groups, kernel, bias = promote_dtype(groups, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("...gi,gio->...go", groups, kernel)
        return y.reshape(*x.shape[:-1], self.features) + bias
