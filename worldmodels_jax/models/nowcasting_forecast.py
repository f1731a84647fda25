"""How NowcastingGPT forecasts: tokens one by one, each fed to a key/value cache."""

import jax
import jax.numpy as jnp

from worldmodels_jax.models.nowcasting_networks import Networks
from worldmodels_jax.nn.transformer import KVCache
from worldmodels_jax.ops.categorical import sample_classes
from worldmodels_jax.ops.truncation import truncate
from worldmodels_jax.types import PyTree


def forecast_tokens(
    m: Networks,
    params: PyTree,
    context: jax.Array,
    key: jax.Array,
    *,
    members: int,
    horizon: int,
    top_k: int | None,
    top_p: float | None,
) -> jax.Array:
    """Samples what follows some frames.

    Up to the length of the position table, tokens go on in one cache. Of every frame beyond that
    the context is a window of the last frames, one fewer than the table holds.

    Args:
      m: the networks.
      params: the transformer's.
      context: ``(B, C, N)`` int32 tokens.
      key: a PRNG key.
      members: M, samples of each.
      horizon: L, frames.
      top_k: see ``ops.truncation``.
      top_p: see ``ops.truncation``.

    Returns:
      ``(M, B, L, N)`` int32.
    """
    batch, shown, count = context.shape
    longest = m.shape[0]
    first = min(horizon, longest - shown)
    key_first, key_later = jax.random.split(key)
    flat = _extend(
        m, params, context, key_first, members=members, frames=first, top_k=top_k, top_p=top_p
    )
    tokens = flat.reshape(members * batch, first, count)
    if horizon > first:
        seen = jnp.concatenate([jnp.tile(context, (members, 1, 1)), tokens], 1)

        def slide(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            frame = _extend(m, params, window, key, members=1, frames=1, top_k=top_k, top_p=top_p)
            return jnp.concatenate([window[:, 1:], frame], 1), frame[:, 0]

        keys = jax.random.split(key_later, horizon - first)
        _, later = jax.lax.scan(slide, seen[:, 1:], keys)
        tokens = jnp.concatenate([tokens, later.swapaxes(0, 1)], 1)
    return tokens.reshape(members, batch, horizon, count)


def _extend(
    m: Networks,
    params: PyTree,
    context: jax.Array,
    key: jax.Array,
    *,
    members: int,
    frames: int,
    top_k: int | None,
    top_p: float | None,
) -> jax.Array:
    """Tokens ``(M B, frames, N)`` after a context ``(B, C, N)``, which is fed at once."""
    batch, _, per_frame = context.shape
    shown = context.reshape(batch, -1)
    count = frames * per_frame

    def feed(tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        hidden, cache = m.transformer.apply({"params": params}, tokens, cache, method="feed")
        return hidden[:, -1], cache

    def sample(hidden: jax.Array, key: jax.Array) -> jax.Array:
        logits = m.transformer.apply({"params": params}, hidden, method="logits")
        return sample_classes(key, truncate(logits, top_k, top_p))

    def next_token(
        state: tuple[jax.Array, KVCache], key: jax.Array
    ) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
        hidden, cache = state
        token = sample(hidden, key)
        return feed(token[:, None], cache), token

    hidden, cache = feed(shown, m.transformer.new_cache(batch, shown.shape[1] + count))
    state = jnp.tile(hidden, (members, 1)), _repeat(cache, members)
    keys = jax.random.split(key, count)
    (hidden, _), tokens = jax.lax.scan(next_token, state, keys[:-1])
    tokens = jnp.concatenate([tokens, sample(hidden, keys[-1])[None]])
    return tokens.T.reshape(-1, frames, per_frame)


def _repeat(cache: KVCache, members: int) -> KVCache:
    """The cache of B sequences for M continuations of each: ``(M B, ...)``."""

    def tile(x: jax.Array) -> jax.Array:
        return jnp.tile(x, (members, *[1] * (x.ndim - 1)))

    keys, values, segments = jax.tree.map(tile, (cache.keys, cache.values, cache.segments))
    return KVCache(keys, values, segments, cache.position)
