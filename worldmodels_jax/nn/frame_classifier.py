"""A transformer that classifies sequences of frames by the hidden states of their tokens.

The classifier of extreme events of NowcastingGPT-EVL (Meo, 2026, chapter 3): a vision transformer
whose patches are frames.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.transformer import GPT_STD, BidirectionalTransformer


class FrameClassifier(nn.Module):
    """LN, linear, LN of each frame's states; class token, positions, transformer, LN, linear.

    Attributes:
      width: of the transformer.
      layers: of the transformer.
      heads: attention heads; must divide the width.
      hidden: units of its feed-forward layers.
      classes: number of logits.
      dtype: compute dtype; logits are float32.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    classes: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        """``(B, T, F) -> (B, classes)`` float32, F the states of a frame's tokens in one vector."""
        chex.assert_rank(states, 3)
        batch, frames, _ = states.shape
        normal = nn.initializers.normal(GPT_STD)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        x = Dense(self.width, dtype=self.dtype, name="in")(norm("norm_states")(states))
        x = norm("norm_in")(x)
        token = self.param("class_token", normal, (1, 1, self.width), jnp.float32)
        positions = self.param("positions", normal, (frames + 1, self.width), jnp.float32)
        x = jnp.concatenate([jnp.repeat(token.astype(x.dtype), batch, 0), x], 1)
        x = BidirectionalTransformer(
            self.layers,
            self.heads,
            self.hidden,
            attention_bias=False,
            dtype=self.dtype,
            name="transformer",
        )(x + positions.astype(x.dtype))
        x = norm("norm_out")(x)[:, 0].astype(jnp.float32)
        return Dense(self.classes, dtype=jnp.float32, name="out")(x)
