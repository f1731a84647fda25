"""Aggregate-posterior estimators against slow NumPy, closed forms and identities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from worldmodels_jax.ops import total_correlation as tc

B, K, N = 7, 3, 50
decompose = jax.jit(tc.decompose_kl, static_argnames="chunk")


def random_batch(seed=0):
    rng = np.random.default_rng(seed)
    mean, log_variance = rng.normal(size=(2, B, K)).astype(np.float32)
    sample = mean + np.exp(0.5 * log_variance) * rng.normal(size=(B, K))
    return sample.astype(np.float32), mean, log_variance


def gaussian_aggregate(covariance, variance, n=4096, seed=0):
    """Samples of posteriors of one variance whose aggregate is N(0, covariance + variance I)."""
    rng = np.random.default_rng(seed)
    mean = rng.multivariate_normal(np.zeros(len(covariance)), covariance, n)
    sample = mean + math.sqrt(variance) * rng.normal(size=mean.shape)
    log_variance = np.full_like(mean, math.log(variance))
    weights = tc.log_weights("batch", n, n)
    return decompose(*map(jnp.float32, (sample, mean, log_variance)), weights)


# Weights


def test_stratified_weights_by_hand():
    # B = 3 of N = 10, M = 2: itself 1/10, the next (10 - 2)/20, the other 1/2.
    expected = [[0.1, 0.4, 0.5], [0.5, 0.1, 0.4], [0.4, 0.5, 0.1]]
    np.testing.assert_allclose(jnp.exp(tc.log_weights("stratified", 3, 10)), expected, rtol=1e-5)


@pytest.mark.parametrize(("batch_size", "dataset_size"), [(2, 2), (64, 12_000)])
def test_stratified_weights_sum_to_one(batch_size, dataset_size):
    weights = jnp.exp(tc.log_weights("stratified", batch_size, dataset_size))
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)


def test_constant_weights_by_hand():
    np.testing.assert_allclose(tc.log_weights("weighted", 2, 10), np.full((2, 2), -math.log(20)))
    np.testing.assert_allclose(tc.log_weights("batch", 4, 10), np.full((4, 4), -math.log(4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weighted", 8, 4), "batch of 8 .* data set of 4"),
        (("stratified", 1, 4), "batch of 1 cannot be stratified"),
        (("mss", 4, 8), "'mss'; give 'weighted'"),
    ],
)
def test_impossible_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tc.log_weights(*arguments)


# Decomposition


@pytest.mark.parametrize("weighting", ["weighted", "stratified", "batch"])
def test_decomposition_against_slow_numpy(weighting):
    sample, mean, log_variance = random_batch()
    weights = np.asarray(tc.log_weights(weighting, B, N))
    normal = scipy.stats.norm
    parts = np.zeros(3)
    per_latent = np.zeros(K)
    for i in range(B):
        g = normal.logpdf(sample[i], mean, np.exp(0.5 * log_variance))
        joint = scipy.special.logsumexp(g.sum(1) + weights[i])
        marginals = scipy.special.logsumexp(g + weights[i][:, None], axis=0)
        parts += [
            g[i].sum() - joint,
            joint - marginals.sum(),
            marginals.sum() - normal.logpdf(sample[i]).sum(),
        ]
        per_latent += g[i] - marginals
    got = decompose(sample, mean, log_variance, weights)
    np.testing.assert_allclose(jnp.stack(got[:3]), parts / B, rtol=1e-4)
    np.testing.assert_allclose(got.latent_information, per_latent / B, rtol=1e-4)


@pytest.mark.parametrize("weighting", ["weighted", "stratified"])
def test_parts_sum_to_the_sampled_kl(weighting):
    sample, mean, log_variance = random_batch(1)
    got = decompose(sample, mean, log_variance, tc.log_weights(weighting, B, N))
    log_q = scipy.stats.norm.logpdf(sample, mean, np.exp(0.5 * log_variance))
    kl = (log_q - scipy.stats.norm.logpdf(sample)).sum(1).mean()
    np.testing.assert_allclose(sum(got[:3]), kl, atol=1e-4)
    np.testing.assert_allclose(tc.beta_tc_loss(got, beta=1.0), kl, atol=1e-4)


def test_total_correlation_is_what_latents_know_in_excess():
    got = decompose(*random_batch(2), tc.log_weights("stratified", B, N))
    alone = got.latent_information
    np.testing.assert_allclose(alone.sum() - got.information, got.total_correlation, atol=1e-4)
    others = (K - 1) * alone - (got.information - alone)  # equation 1.5
    np.testing.assert_allclose(others.sum() / K, got.total_correlation, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_change_neither_value_nor_gradient(chunk):
    batch, weights = random_batch(3), tc.log_weights("stratified", B, N)

    def loss(sample, chunk):
        return tc.beta_tc_loss(tc.decompose_kl(sample, *batch[1:], weights, chunk=chunk), beta=4.0)

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for got, expected in zip(step(batch[0], chunk), step(batch[0], 512), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_latents", [2, 3])
def test_independent_latents_have_no_total_correlation(num_latents):
    got = gaussian_aggregate(0.5 * np.eye(num_latents), 0.5)
    assert abs(got.total_correlation) < 0.02
    # I(z_k; x) = (1/2) ln(1 / .5) each, and q(z) is the prior. One sample has a standard deviation
    # of about .7, their mean of .011.
    np.testing.assert_allclose(got.latent_information, 0.34657, atol=0.05)
    np.testing.assert_allclose(got.dimension_wise, 0.0, atol=0.05)


def test_total_correlation_of_a_gaussian():
    got = gaussian_aggregate(np.full((2, 2), 0.8), 0.2)
    np.testing.assert_allclose(got.total_correlation, -0.5 * math.log(1 - 0.64), atol=0.03)


def test_weighted_information_saturates():
    mean = 100 * jnp.arange(B * K, dtype=jnp.float32).reshape(B, K)
    got = decompose(mean, mean, jnp.zeros_like(mean), tc.log_weights("weighted", B, N))
    np.testing.assert_allclose(got.information, math.log(N * B), rtol=1e-3)


def test_weighted_sum_by_hand():
    parts = tc.Decomposition(*map(jnp.array, (1.0, 10.0, 100.0)), jnp.zeros(K))
    loss = tc.beta_tc_loss(parts, beta=4.0, information=2.0, dimension_wise=3.0)
    np.testing.assert_allclose(loss, 342.0)


# FactorVAE


def test_permutation_keeps_each_latent_and_parts_them():
    sample = jnp.broadcast_to(jnp.arange(100.0)[:, None], (100, 3))
    permuted = tc.permute_dims(jax.random.key(0), sample)
    np.testing.assert_array_equal(jnp.sort(permuted, axis=0), sample)
    columns = np.asarray(permuted).T
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert (columns[i] == columns[j]).mean() < 0.1


def test_density_ratio_by_hand():
    logits = jnp.array([[1.0, 0.0], [0.5, 2.5]])
    np.testing.assert_allclose(tc.density_ratio_tc(logits), -0.5)


def test_density_ratio_of_the_best_discriminator_is_the_total_correlation():
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    z = np.random.default_rng(0).multivariate_normal(np.zeros(2), covariance, 20_000)
    joint = scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf(z)
    logits = jnp.stack([jnp.asarray(joint), scipy.stats.norm.logpdf(z).sum(1)], axis=1)
    np.testing.assert_allclose(tc.density_ratio_tc(logits), 0.5108, atol=0.02)


def test_discriminator_loss_by_hand():
    sure = jnp.array([[math.log(3.0), 0.0]])  # 3/4 for class 0
    np.testing.assert_allclose(
        tc.discriminator_loss(sure, jnp.tile(sure, (2, 1))),
        -0.5 * (math.log(0.75) + math.log(0.25)),
        rtol=1e-5,
    )
    knows_nothing = jnp.zeros((4, 2))
    np.testing.assert_allclose(
        tc.discriminator_loss(knows_nothing, knows_nothing), math.log(2), rtol=1e-6
    )


# Factorised support

KEY = jax.random.key(0)
hfs = jax.jit(tc.hausdorff_support_loss, static_argnames=("num_pairs", "num_points"))


def grid(*sizes):
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in sizes), indexing="ij")
    return jnp.asarray(np.stack([axis.ravel() for axis in axes], axis=1))


def test_a_full_grid_has_no_distance():
    assert hfs(KEY, grid(2, 3, 2)) == 0


def test_a_diagonal_by_hand():
    # Farthest of the 3x3 grid from {(0,0), (1,1), (2,2)} is (0, 2): 2 from (1, 1).
    diagonal = jnp.tile(jnp.arange(3.0)[:, None], (1, 2))
    np.testing.assert_allclose(hfs(KEY, diagonal), 2.0)
    np.testing.assert_allclose(hfs(KEY, jnp.tile(diagonal, (1, 2))), 6 * 2.0)  # all pairs


def test_support_against_slow_numpy():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    expected = 0.0
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        cloud = values[:, [i, j]]
        corners = [np.array([u, w]) for u in values[:, i] for w in values[:, j]]
        expected += max(min(((c - z) ** 2).sum() for z in cloud) for c in corners)
    np.testing.assert_allclose(hfs(KEY, jnp.asarray(values)), expected, rtol=1e-5)


def test_pairs_are_drawn_without_replacement_and_points_are_a_subset():
    diagonal = jnp.tile(jnp.arange(3.0)[:, None], (1, 4))
    keys = jax.random.split(KEY, 20)
    some = jax.vmap(lambda key: hfs(key, diagonal, num_pairs=5))(keys)
    np.testing.assert_allclose(some, 10.0)
    cloud = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32))
    full = hfs(KEY, cloud)
    drawn = jax.vmap(lambda key: hfs(key, cloud, num_points=4))(keys)
    assert (drawn <= full + 1e-6).all()
    assert len(np.unique(drawn)) > 1
    np.testing.assert_allclose(hfs(KEY, cloud, num_points=1000), full, rtol=1e-6)


def test_which_pairs_depends_on_the_key():
    # Latents 0 and 1 fill their square; 2 repeats 0, so that only the pair (0, 2) is empty.
    square = grid(2, 2)
    values = jnp.concatenate([square, square[:, :1]], axis=1)
    one = jax.vmap(lambda key: hfs(key, values, num_pairs=1))(jax.random.split(KEY, 40))
    assert set(np.asarray(one)) == {0.0, 1.0}
