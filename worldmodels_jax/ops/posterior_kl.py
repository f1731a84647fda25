"""Per-image terms of an autoencoder's objective: likelihood, KL and the regulariser of α-TCVAE.

α-TCVAE (Meo, 2026, chapter 1) weighs the usual KL to the prior against one to the product of the
image's own posteriors. What is estimated from a whole minibatch is in ``total_correlation``.

All terms are minimised, in nats. K is the number of latents; a Gaussian posterior is
q(z|x) = prod_k N(z_k; mean_k, exp(log_variance_k)).
"""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.ops.categorical import entropy, kl_divergence

CebReduction = Literal["sum", "mean"]


def bernoulli_nll(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-log p(x|z) of pixels in [0, 1], sum [softplus(l) - x l].

    Args:
      logits: (B, H, W, C), any float type.
      target: (B, H, W, C) in [0, 1].

    Returns:
      (B,) float32, nats per image.
    """
    chex.assert_equal_shape([logits, target])
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    return jnp.sum(jax.nn.softplus(logits) - target * logits, axis=tuple(range(1, logits.ndim)))


def standard_normal_kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL[q(z_k|x) || N(0, 1)] of each latent; V of α-TCVAE is the sum over the last axis.

    Args:
      mean: (..., K).
      log_variance: (..., K).

    Returns:
      (..., K) float32, in nats.
    """
    chex.assert_equal_shape([mean, log_variance])
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)


def product_of_posteriors(mean: jax.Array, log_variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Gaussian proportional to prod_k N(μ_k, σ_k²), one scalar Gaussian per image.

        1 / v_p = sum_k 1 / σ_k²          μ_p = v_p sum_k μ_k / σ_k²

    Args:
      mean: (..., K).
      log_variance: (..., K).

    Returns:
      ``(μ_p, log v_p)``, both (...) float32.
    """
    chex.assert_equal_shape([mean, log_variance])
    log_precision = -log_variance.astype(jnp.float32)
    shares = jax.nn.softmax(log_precision)
    product_mean = jnp.sum(shares * mean.astype(jnp.float32), axis=-1)
    return product_mean, -jax.nn.logsumexp(log_precision, axis=-1)


def product_kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL[q(z_k|x) || N(μ_p, v_p)] of each latent; C of α-TCVAE is the sum over the last axis.

    The target depends on x through all of the posterior, so that this is a regulariser and not a
    bound of an information. The sum is at least (K/2)(K - 1 - ln K), and that only where all means
    and all variances of an image coincide: the floor is a constant, not unexplained information.
    Moving and scaling all latents alike, z -> a z + b, changes nothing.

    Args:
      mean: (..., K).
      log_variance: (..., K).

    Returns:
      (..., K) float32, in nats.
    """
    product_mean, product_log_variance = product_of_posteriors(mean, log_variance)
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    log_ratio = log_variance - product_log_variance[..., None]
    distance = (mean - product_mean[..., None]) ** 2 * jnp.exp(-product_log_variance)[..., None]
    return 0.5 * (jnp.exp(log_ratio) - log_ratio + distance - 1.0)


def alpha_weights(alpha: float, num_latents: int) -> tuple[float, float]:
    """The weights of α-TCVAE's two terms (equation 1.6).

        w_C = α / (1 - α/K)          w_V = (1 - α) / (1 - α/K)

    Args:
      alpha: α in [0, 1]; 0 leaves the usual KL alone.
      num_latents: K, at least 2.

    Returns:
      ``(w_C, w_V)``, of the KL to the product of posteriors and of the KL to the prior.

    Raises:
      ValueError: if α or K is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give a share in [0, 1], e.g. 0.25.")
    if num_latents < 2:
        raise ValueError(
            f"α-TCVAE weighs latents against each other, but there are {num_latents}: give at "
            "least 2."
        )
    scale = 1 - alpha / num_latents
    return alpha / scale, (1 - alpha) / scale


def alpha_tc_loss(
    mean: jax.Array,
    log_variance: jax.Array,
    *,
    alpha: float,
    beta: float = 1.0,
    reduction: CebReduction = "sum",
) -> jax.Array:
    """β (w_C C + w_V V), the regulariser of α-TCVAE (equation 1.6 with an outer β).

    α = 0 is β V, bit by bit: the regulariser of β-VAE, and of a VAE for β = 1.

    Args:
      mean: (..., K).
      log_variance: (..., K).
      alpha: α in [0, 1].
      beta: β; 1 is the published equation.
      reduction: C as the sum over latents, which is the equation (1.19), or as their mean, which is
        how the sentence before it (1.18) can be read.

    Returns:
      (...) float32, nats per image.

    Raises:
      ValueError: if α or K is out of range.
    """
    product, prior = alpha_weights(alpha, mean.shape[-1])
    reduce = {"sum": jnp.sum, "mean": jnp.mean}[reduction]
    c = reduce(product_kl(mean, log_variance), axis=-1)
    v = jnp.sum(standard_normal_kl(mean, log_variance), axis=-1)
    return beta * (product * c + prior * v)


def categorical_alpha_tc_loss(
    log_probs: jax.Array, *, alpha: float, beta: float = 1.0
) -> jax.Array:
    """α-TCVAE's regulariser of K categoricals over the same V classes (not in the thesis).

        log r_p = log_softmax(sum_k log q_k)     C = sum_k KL[q_k || r_p]     V = sum_k KL[q_k || u]

    with the uniform u. Written for autoencoders of goals, whose latents are one-hot.

    Args:
      log_probs: (..., K, V), finite: a class that one latent excludes is excluded by the product,
        and C is then infinite (``categorical.unimix_log_probs`` bounds them).
      alpha: α in [0, 1].
      beta: β; 1 gives the weights of equation 1.6.

    Returns:
      (...) float32, nats per image.

    Raises:
      ValueError: if α or K is out of range.
    """
    product, prior = alpha_weights(alpha, log_probs.shape[-2])
    log_probs = log_probs.astype(jnp.float32)
    target = jax.nn.log_softmax(jnp.sum(log_probs, axis=-2, keepdims=True))
    c = jnp.sum(kl_divergence(jnp.exp(log_probs), jnp.broadcast_to(target, log_probs.shape)), -1)
    v = jnp.sum(math.log(log_probs.shape[-1]) - entropy(log_probs), axis=-1)
    return beta * (product * c + prior * v)


def capacity_loss(
    kl: jax.Array, step: jax.Array | int, *, capacity: float = 25.0, steps: int = 100_000
) -> jax.Array:
    """|V - C_t|, the annealed β-VAE's; C_t rises linearly from 0 to the capacity and stays.

    Args:
      kl: (...) V, in nats.
      step: t, the updates made so far.
      capacity: nats at the end.
      steps: updates until then.

    Returns:
      (...) float32.
    """
    allowed = capacity * jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return jnp.abs(kl.astype(jnp.float32) - allowed)
