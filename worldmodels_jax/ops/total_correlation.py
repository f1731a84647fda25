"""Regularisers of autoencoders that look at the aggregate posterior q(z) of a minibatch.

The decomposition of the KL (β-TCVAE, Chen et al., 2018), a discriminator's density ratio
(FactorVAE, Kim & Mnih, 2018) and the Hausdorff distance to a factorised support (HFS, Roth et al.,
2023). What needs one image only, α-TCVAE's regulariser among it, is in ``posterior_kl``.

All terms are minimised, in nats. K is the number of latents; a posterior is
q(z|x) = prod_k N(z_k; mean_k, exp(log_variance_k)).
"""

import math
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

Weighting = Literal["weighted", "stratified", "batch"]


# Estimates from a minibatch


def log_weights(weighting: Weighting, batch_size: int, dataset_size: int) -> jax.Array:
    """Log-weights W_ij of q(z_i) ~ sum_j W_ij q(z_i|x_j) for a minibatch of B out of N images.

    ``"weighted"`` (MWS) is 1 / (N B). It is biased: the information saturates at ln(N B) for
    posteriors that do not overlap, where its gradient vanishes. ``"stratified"`` (MSS) knows that
    z_i came from x_i: with M = B - 1, 1/N for itself, (N - M) / (N M) for one other and 1/M for the
    rest. ``"batch"`` is 1 / B, the batch taken as the data set: for metrics, of 2,048 images or
    more.

    Args:
      weighting: which of them.
      batch_size: B.
      dataset_size: N, at least B; ``"batch"`` does not use it.

    Returns:
      (B, B) float32; the weights of a row sum to 1 with ``"stratified"`` and ``"batch"``.

    Raises:
      ValueError: if the weighting is unknown, the data set smaller than the batch, or the batch
        too small to be stratified.
    """
    shape = (batch_size, batch_size)
    if weighting == "batch":
        return jnp.full(shape, -math.log(batch_size), jnp.float32)
    if dataset_size < batch_size:
        raise ValueError(
            f"a batch of {batch_size} images cannot come from a data set of {dataset_size}: give "
            "the number of training images as dataset_size."
        )
    if weighting == "weighted":
        return jnp.full(shape, -math.log(dataset_size * batch_size), jnp.float32)
    if weighting != "stratified":
        raise ValueError(f"weighting is {weighting!r}; give 'weighted', 'stratified' or 'batch'.")
    others = batch_size - 1
    if others < 1:
        raise ValueError(f"a batch of {batch_size} cannot be stratified: give at least 2 images.")
    row = jnp.arange(batch_size)
    weights = jnp.full(shape, -math.log(others), jnp.float32)
    weights = weights.at[row, row].set(-math.log(dataset_size))
    stratum = (dataset_size - others) / (dataset_size * others)
    return weights.at[row, (row + 1) % batch_size].set(math.log(stratum))


class Decomposition(NamedTuple):
    """Estimates of the parts of the mean KL[q(z|x) || N(0, I)] (Chen et al., 2018), in nats.

    The first three sum to the one-sample estimate of that KL. Because posteriors factorise, the
    total correlation is also ``latent_information.sum() - information`` (equation 1.4).
    """

    information: jax.Array  # scalar, I(z; x)
    total_correlation: jax.Array  # scalar, KL[q(z) || prod_k q(z_k)]
    dimension_wise: jax.Array  # scalar, sum_k KL[q(z_k) || N(0, 1)]
    latent_information: jax.Array  # (K,), I(z_k; x)


def decompose_kl(
    sample: jax.Array,
    mean: jax.Array,
    log_variance: jax.Array,
    weights: jax.Array,
    *,
    chunk: int = 512,
) -> Decomposition:
    """Estimates information, total correlation and dimension-wise KL from one sample per image.

    With g_ijk = log N(z_ik; mean_jk, variance_jk), log q(z_i) = logsumexp_j(sum_k g_ijk + log W_ij)
    and log q(z_ik) = logsumexp_j(g_ijk + log W_ij).

    Args:
      sample: (B, K), row i drawn from the posterior of image i.
      mean: (B, K).
      log_variance: (B, K).
      weights: (B, B) from ``log_weights``.
      chunk: rows i held at once: memory grows as chunk * B * K, also in the backward pass.

    Returns:
      The estimates, float32. With ``"weighted"`` the total correlation is too large by about
      (K - 1) ln(N B).
    """
    chex.assert_rank(sample, 2)
    chex.assert_equal_shape([sample, mean, log_variance])
    chex.assert_shape(weights, (len(sample), len(sample)))
    sample, mean, log_variance = (x.astype(jnp.float32) for x in (sample, mean, log_variance))

    @jax.checkpoint
    def aggregate(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z, log_w = row
        g = _log_normal(z, mean, log_variance)  # (B, K), over j
        joint = jax.nn.logsumexp(jnp.sum(g, axis=-1) + log_w)
        return joint, jax.nn.logsumexp(g + log_w[:, None], axis=0)

    log_joint, log_marginals = jax.lax.map(aggregate, (sample, weights), batch_size=chunk)
    own = _log_normal(sample, mean, log_variance)
    prior = _log_normal(sample, jnp.zeros_like(mean), jnp.zeros_like(mean))
    return Decomposition(
        information=jnp.mean(jnp.sum(own, axis=-1) - log_joint),
        total_correlation=jnp.mean(log_joint - jnp.sum(log_marginals, axis=-1)),
        dimension_wise=jnp.mean(jnp.sum(log_marginals - prior, axis=-1)),
        latent_information=jnp.mean(own - log_marginals, axis=0),
    )


def _log_normal(z: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    squared = (z - mean) ** 2 * jnp.exp(-log_variance)
    return -0.5 * (squared + log_variance + math.log(2 * math.pi))


def beta_tc_loss(
    parts: Decomposition, *, beta: float, information: float = 1.0, dimension_wise: float = 1.0
) -> jax.Array:
    """a I + β TC + g D, the regulariser of β-TCVAE; β = 1 is that of a VAE.

    The readings of α-TCVAE without a product of posteriors are this with other weights: a and g
    from ``posterior_kl.alpha_weights`` with any β, or with β = 0 and an outer factor.

    Args:
      parts: estimates of one minibatch.
      beta: β, of the total correlation.
      information: a.
      dimension_wise: g.

    Returns:
      Scalar float32, in nats.
    """
    return (
        information * parts.information
        + beta * parts.total_correlation
        + dimension_wise * parts.dimension_wise
    )


# FactorVAE


def permute_dims(key: jax.Array, sample: jax.Array) -> jax.Array:
    """Samples of about prod_k q(z_k): each latent is shuffled over the batch on its own.

    Args:
      key: PRNG key.
      sample: (B, K) of q(z).

    Returns:
      (B, K).
    """
    chex.assert_rank(sample, 2)
    return jax.random.permutation(key, sample, axis=0, independent=True)


def density_ratio_tc(logits: jax.Array) -> jax.Array:
    """FactorVAE's total correlation, mean [d_0(z) - d_1(z)] for z of q(z).

    Args:
      logits: (B, 2) of a discriminator; class 0 is q(z), class 1 the permuted samples.

    Returns:
      Scalar float32, in nats; right as far as the discriminator is.
    """
    chex.assert_shape(logits, (None, 2))
    logits = logits.astype(jnp.float32)
    return jnp.mean(logits[:, 0] - logits[:, 1])


def discriminator_loss(logits: jax.Array, permuted_logits: jax.Array) -> jax.Array:
    """Cross-entropy of FactorVAE's discriminator, half for each kind; ln 2 when it knows nothing.

    Only the discriminator may learn from it: stop the gradient of its inputs.

    Args:
      logits: (B, 2) for samples of q(z), class 0.
      permuted_logits: (B', 2) for samples of ``permute_dims``, class 1, from other images.

    Returns:
      Scalar float32, in nats.
    """
    chex.assert_shape([logits, permuted_logits], (None, 2))
    joint = jnp.mean(jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0])
    permuted = jnp.mean(jax.nn.log_softmax(permuted_logits.astype(jnp.float32))[:, 1])
    return -0.5 * (joint + permuted)


# Factorised support


def hausdorff_support_loss(
    key: jax.Array, values: jax.Array, *, num_pairs: int = 25, num_points: int | None = None
) -> jax.Array:
    """How far the support of pairs of latents is from a rectangle (HFS), summed over pairs.

        h_ij = max over (u, w) in Z_i x Z_j of  min over b of  |(u, w) - (z_bi, z_bj)|^2

    with Z_i the batch's values of latent i.

    Args:
      key: PRNG key, which draws the pairs without replacement, and the points.
      values: (B, K), posterior means.
      num_pairs: pairs i < j; all K (K - 1) / 2 where there are no more.
      num_points: points (u, w) drawn per pair; None takes all B^2, of memory B^3 per pair.

    Returns:
      Scalar float32, 0 where each pair fills its rectangle.
    """
    chex.assert_rank(values, 2)
    values = values.astype(jnp.float32)
    pair_key, point_key = jax.random.split(key)
    first, second = jnp.triu_indices(values.shape[1], 1)
    chosen = jax.random.choice(pair_key, len(first), (min(num_pairs, len(first)),), replace=False)

    # The farthest point and its nearest are sought without a gradient, which then is that of one
    # distance. The gradients of max and min look for their element by comparing once more: where
    # a value computed anew is rounded otherwise they find none, and are 0 / 0.
    fixed = jax.lax.stop_gradient(values)

    def distance(pair: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, j, point_key = pair
        squared_i = (fixed[:, None, i] - fixed[None, :, i]) ** 2  # of (u, b)
        squared_j = (fixed[:, None, j] - fixed[None, :, j]) ** 2  # of (w, b)
        if num_points is None:
            u, w = jnp.unravel_index(jnp.arange(len(fixed) ** 2), (len(fixed), len(fixed)))
            to_batch = (squared_i[:, None] + squared_j[None]).reshape(-1, len(fixed))
        else:
            u, w = jax.random.randint(point_key, (2, num_points), 0, len(fixed))
            to_batch = squared_i[u] + squared_j[w]
        point = jnp.argmax(jnp.min(to_batch, axis=-1))
        nearest = jnp.argmin(to_batch[point])
        along_i = values[u[point], i] - values[nearest, i]
        along_j = values[w[point], j] - values[nearest, j]
        return along_i**2 + along_j**2

    keys = jax.random.split(point_key, len(chosen))
    return jnp.sum(jax.lax.map(distance, (first[chosen], second[chosen], keys)))
