"""The MaskGIT prior head: tokens of the next latent given a hidden state and the visible tokens.

GIT-STORM section 5.3.2 with the open values from the public TECO and GIT-STORM codes (the spec's
section 5). With N = V = 32, D = 512 and the defaults below it has 458,784 parameters.
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.chunks import module_in_chunks
from worldmodels_jax.nn.dense import Dense, product
from worldmodels_jax.nn.transformer import BidirectionalTransformer

_CHUNK = 262_144  # numbers of a layer that are worked on at once, which then stay in the cache


class MaskGITHead(nn.Module):
    """Bidirectional transformer over token embeddings and slices of the hidden state.

    Attributes:
      num_tokens: N.
      num_classes: V; the token V is ``[MASK]``.
      width: E, the embedding and transformer width.
      layers: transformer layers.
      heads: attention heads.
      hidden: units of the transformer's feed-forward layer.
      condition: ``"slice"`` gives token i the i-th of N equal slices of h; ``"broadcast"`` gives
        the whole of h to every token.
      tied_logits: logits are dot products with the embedding table (weight tying); otherwise a
        Dense layer.
      dtype: compute dtype; logits are float32.
    """

    num_tokens: int
    num_classes: int
    width: int = 128
    layers: int = 4
    heads: int = 8
    hidden: int = 128
    condition: Literal["slice", "broadcast"] = "slice"
    tied_logits: bool = True
    dtype: Any = None

    def setup(self) -> None:
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param(
            "embedding", normal, (self.num_classes + 1, self.width), jnp.float32
        )
        self.positions = self.param("positions", normal, (self.num_tokens, self.width), jnp.float32)
        # Dense(concat(embedding, h_i)) split in two, so that h is projected once per step however
        # many rounds of decoding follow.
        self.mix_tokens = Dense(self.width, dtype=self.dtype)
        self.mix_hidden = Dense(self.width, use_bias=False, dtype=self.dtype)
        self.transformer = BidirectionalTransformer(
            self.layers, self.heads, self.hidden, dtype=self.dtype
        )
        self.out = [Dense(self.width, dtype=self.dtype) for _ in range(2)]
        self.out_norm = [nn.LayerNorm(dtype=self.dtype) for _ in range(2)]
        if self.tied_logits:
            self.bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        else:
            self.to_logits = Dense(self.num_classes, dtype=jnp.float32)

    def project(self, hidden: jax.Array) -> jax.Array:
        """What of the hidden state reaches each token: ``(B, D) -> (B, N or 1, E)``.

        Raises:
          ValueError: if ``condition="slice"`` and N does not divide D.
        """
        if self.condition == "broadcast":
            return self.mix_hidden(hidden)[:, None]
        batch, width = hidden.shape
        if width % self.num_tokens:
            raise ValueError(
                f"condition='slice' cuts the hidden state into one slice per token, and "
                f"{self.num_tokens} tokens do not divide a width of {width}: change model.width or "
                "use condition='broadcast'."
            )
        return self.mix_hidden(hidden.reshape(batch, self.num_tokens, width // self.num_tokens))

    def logits(self, tokens: jax.Array, projected: jax.Array) -> jax.Array:
        """Logits of every token given the visible ones, for decoding.

        On a CPU so few rows at a time that a layer's numbers stay in the cache; gradients are
        faster of all rows at once, as ``__call__`` takes them.

        Args:
          tokens: ``(B, N)`` int32; V stands for ``[MASK]``.
          projected: what ``project`` returned.

        Returns:
          ``(B, N, V)`` float32.
        """
        chex.assert_shape(tokens, (projected.shape[0], self.num_tokens))
        size = max(1, _CHUNK // (self.num_tokens * max(self.width, self.hidden)))
        return module_in_chunks(
            lambda head, rows: head._logits(*rows), self, (tokens, projected), size
        )

    def _logits(self, tokens: jax.Array, projected: jax.Array) -> jax.Array:
        x = self.embedding[tokens] + self.positions
        x = self.transformer(self.mix_tokens(x) + projected)
        for dense, norm in zip(self.out, self.out_norm, strict=True):
            x = norm(nn.gelu(dense(x)))
        x = x.astype(jnp.float32)
        if self.tied_logits:
            return product(x, self.embedding[: self.num_classes].T) + self.bias
        return self.to_logits(x)

    def __call__(self, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
        """``tokens (B, N), hidden (B, D) -> logits (B, N, V)``."""
        return self._logits(tokens, self.project(hidden))
