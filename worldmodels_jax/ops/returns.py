"""Lambda-returns of imagined trajectories and the scale that normalises their advantages."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


def lambda_returns(
    reward: jax.Array,
    discount: jax.Array,
    next_value: jax.Array,
    bootstrap: jax.Array,
    lambda_: float | jax.Array,
) -> jax.Array:
    """TD(lambda) returns, computed backwards through the trajectory.

    G_l = r_l + d_l [(1 - lambda) V(s_{l+1}) + lambda G_{l+1}], with G_L = bootstrap
    (GIT-STORM, equation 5.9; Sutton and Barto, section 12.1).

    Args:
      reward: (L, ...) reward of step l.
      discount: (L, ...) gamma times the probability that the episode continues after step l.
      next_value: (L, ...) value of the state that step l leads to, V(s_{l+1}).
      bootstrap: (...) return of everything after the horizon; usually equal to ``next_value[-1]``.
      lambda_: 0 gives one-step targets, 1 the discounted sum up to the bootstrap; an array,
        broadcast against ``reward``, gives each step its own.

    Returns:
      (L, ...) float32.
    """
    chex.assert_equal_shape([reward, discount, next_value])
    chex.assert_shape(bootstrap, reward.shape[1:])

    def step(following: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        r, d, v, mixing = now
        current = r + d * ((1 - mixing) * v + mixing * following)
        return current, current

    # float32 whatever the model computes in: a bfloat16 sum over the horizon drops small rewards.
    reward, discount, next_value, bootstrap = (
        x.astype(jnp.float32) for x in (reward, discount, next_value, bootstrap)
    )
    mixing = jnp.broadcast_to(jnp.asarray(lambda_, jnp.float32), reward.shape)
    _, returns = jax.lax.scan(step, bootstrap, (reward, discount, next_value, mixing), reverse=True)
    return returns


class ReturnScale(NamedTuple):
    """Moving averages of a low and a high percentile of the returns."""

    low: jax.Array  # () float32
    high: jax.Array  # () float32


def init_return_scale() -> ReturnScale:
    """Returns the scale before any update: both averages at 0, as in STORM."""
    return ReturnScale(low=jnp.zeros((), jnp.float32), high=jnp.zeros((), jnp.float32))


def update_return_scale(
    scale: ReturnScale,
    returns: jax.Array,
    *,
    decay: float = 0.99,
    low: float = 0.05,
    high: float = 0.95,
    valid: jax.Array | None = None,
    axis_name: str | None = None,
) -> ReturnScale:
    """Moves each average towards its percentile of the returns (GIT-STORM, equation 5.13).

    There is no bias correction: the averages start at 0 and the range is floored at 1.

    Args:
      scale: the averages so far.
      returns: (...) returns of this device, any shape; no gradient flows to them.
      decay: share of the old average that is kept.
      low: lower percentile, in [0, 1].
      high: upper percentile, in [0, 1].
      valid: bool, broadcast against ``returns``; the returns that count. Where none does, on any
        device, the averages stay. None counts all.
      axis_name: mapped axis over which the returns are gathered, so that the percentiles are those
        of the whole batch; None on one device.

    Returns:
      The new averages, the same on every device.
    """
    returns = jax.lax.stop_gradient(returns).astype(jnp.float32)
    if valid is not None:
        returns = jnp.where(valid, returns, jnp.nan)
    if axis_name is not None:
        returns = jax.lax.all_gather(returns, axis_name)
    quantile = jnp.quantile if valid is None else jnp.nanquantile
    percentiles = quantile(returns.reshape(-1), jnp.array([low, high], jnp.float32))
    if axis_name is not None:
        # Already equal everywhere; the mean is what lets shard_map see it, and so accept the scale
        # as replicated state. (all_gather can say so itself, but then fails under vmap.)
        percentiles = jax.lax.pmean(percentiles, axis_name)
    if valid is not None:
        percentiles = jnp.where(jnp.isnan(percentiles), jnp.stack(scale), percentiles)
    return ReturnScale(
        low=decay * scale.low + (1 - decay) * percentiles[0],
        high=decay * scale.high + (1 - decay) * percentiles[1],
    )


def return_range(scale: ReturnScale) -> jax.Array:
    """The divisor of advantages, max(1, high - low): large returns shrink, small ones do not grow.

    Args:
      scale: the averages of the two percentiles.

    Returns:
      () float32, at least 1.
    """
    return jnp.maximum(1.0, scale.high - scale.low)
