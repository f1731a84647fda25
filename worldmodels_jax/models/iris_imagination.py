"""How IRIS and Delta-IRIS imagine a step: tokens one by one, each fed to a key/value cache."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.models.iris_config import DynamicsConfig
from worldmodels_jax.models.iris_dynamics import Dynamics
from worldmodels_jax.nn.transformer import KVCache, init_cache
from worldmodels_jax.ops import categorical, twohot
from worldmodels_jax.types import PyTree


class Step(NamedTuple):
    """What the transformer makes of an action."""

    tokens: jax.Array  # (B, K) int32, sampled
    reward: jax.Array  # (B,) float32
    continuation: jax.Array  # (B,) float32, 0 or 1, sampled
    cache: KVCache  # with the action and all but the last of the tokens


Feed = Callable[[jax.Array, jax.Array, KVCache], tuple[jax.Array, KVCache]]


def make_feed(dynamics: Dynamics, params: PyTree) -> Feed:
    """``(embedded (B, S, D), segment (B,), cache) -> hidden of the last of them (B, D), cache``."""

    def feed(x: jax.Array, segment: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        segments = jnp.repeat(segment[:, None], x.shape[1], axis=1)
        hidden, cache = dynamics.apply({"params": params}, x, segments, cache, method="feed")
        return hidden[:, -1], cache

    return feed


def new_cache(dynamics: Dynamics, batch: int, length: int) -> KVCache:
    """An empty cache of the given length, at most that of the position table."""
    return init_cache(
        layers=dynamics.layers,
        batch=batch,
        length=min(length, dynamics.max_tokens),
        heads=dynamics.heads,
        head_dim=dynamics.width // dynamics.heads,
        dtype=dynamics.dtype,
    )


def with_room(
    dynamics: Dynamics, cache: KVCache, start_again: Callable[[KVCache], KVCache]
) -> KVCache:
    """The cache, or what ``start_again`` makes of it where one more step does not fit."""
    full = cache.position + dynamics.block > cache.segments.shape[1]
    return jax.lax.cond(full, start_again, lambda cache: cache, cache)


def read_reward(config: DynamicsConfig, logits: jax.Array, key: jax.Array) -> jax.Array:
    """The reward ``(B,)`` of logits ``(B, R)``: the mean of their distribution or a sample."""
    if config.reward == "two_hot":
        values = twohot.symlog_bins(config.num_bins)
    else:
        values = jnp.array([-1.0, 0.0, 1.0])
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    if config.reward_readout == "mean":
        reward = (jnp.exp(log_p) * values).sum(-1)
    else:
        reward = values[categorical.sample_classes(key, log_p)]
    return twohot.symexp(reward) if config.reward == "two_hot" else reward


def imagine_step(
    dynamics: Dynamics,
    config: DynamicsConfig,
    params: PyTree,
    cache: KVCache,
    segment: jax.Array,
    action: jax.Array,
    key: jax.Array,
    uniform_tokens: bool = False,
) -> Step:
    """Feed an action; sample reward, end and tokens, these one by one.

    Args:
      dynamics: the transformer.
      config: its config.
      params: its parameters.
      cache: of all that was before.
      segment: ``(B,)`` int32.
      action: ``(B, D)``, embedded.
      key: a PRNG key.
      uniform_tokens: draw tokens uniformly from the codebook, whatever the transformer predicts.
    """
    feed = make_feed(dynamics, params)
    key_reward, key_end, key_tokens = jax.random.split(key, 3)

    def sample(hidden: jax.Array, key: jax.Array) -> jax.Array:
        logits = dynamics.apply({"params": params}, hidden, method="token_logits")
        if uniform_tokens:
            logits = jnp.zeros_like(logits)
        return categorical.sample_classes(key, jax.nn.log_softmax(logits))

    def next_token(
        state: tuple[jax.Array, KVCache], key: jax.Array
    ) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
        hidden, cache = state
        token = sample(hidden, key)
        embedded = dynamics.apply({"params": params}, token[:, None], method="embed_tokens")
        return feed(embedded, segment, cache), token

    hidden, cache = feed(action[:, None], segment, cache)
    rewards, ends = dynamics.apply({"params": params}, hidden, method="outcome_logits")
    keys = jax.random.split(key_tokens, dynamics.num_tokens)
    (hidden, cache), first = jax.lax.scan(next_token, (hidden, cache), keys[:-1])
    tokens = jnp.concatenate([first, sample(hidden, keys[-1])[None]]).T
    end = categorical.sample_classes(key_end, jax.nn.log_softmax(ends))
    reward = read_reward(config, rewards, key_reward)
    return Step(tokens, reward, 1.0 - end.astype(jnp.float32), cache)
