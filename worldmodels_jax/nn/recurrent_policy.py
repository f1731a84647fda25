"""The recurrent network of policies that act on frames: convolutions, an LSTM, two linear heads.

That of IRIS (Micheli et al., 2023) and of Delta-IRIS (2024), which differ in the convolutions.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.conv import torch_uniform
from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.resnet import Conv, FrameEncoder

LSTMState = tuple[jax.Array, jax.Array]  # h, c, each (B, H) float32


class LSTMCell(nn.Module):
    """An LSTM cell with the parameters and first weights of PyTorch's, two biases among them.

        i, f, g, o = split(W x + b + U h + d),   c' = sigma(f) c + sigma(i) tanh(g)
        h' = sigma(o) tanh(c')

    Attributes:
      width: H.
      dtype: compute type of the products; the state stays float32.
    """

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, state: LSTMState, x: jax.Array) -> LSTMState:
        """``(h, c), (B, F) -> (h', c')``."""
        h, c = state
        init = torch_uniform(self.width)

        def linear(name: str) -> Dense:
            return Dense(
                4 * self.width, kernel_init=init, bias_init=init, dtype=self.dtype, name=name
            )

        gates = (linear("input")(x) + linear("recurrent")(h)).astype(jnp.float32)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        return nn.sigmoid(o) * jnp.tanh(c), c


class RecurrentPolicy(nn.Module):
    """Convolutions, an LSTM, a policy and a value head.

    Attributes:
      encoder: ``resnet``, Delta-IRIS's `FrameEncoder`; or ``pool``, IRIS's 3x3 convolutions, each
        followed by a 2x2 max-pool and ReLU, on frames in [-1, 1].
      channels: of each level.
      latent: channels of the map (resnet).
      halve_after: levels that end in a halving (resnet).
      patch: side of the patches at the entrance, 1 for none (resnet).
      width: H, of the LSTM.
      actions: outputs of the policy head.
      values: outputs of the value head.
      zero_value: start the value head at zero.
      dtype: compute type; heads and states are float32.
    """

    encoder: Literal["resnet", "pool"]
    channels: tuple[int, ...]
    latent: int
    halve_after: tuple[int, ...]
    patch: int
    width: int
    actions: int
    values: int
    zero_value: bool
    dtype: Any = None

    def setup(self) -> None:
        if self.encoder == "resnet":
            self.convolutions: Any = FrameEncoder(
                self.channels, self.latent, self.halve_after, self.patch, self.dtype
            )
        else:
            self.convolutions = [Conv(channels, dtype=self.dtype) for channels in self.channels]
        self.cell = LSTMCell(self.width, self.dtype)
        init = torch_uniform(self.width)
        self.policy = Dense(self.actions, kernel_init=init, bias_init=init)
        zero = nn.initializers.zeros
        value = {} if self.zero_value else {"kernel_init": init, "bias_init": init}
        self.value = Dense(self.values, **{"kernel_init": zero, "bias_init": zero, **value})

    def encode(self, frames: jax.Array) -> jax.Array:
        """Frames ``(..., H, W, C)`` in [0, 1] to ``(..., F)``."""
        *leading, height, width, channels = frames.shape
        x = frames.reshape(-1, height, width, channels)
        if self.encoder == "resnet":
            x = self.convolutions(x)
        else:
            x = 2.0 * x - 1.0
            for convolution in self.convolutions:
                x = nn.relu(nn.max_pool(convolution(x), (2, 2), (2, 2)))
        return x.reshape(*leading, -1)

    def step(self, state: LSTMState, encoded: jax.Array) -> LSTMState:
        """``(h, c), (B, F) -> (h', c')``; h' is what the heads see."""
        return self.cell(state, encoded)

    def heads(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``(..., H) -> (..., actions), (..., values)``, float32."""
        return self.policy(hidden), self.value(hidden)

    def __call__(self, frames: jax.Array, state: LSTMState) -> tuple[jax.Array, jax.Array]:
        """The heads' outputs at frames ``(B, H, W, C)``."""
        return self.heads(self.step(state, self.encode(frames))[0])
