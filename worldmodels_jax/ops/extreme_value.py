"""The extreme value loss, and the distributions of extremes that it is derived from.

The loss (Ding et al., 2019; Meo, 2026, eqs. 3.5 to 3.27) weighs a cross-entropy by how far in the
tail a prediction is: the probability beyond a high threshold is approximated by
``P(extreme) [1 - u / gamma]^gamma``, a generalised extreme value law with the shape -1 / gamma.
"""

import warnings
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from worldmodels_jax.ops.collectives import masked_mean

_CLIP = 1e-7  # of probabilities, away from 0 and 1

WeightMode = Literal["inverse", "proportional"]
Reduction = Literal["mean", "class_mean"]


def evl(
    u: jax.Array, v: jax.Array, gamma: float, positive_weight: float, negative_weight: float
) -> jax.Array:
    """The extreme value loss of single predictions (eq. 3.27).

        - w_pos [1 - u / gamma]_+^gamma v log u - w_neg [1 - (1-u) / gamma]_+^gamma (1-v) log(1-u)

    With gamma = 1 it is a weighted focal loss of exponent 1; with large gamma the brackets tend to
    e^-u and e^-(1-u). Probabilities are kept 1e-7 away from 0 and 1.

    Args:
      u: ``(...)`` predicted probabilities of an extreme.
      v: ``(...)`` 1 where there was one, else 0.
      gamma: the extreme value index, above 0. Below 1 the brackets are cut off at 0, so that
        predictions beyond gamma have no loss and no gradient: there is a warning of it.
      positive_weight: w_pos, of extremes.
      negative_weight: w_neg, of the rest.

    Returns:
      ``(...)`` float32.

    Raises:
      ValueError: for a gamma of 0 or less.
    """
    if not gamma > 0:
        raise ValueError(f"gamma={gamma} is no extreme value index: give one of at least 1.")
    if gamma < 1:
        warnings.warn(
            f"gamma={gamma} is below 1: predictions above it are cut off from the loss; "
            "give a gamma of at least 1.",
            stacklevel=2,
        )
    chex.assert_equal_shape([u, v])
    u = jnp.clip(u.astype(jnp.float32), _CLIP, 1 - _CLIP)
    v = v.astype(jnp.float32)

    def cost(p: jax.Array) -> jax.Array:
        bracket = 1 - p / gamma
        # Replaced before use: 0 to a power below 1 has an infinite derivative.
        inside = bracket > 0
        factor = jnp.where(inside, jnp.where(inside, bracket, 1.0) ** gamma, 0.0)
        return -factor * jnp.log(p)

    return positive_weight * v * cost(u) + negative_weight * (1 - v) * cost(1 - u)


def evl_weights(p_extreme: float, mode: WeightMode = "inverse") -> tuple[float, float]:
    """The weights of extremes and of the rest.

    Args:
      p_extreme: the share of extremes, in (0, 1).
      mode: ``"inverse"`` weighs either by the share of the other, which makes the rare one heavy;
        ``"proportional"`` by its own.

    Returns:
      w_pos and w_neg.

    Raises:
      ValueError: for another share or mode.
    """
    if not 0 < p_extreme < 1:
        raise ValueError(f"p_extreme={p_extreme} is no share: give a number between 0 and 1.")
    if mode == "inverse":
        return 1 - p_extreme, p_extreme
    if mode == "proportional":
        return p_extreme, 1 - p_extreme
    raise ValueError(f"mode={mode!r} is not known: choose 'inverse' or 'proportional'.")


def reduce_evl(
    loss: jax.Array,
    v: jax.Array,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """One number of many losses.

    Args:
      loss: ``(...)`` of ``evl``.
      v: ``(...)`` 1 where there was an extreme, else 0.
      reduction: ``"mean"`` over all; ``"class_mean"`` is the mean over extremes plus that over the
        rest, which rare extremes do not vanish in.
      axis_name: mapped axis the losses are split over.
      where: ``(...)`` bool, the ones that count; None for all.

    Returns:
      () float32.

    Raises:
      ValueError: for another reduction.
    """
    if reduction not in ("mean", "class_mean"):
        raise ValueError(f"reduction={reduction!r} is not known: choose 'mean' or 'class_mean'.")
    counts = jnp.ones_like(loss) if where is None else where.astype(loss.dtype)
    if reduction == "mean":
        return masked_mean(loss, counts, axis_name)
    v = v.astype(loss.dtype)
    extremes = masked_mean(loss, counts * v, axis_name)
    return extremes + masked_mean(loss, counts * (1 - v), axis_name)


def gev_cdf(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike, xi: ArrayLike) -> jax.Array:
    """The generalised extreme value law, ``exp(-[1 + xi (x - mu) / sigma]^(-1/xi))``.

    The limit for xi -> 0 is Gumbel's law; below the lower end (xi > 0) it is 0, above the upper
    end (xi < 0) it is 1.

    Args:
      x: where.
      mu: location.
      sigma: scale, above 0.
      xi: shape.

    Returns:
      Probabilities of the broadcast shape, float32.
    """
    x, mu, sigma, xi = (jnp.asarray(a, jnp.float32) for a in (x, mu, sigma, xi))
    return jnp.exp(-_tail((x - mu) / sigma, xi))


def gpd_cdf(y: ArrayLike, sigma: ArrayLike, xi: ArrayLike) -> jax.Array:
    """The generalised Pareto law, ``1 - (1 + xi y / sigma)^(-1/xi)`` for y >= 0.

    That of excesses over a high threshold. The limit for xi -> 0 is the exponential law.

    Args:
      y: the excess.
      sigma: scale, above 0; of excesses over w of a law with location mu and scale sigma', that is
        sigma' + xi (w - mu).
      xi: shape.

    Returns:
      Probabilities of the broadcast shape, float32.
    """
    y, sigma, xi = (jnp.asarray(a, jnp.float32) for a in (y, sigma, xi))
    return 1 - _tail(jnp.maximum(y, 0.0) / sigma, xi)


def gpd_fit(excesses: ArrayLike) -> tuple[float, float]:
    """Scale and shape of a generalised Pareto law by L-moments (Hosking & Wallis, 1987).

    With l1 the mean and l2 half the mean difference of two draws, ``xi = 2 - l1 / l2`` and
    ``sigma = l1 (1 - xi)``.

    Args:
      excesses: (n,) over the threshold, at least 0.

    Returns:
      sigma and xi.

    Raises:
      ValueError: for fewer than two excesses, or equal or negative ones.
    """
    ordered = np.sort(np.asarray(excesses, np.float64))
    if len(ordered) < 2 or ordered[0] < 0 or ordered[0] == ordered[-1]:
        raise ValueError(
            "a tail is fitted to at least two different excesses of 0 or more: take a lower "
            "threshold, and subtract it first."
        )
    n = len(ordered)
    first = ordered.mean()
    second = 2 * (np.arange(n) * ordered).sum() / (n * (n - 1)) - first
    shape = 2 - first / second
    return float(first * (1 - shape)), float(shape)


def _tail(z: jax.Array, xi: jax.Array) -> jax.Array:
    """``[1 + xi z]_+^(-1/xi)``, which is e^-z for xi -> 0; 0 or infinite beyond the support."""
    y = xi * z
    inside = y > -1
    safe = jnp.where(inside, y, 0.0)
    small = jnp.abs(safe) < 1e-4
    # log(1 + y) / y, by its series where the quotient would lose its digits.
    ratio = jnp.where(small, 1 - safe / 2, jnp.log1p(safe) / jnp.where(small, 1.0, safe))
    return jnp.where(inside, jnp.exp(-z * ratio), jnp.where(xi > 0, jnp.inf, 0.0))
