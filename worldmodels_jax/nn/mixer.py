"""State mixers: how a latent and an action become the token(s) the causal transformer consumes.

Table 5.11 of GIT-STORM is ``concat``; the others are the comparisons of its figures 5.14 and 5.15.
The paper names those variants without giving layers; what is written here keeps the width of
``concat`` and changes only where the action meets the latent.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense

Mixing = Literal["concat", "concat_attention", "cross_attention", "unmixed", "ivideogpt"]


class StateMixer(nn.Module):
    """Maps latent vectors and actions to the transformer's input tokens.

    Variants:
      ``concat``: flatten, concatenate the action, two linear layers (table 5.11).
      ``concat_attention``: the N latent tokens and one action token attend to one another first.
      ``cross_attention``: the latent tokens are queries, the A components of the action are keys.
      ``ivideogpt``: a linear embedding of the action is added to every latent token's embedding.
      ``unmixed``: latent and action are two consecutive tokens of the sequence.

    Attributes:
      kind: one of the variants.
      width: D.
      heads: heads of the attention variants.
      token_width: width of a latent token's embedding in the variants that treat tokens singly.
      dtype: compute dtype.
    """

    kind: Mixing
    width: int
    heads: int = 8
    token_width: int = 64
    dtype: Any = None

    @property
    def tokens_per_step(self) -> int:
        """Sequence tokens per time step: 2 for ``unmixed``, else 1."""
        return 2 if self.kind == "unmixed" else 1

    @nn.compact
    def __call__(self, vectors: jax.Array, action: jax.Array) -> jax.Array:
        """Mix.

        Args:
          vectors: ``(B, T, N, K)`` latents.
          action: ``(B, T, A)``, one-hot or continuous.

        Returns:
          ``(B, T, tokens_per_step, D)``.
        """

        def dense(features: int, name: str) -> Dense:
            return Dense(features, use_bias=False, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

        flat = vectors.reshape(*vectors.shape[:2], -1)
        if self.kind == "concat":
            x = dense(self.width, "in")(jnp.concatenate([flat, action], -1))
        elif self.kind == "unmixed":
            both = jnp.stack(
                [dense(self.width, "latent")(flat), dense(self.width, "action")(action)], 2
            )
            return norm("norm_out")(both)
        else:
            x = dense(self.width, "in")(
                self._per_token(vectors, action).reshape((*flat.shape[:2], -1))
            )
        x = nn.relu(norm("norm_in")(x))
        return norm("norm_out")(dense(self.width, "out")(x))[:, :, None]

    def _per_token(self, vectors: jax.Array, action: jax.Array) -> jax.Array:
        """``(B, T, N, token_width)``: latent tokens after meeting the action."""
        tokens = Dense(self.token_width, dtype=self.dtype, name="token")(vectors)
        if self.kind == "ivideogpt":
            embedded = Dense(self.token_width, dtype=self.dtype, name="token_action")(action)
            return tokens + embedded[:, :, None]
        positions = self.param(
            "token_positions",
            nn.initializers.normal(0.02),
            (tokens.shape[2], self.token_width),
            jnp.float32,
        )
        tokens = tokens + positions.astype(tokens.dtype)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, deterministic=True, name="token_attention"
        )
        if self.kind == "concat_attention":
            embedded = Dense(self.token_width, dtype=self.dtype, name="token_action")(action)
            everything = jnp.concatenate([tokens, embedded[:, :, None]], axis=2)
            return tokens + attention(tokens, everything)
        directions = self.param(
            "action_tokens",
            nn.initializers.normal(1.0),
            (action.shape[-1], self.token_width),
            jnp.float32,
        )
        components = action[..., None].astype(tokens.dtype) * directions.astype(tokens.dtype)
        return tokens + attention(tokens, components)
