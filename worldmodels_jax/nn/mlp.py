"""Multi-layer perceptrons in the form of table 5.14: (Linear without bias, LayerNorm, ReLU)×k."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense


class MLP(nn.Module):
    """Hidden layers with LayerNorm and ReLU, then a linear output in float32.

    Attributes:
      width: units of every hidden layer.
      depth: number of hidden layers.
      out_features: size of the output.
      zero_output: start the output layer at zero, so that an untrained head predicts its prior
        (a reward or value of 0, a uniform policy).
      dtype: the compute dtype of the hidden layers; parameters stay float32.
    """

    width: int
    depth: int
    out_features: int
    zero_output: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., F) -> (..., out_features)`` float32."""
        for _ in range(self.depth):
            x = Dense(self.width, use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x))
        init = nn.initializers.zeros if self.zero_output else nn.initializers.lecun_normal()
        return Dense(self.out_features, kernel_init=init, dtype=jnp.float32)(x.astype(jnp.float32))
