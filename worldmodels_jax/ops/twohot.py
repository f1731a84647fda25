"""Two-hot regression: scalars of any magnitude as a distribution over fixed bins.

A scalar head with 255 logits is trained by cross-entropy towards the two bins around its target, in
one of two variants (DreamerV3, Hafner et al.):

* ``two_hot_symlog_*`` (2023, equations 1, 9 and 10; STORM, Delta-IRIS): bins uniform in symlog
  space, read out as symexp of the expected bin. Under noisy targets that is no mean: the average is
  taken of their logarithms, so targets 0 and 100 at even odds decode to 9, not 50.
* ``two_hot_*`` (2024): the same bins carried to raw space by symexp, read out as their expectation,
  which is the mean of the targets.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def symlog(x: jax.Array) -> jax.Array:
    """Symmetric logarithm, sign(x) ln(1 + |x|).

    Args:
      x: (...,) any real values.

    Returns:
      (...,) the same shape. The gradient is 1 / (1 + |x|), 1 at zero included.
    """
    # A comparison in place of sign and abs: their gradients are 0 at 0, where the true slope is 1.
    magnitude = jnp.where(x < 0, -x, x)
    return jnp.where(x < 0, -1.0, 1.0) * jnp.log1p(magnitude)


def symexp(x: jax.Array) -> jax.Array:
    """Inverse of :func:`symlog`, sign(x) (e^|x| - 1).

    Args:
      x: (...,) values in symlog space; above about 88 float32 overflows to infinity.

    Returns:
      (...,) the same shape. The gradient is e^|x|, 1 at zero included.
    """
    magnitude = jnp.where(x < 0, -x, x)
    return jnp.where(x < 0, -1.0, 1.0) * jnp.expm1(magnitude)


def symlog_bins(num_bins: int = 255, limit: float = 20.0) -> jax.Array:
    """Bin centres, uniform in symlog space and exactly symmetric about zero.

    Args:
      num_bins: K, at least 2. An odd K has a bin at exactly 0.
      limit: the last bin, in symlog space; the first is its negative.

    Returns:
      (K,) float32, increasing from ``-limit`` to ``limit``.

    Raises:
      ValueError: if there are fewer than two bins or ``limit`` is not positive.
    """
    return jnp.asarray(_steps(num_bins, limit), jnp.float32)


def _steps(num_bins: int, limit: float) -> np.ndarray:
    if num_bins < 2:
        raise ValueError(f"num_bins is {num_bins}; a two-hot code needs at least 2 bins.")
    if not limit > 0:
        raise ValueError(f"limit is {limit}; give a positive symlog value, e.g. 20.0.")
    # Odd integers over K - 1, so that the middle bin is 0 and not a rounding error.
    steps = 2 * np.arange(num_bins) - (num_bins - 1)
    return limit * (steps / (num_bins - 1))


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Weights on the two neighbouring bins whose weighted mean is x.

    For b_k <= x <= b_{k+1} the weight of bin k+1 is (x - b_k) / (b_{k+1} - b_k) and bin k has the
    rest (DreamerV3, equation 9).

    Args:
      x: (...,) values in the space of the bins; beyond the end bins they count as the end bin.
      bins: (K,) increasing, not necessarily uniform.

    Returns:
      (..., K) float32, non-negative, summing to 1.
    """
    chex.assert_rank(bins, 1)
    x = x.astype(jnp.float32)[..., None]
    # How far x has come through each of the K - 1 gaps: 1 below x, 0 above, a fraction around it.
    # Its differences are the weights, elementwise: nothing to search, gather or scatter.
    passed = jnp.clip((x - bins[:-1]) / (bins[1:] - bins[:-1]), 0.0, 1.0)
    # A compiler that multiplies by reciprocals makes the quotient of equal numbers not quite 1.
    passed = jnp.where(x >= bins[1:], 1.0, passed)
    start, end = jnp.ones_like(passed[..., :1]), jnp.zeros_like(passed[..., :1])
    return jnp.concatenate([start, passed], -1) - jnp.concatenate([passed, end], -1)


def two_hot_symlog_loss(logits: jax.Array, target: jax.Array, bins: jax.Array) -> jax.Array:
    """Cross-entropy of a two-hot head towards a scalar, -sum_k two_hot(symlog(y))_k log p_k.

    Args:
      logits: (..., K), any float type; the loss is computed in float32.
      target: (...,) raw scalars; no gradient flows to them.
      bins: (K,) bins in symlog space.

    Returns:
      (...,) float32 loss, in nats.
    """
    return two_hot_loss(logits, symlog(target.astype(jnp.float32)), bins)


def two_hot_symlog_mean(logits: jax.Array, bins: jax.Array) -> jax.Array:
    """The scalar that a two-hot head predicts, symexp(sum_k softmax(logits)_k b_k).

    Args:
      logits: (..., K), any float type.
      bins: (K,) bins in symlog space.

    Returns:
      (...,) float32, in the units of the target.
    """
    chex.assert_axis_dimension(logits, -1, bins.shape[0])
    return symexp(jnp.sum(jax.nn.softmax(logits.astype(jnp.float32)) * bins, axis=-1))


def symexp_bins(num_bins: int = 255, limit: float = 20.0) -> jax.Array:
    """Bin centres in raw space, symexp of :func:`symlog_bins`, exactly symmetric about zero.

    Args:
      num_bins: K, at least 2. An odd K has a bin at exactly 0.
      limit: symlog of the last bin; at most 88, beyond which float32 overflows.

    Returns:
      (K,) float32, increasing.

    Raises:
      ValueError: if there are fewer than two bins, or ``limit`` is not between 0 and 88.
    """
    if limit > 88:
        raise ValueError(f"limit is {limit}; symexp of more than 88 overflows: give e.g. 20.0.")
    # From one half: the other is its mirror image to the last bit.
    upper = np.expm1(_steps(num_bins, limit)[(num_bins + 1) // 2 :])
    middle = np.zeros(num_bins % 2)
    return jnp.asarray(np.concatenate([-upper[::-1], middle, upper]), jnp.float32)


def two_hot_loss(logits: jax.Array, target: jax.Array, bins: jax.Array) -> jax.Array:
    """Cross-entropy of a two-hot head towards a scalar, -sum_k two_hot(y)_k log p_k.

    Args:
      logits: (..., K), any float type; the loss is computed in float32.
      target: (...,) scalars in the space of the bins; no gradient flows to them.
      bins: (K,) increasing.

    Returns:
      (...,) float32 loss, in nats.
    """
    chex.assert_shape(logits, (*target.shape, *bins.shape))
    weights = two_hot(jax.lax.stop_gradient(target), bins)
    return -jnp.sum(weights * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def two_hot_mean(logits: jax.Array, bins: jax.Array) -> jax.Array:
    """The scalar that a two-hot head predicts, sum_k softmax(logits)_k b_k.

    Args:
      logits: (..., K), any float type.
      bins: (K,) symmetric about zero, e.g. :func:`symexp_bins`.

    Returns:
      (...,) float32, in the space of the bins; exactly 0 for equal logits.
    """
    chex.assert_axis_dimension(logits, -1, bins.shape[0])
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    # Each bin together with its mirror image, b (p - p'): symmetric probabilities cancel exactly,
    # where a sum of products in the millions would round (and differently in every compilation).
    half = bins.shape[0] // 2
    difference = probs[..., -half:] - probs[..., :half][..., ::-1]
    return jnp.sum(bins[-half:] * difference, axis=-1)
