"""Causal transformer with a true key/value cache, and a bidirectional transformer.

The causal one has learned positions and, by default, the post-norm layers of tables 5.12 and 5.13
of GIT-STORM; with ``pre_norm`` it has those of GPT-2, which IRIS and Delta-IRIS take.
One method consumes a *chunk* of tokens against an optional cache, so the full forward pass, the
parallel prefill and the single decode step are the same code.
"""

import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense

GPT_STD = 0.02  # of the normal numbers that GPT-2's kernels and tables start from


class KVCache(NamedTuple):
    """Projected keys and values of the tokens consumed so far.

    Slots are filled in order of position; the length is fixed, bounded by the position table. A
    slot belongs to a *segment* (an episode): a query attends to slots of its own segment only.

    Heads come before slots, as the products of attention want them: with slots first XLA transposes
    the whole cache for every token, which takes longer than the attention. Every layer has arrays
    of its own, since a slice of a common one would be copied.
    """

    keys: tuple[jax.Array, ...]  # K layers, (B, heads, M, head_dim) each
    values: tuple[jax.Array, ...]  # K layers, (B, heads, M, head_dim) each
    segments: jax.Array  # (B, M) int32, -1 where the slot is empty
    position: jax.Array  # () int32, tokens consumed


def init_cache(
    *, layers: int, batch: int, length: int, heads: int, head_dim: int, dtype: Any = jnp.float32
) -> KVCache:
    """An empty cache for ``length`` tokens."""

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((batch, heads, length, head_dim), dtype) for _ in range(layers))

    return KVCache(
        keys=zeros(),
        values=zeros(),
        segments=jnp.full((batch, length), -1, jnp.int32),
        position=jnp.zeros((), jnp.int32),
    )


def clear_cache(cache: KVCache) -> KVCache:
    """The same cache with nothing in it."""
    return cache._replace(
        segments=jnp.full_like(cache.segments, -1), position=jnp.zeros_like(cache.position)
    )


def _kernel_init(std: float | None) -> Any:
    return nn.initializers.lecun_normal() if std is None else nn.initializers.normal(std)


class _Attention(nn.Module):
    """Multi-head attention; q, k, v projected from x, keys and values optionally via a cache."""

    heads: int
    use_bias: bool  # of q, k and v
    out_bias: bool | None = None  # of o; None as q, k and v
    dropout: float = 0.0
    init_std: float | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        cache: KVCache | None = None,
        layer: int = 0,
        deterministic: bool = True,
        last: bool = False,  # the last token alone attends
    ) -> tuple[jax.Array, KVCache | None]:
        width = x.shape[-1]
        asking = x[:, -1:] if last else x
        mask = mask[..., -1:, :] if last and mask is not None else mask

        def dense(name: str, use_bias: bool) -> Dense:
            init = _kernel_init(self.init_std)
            return Dense(width, use_bias=use_bias, kernel_init=init, dtype=self.dtype, name=name)

        def project(name: str, x: jax.Array) -> jax.Array:
            y = dense(name, self.use_bias)(x)
            return y.reshape(*x.shape[:-1], self.heads, width // self.heads).swapaxes(1, 2)

        query, key, value = project("query", asking), project("key", x), project("value", x)
        if cache is not None:
            cache = _write(cache, layer, key, value)
            key, value = cache.keys[layer], cache.values[layer]
        out = self._attend(query, key, value, mask, 0.0 if deterministic else self.dropout)
        out_bias = self.use_bias if self.out_bias is None else self.out_bias
        return dense("out", out_bias)(out.swapaxes(1, 2).reshape(asking.shape)), cache

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        dropout: float,
    ) -> jax.Array:
        """Attention of (B, heads, S, head_dim) to (B, heads, M, head_dim); float32 softmax.

        ``jax.nn.dot_product_attention``, which wants tokens before heads, takes a half longer on a
        CPU; its XLA implementation, the default on every device, is these lines.
        """
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
        ) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores)
        if dropout:
            weights = nn.Dropout(dropout, deterministic=False)(weights)
        return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)


def _write(cache: KVCache, layer: int, key: jax.Array, value: jax.Array) -> KVCache:
    """The cache with (B, heads, S, head_dim) keys and values of a layer behind those before."""

    def write(arrays: tuple[jax.Array, ...], new: jax.Array) -> tuple[jax.Array, ...]:
        start = (0, 0, cache.position, 0)
        array = jax.lax.dynamic_update_slice(arrays[layer], new.astype(arrays[layer].dtype), start)
        return (*arrays[:layer], array, *arrays[layer + 1 :])

    return cache._replace(keys=write(cache.keys, key), values=write(cache.values, value))


class CausalTransformer(nn.Module):
    """Causal transformer over embedded tokens.

    Post-norm: ``x + w_pos -> LN``, then per layer ``LN(x + Dropout(W_o MHSA(x)))`` and
    ``LN(x + Dropout(W_2 f(W_1 x)))`` (tables 5.12, 5.13). Pre-norm: ``Dropout(x + w_pos)``, then
    per layer ``x + Dropout(W_o MHSA(LN(x)))`` and ``x + Dropout(W_2 f(W_1 LN(x)))``, at the end LN.

    Attributes:
      width: D.
      layers: K.
      heads: attention heads; must divide D.
      hidden: units of the feed-forward layer.
      max_length: rows of the position table.
      dropout: rate on both residual branches.
      pre_norm: which of the two.
      activation: f; ``gelu`` is the exact one, with the error function.
      attention_bias: whether q, k, v and o have a bias.
      attention_dropout: rate on the attention weights.
      embedding_dropout: rate on ``x + w_pos``; pre-norm only.
      epsilon: of LayerNorm.
      init_std: kernels start from N(0, std^2), biases at 0; None for LeCun's.
      dtype: compute dtype; LayerNorm statistics and softmax are float32.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    max_length: int
    dropout: float = 0.1
    pre_norm: bool = False
    activation: Literal["relu", "gelu"] = "relu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    epsilon: float = 1e-6
    init_std: float | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        cache: KVCache | None = None,
        deterministic: bool = True,
        last: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """Consume a chunk of S tokens.

        Args:
          x: ``(B, S, D)`` embedded tokens, following those already in the cache.
          segments: ``(B, S)`` int32, non-negative; tokens attend within their segment only.
          cache: what was consumed before; None stands for nothing, and nothing is kept.
          deterministic: no dropout.
          last: the hidden state of the last token is all that is asked for, so that the last layer
            need not compute the others'.

        Returns:
          Hidden states ``(B, S, D)``, or ``(B, 1, D)`` of the last, and the extended cache (None if
          none was given).

        Raises:
          ValueError: if the chunk is longer than the position table.
        """
        batch, length, _ = x.shape
        chex.assert_shape(segments, (batch, length))
        if length > self.max_length:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the position table "
                f"({self.max_length} rows): raise model.max_length or shorten the sequence."
            )
        table = self.param(
            "positions", nn.initializers.normal(0.02), (self.max_length, self.width), jnp.float32
        )
        start = jnp.zeros((), jnp.int32) if cache is None else cache.position
        query_slots = start + jnp.arange(length)
        if cache is None:
            key_segments, key_slots = segments, query_slots
        else:
            cache = cache._replace(
                segments=jax.lax.dynamic_update_slice(cache.segments, segments, (0, start))
            )
            key_segments, key_slots = cache.segments, jnp.arange(cache.segments.shape[1])
        mask = (segments[:, :, None] == key_segments[:, None, :]) & (
            key_slots[None, None, :] <= query_slots[None, :, None]
        )

        x = x + jax.lax.dynamic_slice_in_dim(table, start, length)
        if self.pre_norm:
            x = nn.Dropout(self.embedding_dropout, deterministic=deterministic)(x)
        else:
            x = self._norm("norm_in")(x)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        for layer in range(self.layers):
            attention = _Attention(
                self.heads,
                use_bias=self.attention_bias,
                dropout=self.attention_dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                name=f"attention_{layer}",
            )
            norm = self._norm(f"norm_attention_{layer}")
            normed = norm(x) if self.pre_norm else x
            final = last and layer == self.layers - 1
            out, cache = attention(normed, mask[:, None], cache, layer, deterministic, final)
            x = x[:, -1:] if final else x
            x = x + drop(out) if self.pre_norm else norm(x + drop(out))
            norm = self._norm(f"norm_mlp_{layer}")
            out = self._mlp(norm(x) if self.pre_norm else x, layer)
            x = x + drop(out) if self.pre_norm else norm(x + drop(out))
        if self.pre_norm:
            x = self._norm("norm_out")(x)
        if cache is not None:
            cache = cache._replace(position=start + length)
        return x, cache

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)

    def _mlp(self, x: jax.Array, layer: int) -> jax.Array:
        init = _kernel_init(self.init_std)
        up = Dense(self.hidden, kernel_init=init, dtype=self.dtype, name=f"up_{layer}")(x)
        up = nn.relu(up) if self.activation == "relu" else nn.gelu(up, approximate=False)
        return Dense(self.width, kernel_init=init, dtype=self.dtype, name=f"down_{layer}")(up)


def gpt(
    *, width: int, layers: int, heads: int, max_length: int, dropout: float, dtype: Any
) -> CausalTransformer:
    """The layers of GPT-2, with one rate for all dropout: those of IRIS and of NowcastingGPT.

    Args:
      width: D.
      layers: K.
      heads: attention heads.
      max_length: rows of the position table.
      dropout: rate on embeddings, attention weights and residual branches alike.
      dtype: compute dtype.
    """
    return CausalTransformer(
        width=width,
        layers=layers,
        heads=heads,
        hidden=4 * width,
        max_length=max_length,
        dropout=dropout,
        pre_norm=True,
        activation="gelu",
        attention_bias=True,
        attention_dropout=dropout,
        embedding_dropout=dropout,
        epsilon=1e-5,
        init_std=GPT_STD,
        dtype=dtype,
    )


class PredictionHead(nn.Module):
    """Logits of a hidden state: linear, ReLU, linear, with kernels as in ``gpt``.

    Attributes:
      width: of the hidden layer.
      features: number of logits.
      dtype: compute dtype of the hidden layer; logits are float32.
    """

    width: int
    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., D) -> (..., features)`` float32."""
        init = nn.initializers.normal(GPT_STD)
        x = nn.relu(Dense(self.width, kernel_init=init, dtype=self.dtype, name="in")(x))
        out = Dense(self.features, kernel_init=init, dtype=jnp.float32, name="out")
        return out(x.astype(jnp.float32))


class BidirectionalTransformer(nn.Module):
    """Pre-norm transformer over N tokens that all see one another; gelu, both residuals.

    Attributes:
      layers: number of layers.
      heads: attention heads; must divide the width.
      hidden: units of the feed-forward layer.
      attention_bias: whether q, k and v have a bias; o has one.
      dtype: compute dtype.
    """

    layers: int
    heads: int
    hidden: int
    attention_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(B, N, D) -> (B, N, D)``."""
        width = x.shape[-1]
        for layer in range(self.layers):
            normed = nn.LayerNorm(dtype=self.dtype, name=f"norm_attention_{layer}")(x)
            attention = _Attention(
                self.heads,
                use_bias=self.attention_bias,
                out_bias=True,
                dtype=self.dtype,
                name=f"attention_{layer}",
            )
            x = x + attention(normed, None)[0]
            normed = nn.LayerNorm(dtype=self.dtype, name=f"norm_mlp_{layer}")(x)
            out = nn.gelu(Dense(self.hidden, dtype=self.dtype, name=f"up_{layer}")(normed))
            x = x + Dense(width, dtype=self.dtype, name=f"down_{layer}")(out)
        return x
