"""The transformers of IRIS and Delta-IRIS: what a step is made of, and which slot predicts what.

IRIS (Micheli et al., 2023): a step is the block [z_t^1 .. z_t^K, a_t]; every slot but that of z^K
predicts the next token. Delta-IRIS (2024): [I_t, a_t, z_{t+1}^1 .. z_{t+1}^K], I_t a continuous
embedding of the frame; the slot of a_t predicts z_{t+1}^1 and that of z^k predicts z^{k+1}. In
either the slot of a_t predicts the reward and the end on arrival at t + 1.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.resnet import FrameEncoder
from worldmodels_jax.nn.transformer import GPT_STD, KVCache, PredictionHead, gpt

_NORMAL = nn.initializers.normal(GPT_STD)


class Slots(NamedTuple):
    """Logits of a sequence, float32; T' is T for IRIS and T - 1, from the second frame, else."""

    tokens: jax.Array  # (B, T', K, N codes)
    reward: jax.Array  # (B, T-1, R)
    termination: jax.Array  # (B, T-1, 2), the second class is the end


class Dynamics(nn.Module):
    """What both have: tables of actions and tokens, the transformer, three heads.

    Attributes:
      num_actions: A.
      num_tokens: K, tokens of a frame.
      num_codes: N, values of a token.
      reward_classes: R.
      max_blocks: time steps that the position table has room for.
      width: D.
      layers: of the transformer.
      heads: attention heads.
      dropout: rate on embeddings, attention weights and residual branches.
      dtype: compute dtype.
    """

    num_actions: int
    num_tokens: int
    num_codes: int
    reward_classes: int
    max_blocks: int
    width: int
    layers: int
    heads: int
    dropout: float = 0.0
    dtype: Any = None

    @property
    def block(self) -> int:
        """Tokens of the sequence per time step."""
        return self.num_tokens + 1

    @property
    def max_tokens(self) -> int:
        """Rows of the position table."""
        return self.max_blocks * self.block

    def setup(self) -> None:
        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, self.width, embedding_init=_NORMAL, dtype=self.dtype)

        def head(features: int) -> PredictionHead:
            return PredictionHead(self.width, features, self.dtype)

        self.actions = table(self.num_actions)
        self.codes = table(self.num_codes)
        self.transformer = gpt(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            max_length=self.max_tokens,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.token_head = head(self.num_codes)
        self.reward_head = head(self.reward_classes)
        self.termination_head = head(2)

    def embed_actions(self, action: jax.Array) -> jax.Array:
        """``(...) int32 -> (..., D)``."""
        return self.actions(action)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """``(...) int32 -> (..., D)``."""
        return self.codes(tokens)

    def feed(
        self,
        x: jax.Array,
        segments: jax.Array,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Any]:
        """Hidden states ``(B, S, D)`` of embedded tokens, see `CausalTransformer`."""
        return self.transformer(x, segments, cache, deterministic)

    def token_logits(self, hidden: jax.Array) -> jax.Array:
        """Of the next token: ``(..., D) -> (..., N)``."""
        return self.token_head(hidden)

    def outcome_logits(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of reward and end, from the slot of an action: ``(..., R), (..., 2)``."""
        return self.reward_head(hidden), self.termination_head(hidden)


class IrisDynamics(Dynamics):
    """The transformer of IRIS."""

    def sequence(
        self, tokens: jax.Array, actions: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Blocks [z_t, a_t] of T - 1 steps and the tokens of the last frame.

        Args:
          tokens: ``(B, T, K)`` int32.
          actions: ``(B, T-1)`` int32.
          segments: ``(B, T)`` int32.

        Returns:
          Embedded tokens ``(B, S, D)`` and their segments ``(B, S)``, S = (K + 1) T - 1.
        """
        batch, length, _ = tokens.shape
        chex.assert_shape(actions, (batch, length - 1))
        # Of the last step the action is not known yet: a stand-in that is cut off.
        padded = jnp.pad(self.embed_actions(actions), ((0, 0), (0, 1), (0, 0)))
        blocks = jnp.concatenate([self.embed_tokens(tokens), padded[:, :, None]], 2)
        x = blocks.reshape(batch, length * self.block, self.width)[:, :-1]
        return x, jnp.repeat(segments, self.block, axis=1)[:, :-1]

    def predict(
        self,
        tokens: jax.Array,
        actions: jax.Array,
        segments: jax.Array,
        deterministic: bool = True,
    ) -> Slots:
        """Logits of all tokens of T frames; of those of the first token of the first, nothing.

        Args:
          tokens: ``(B, T, K)`` int32.
          actions: ``(B, T-1)`` int32.
          segments: ``(B, T)`` int32.
          deterministic: no dropout.
        """
        batch, length, _ = tokens.shape
        x, segments = self.sequence(tokens, actions, segments)
        hidden, _ = self.feed(x, segments, None, deterministic)
        # Each token is predicted by the slot before it; of the first there is none.
        before = jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))
        slots = before.reshape(batch, length, self.block, self.width)[:, :, : self.num_tokens]
        at_action = hidden[:, self.num_tokens :: self.block]
        return Slots(self.token_logits(slots), *self.outcome_logits(at_action))

    def __call__(self, tokens: jax.Array, actions: jax.Array, segments: jax.Array) -> Slots:
        """The same as `predict`."""
        return self.predict(tokens, actions, segments)


class DeltaDynamics(Dynamics):
    """The transformer of Delta-IRIS.

    Without I-tokens at every step the sequence begins with that of the first frame. An episode
    that begins within the sequence has no slot of its own for one: it is added to the embedding of
    the episode's first action.

    Attributes:
      i_tokens: at every step, or at the first only.
      frame_channels: of the levels of the network that embeds frames, see `FrameEncoder`.
      frame_latent: channels of its map.
      frame_halve_after: its levels that end in a halving.
      frame_patch: side of the patches at its entrance.
    """

    i_tokens: bool = True
    frame_channels: tuple[int, ...] = ()
    frame_latent: int = 1
    frame_halve_after: tuple[int, ...] = ()
    frame_patch: int = 1

    @property
    def block(self) -> int:
        """Tokens of the sequence per time step."""
        return self.num_tokens + 1 + int(self.i_tokens)

    @property
    def max_tokens(self) -> int:
        """Rows of the position table."""
        return self.max_blocks * self.block + int(not self.i_tokens)

    def setup(self) -> None:
        super().setup()
        self.frame_encoder = FrameEncoder(
            self.frame_channels,
            self.frame_latent,
            self.frame_halve_after,
            self.frame_patch,
            self.dtype,
        )
        self.to_width = Dense(self.width, kernel_init=_NORMAL, dtype=self.dtype)
        self.frame_norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)

    def embed_frames(self, frames: jax.Array) -> jax.Array:
        """I-tokens: ``(..., S, S, C) in [0, 1] -> (..., D)``."""
        x = self.frame_encoder(frames.reshape(-1, *frames.shape[-3:]))
        x = x.reshape(*frames.shape[:-3], -1)
        if x.shape[-1] != self.width:
            x = self.to_width(x)
        return self.frame_norm(x)

    def beginnings(self, embedded: jax.Array, segments: jax.Array) -> jax.Array:
        """I-tokens ``(B, T, D)`` of frames that begin an episode within the sequence, else 0."""
        begins = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
        return jnp.where(begins[..., None], embedded, 0.0)

    def sequence(
        self, embedded: jax.Array, actions: jax.Array, tokens: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The blocks of n steps, and the I-token of a last frame if there is one more of them.

        Args:
          embedded: ``(B, T, D)`` I-tokens, T = n or n + 1.
          actions: ``(B, n)`` int32.
          tokens: ``(B, n, K)`` int32, of what each action led to.
          segments: ``(B, T)`` int32.

        Returns:
          Embedded tokens ``(B, S, D)`` and their segments ``(B, S)``.
        """
        batch, steps, _ = tokens.shape
        chex.assert_shape(actions, (batch, steps))
        action = self.embed_actions(actions)
        if not self.i_tokens:
            action = action + self.beginnings(embedded, segments)[:, :steps].astype(action.dtype)
        parts = [action[:, :, None], self.embed_tokens(tokens)]
        if self.i_tokens:
            parts.insert(0, embedded[:, :steps, None])
        blocks = jnp.concatenate(parts, 2).reshape(batch, steps * self.block, self.width)
        of_blocks = jnp.repeat(segments[:, :steps], self.block, axis=1)
        if self.i_tokens:
            x = jnp.concatenate([blocks, embedded[:, steps:]], 1)
            return x, jnp.concatenate([of_blocks, segments[:, steps:]], 1)
        x = jnp.concatenate([embedded[:, :1], blocks], 1)
        return x, jnp.concatenate([segments[:, :1], of_blocks], 1)

    def predict(
        self,
        frames: jax.Array,
        actions: jax.Array,
        tokens: jax.Array,
        segments: jax.Array,
        deterministic: bool = True,
    ) -> Slots:
        """Logits of what n actions lead to.

        Args:
          frames: ``(B, n, S, S, C)`` in [0, 1], from which the actions are taken.
          actions: ``(B, n)`` int32.
          tokens: ``(B, n, K)`` int32, of what each action led to.
          segments: ``(B, n)`` int32.
          deterministic: no dropout.
        """
        batch, steps, _ = tokens.shape
        x, segments = self.sequence(self.embed_frames(frames), actions, tokens, segments)
        hidden, _ = self.feed(x, segments, None, deterministic)
        blocks = hidden[:, int(not self.i_tokens) :].reshape(batch, steps, self.block, self.width)
        # From the slot of the action on; the last token's predicts nothing.
        slots = blocks[:, :, int(self.i_tokens) : -1]
        return Slots(self.token_logits(slots), *self.outcome_logits(slots[:, :, 0]))

    def __call__(
        self, frames: jax.Array, actions: jax.Array, tokens: jax.Array, segments: jax.Array
    ) -> Slots:
        """The same as `predict`."""
        return self.predict(frames, actions, tokens, segments)
