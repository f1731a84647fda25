"""Categorical latents against hand literals, scipy and chi-square bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from worldmodels_jax.ops import categorical

DRAWS = 20_000


def random_probs(*shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


# Unimix


def test_unimix_literal():
    logits = jnp.array([5.0, 5.0 + math.log(3.0)])  # softmax 1/4, 3/4
    expected = np.log([0.9 * 0.25 + 0.05, 0.9 * 0.75 + 0.05])
    np.testing.assert_allclose(categorical.unimix_log_probs(logits, 0.1), expected, rtol=1e-5)


def test_unimix_bounds_extreme_logits_and_their_gradient():
    logits = jnp.array([1e4, 0.0, -1e4, 0.0])
    expected = np.log([0.99 + 0.0025, 0.0025, 0.0025, 0.0025])
    np.testing.assert_allclose(categorical.unimix_log_probs(logits), expected, rtol=1e-5)
    jacobian = jax.jacobian(categorical.unimix_log_probs)(logits)
    assert jnp.isfinite(jacobian).all()


def test_unimix_of_bfloat16_logits_is_float32_and_normalised():
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 6, 32), jnp.bfloat16)
    log_probs = categorical.unimix_log_probs(logits)
    assert log_probs.dtype == jnp.float32
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1.0, atol=1e-5)


def test_unimix_zero_keeps_the_far_tail():
    logits = jnp.array([0.0, -200.0])  # exp(-200) is 0 in float32
    np.testing.assert_allclose(categorical.unimix_log_probs(logits, 0.0), [0.0, -200.0])


@pytest.mark.parametrize("unimix", [-0.1, 1.0])
def test_unimix_refuses_what_is_no_share(unimix):
    with pytest.raises(ValueError, match=str(unimix)):
        categorical.unimix_log_probs(jnp.zeros(3), unimix)


# Sampling


def chi_square_passes(counts, probs):
    expected = counts.sum() * np.asarray(probs, np.float64)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic < scipy.stats.chi2.ppf(1 - 1e-4, counts.size - 1)


@pytest.mark.parametrize("total", [1.0, 0.9, 1.1])
def test_sample_frequencies_whatever_the_probabilities_sum_to(total):
    probs = np.array([0.05, 0.4, 0.1, 0.2, 0.25])
    log_probs = jnp.broadcast_to(jnp.log(total * probs), (DRAWS, 5))
    samples = jax.jit(categorical.sample_classes)(jax.random.key(0), log_probs)
    assert samples.shape == (DRAWS,)
    assert samples.dtype == jnp.int32
    counts = np.bincount(samples, minlength=5)
    assert chi_square_passes(counts, probs)
    assert not chi_square_passes(counts, probs[::-1])


def test_variables_are_sampled_independently():
    samples = categorical.sample_classes(jax.random.key(1), jnp.full((DRAWS, 2, 2), math.log(0.5)))
    assert chi_square_passes(np.bincount(2 * samples[:, 0] + samples[:, 1]), np.full(4, 0.25))


def test_classes_of_probability_zero_are_never_sampled():
    rng = np.random.default_rng(2)
    probs = random_probs(DRAWS, 33) * (rng.uniform(size=(DRAWS, 33)) < 0.3)
    probs[:, 20] += 1e-3  # no row without a possible class
    probs /= probs.sum(-1, keepdims=True)
    samples = categorical.sample_classes(jax.random.key(2), jnp.log(probs))
    assert (np.take_along_axis(probs, np.asarray(samples)[:, None], -1) > 0).all()


def test_rounding_across_an_impossible_class_does_not_make_it_possible(monkeypatch):
    # What a parallel cumulative sum may return for these probabilities, and a draw in the gap.
    rounded = jnp.array([0.25, 0.25 + 1e-7, 1.0])
    monkeypatch.setattr(jnp, "cumsum", lambda probs, axis: rounded)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, 0.25))
    sample = categorical.sample_classes(jax.random.key(0), jnp.log(jnp.array([0.25, 0.0, 0.75])))
    assert sample == 2


def test_a_certain_class_is_always_sampled():
    log_probs = jnp.log(jnp.eye(32))
    keys = jax.random.split(jax.random.key(3), 50)
    samples = jax.vmap(categorical.sample_classes, (0, None))(keys, log_probs)
    np.testing.assert_array_equal(samples, np.tile(np.arange(32), (50, 1)))


@pytest.mark.parametrize(
    ("uniform", "probs", "expected"),
    [
        (0.0, [0.0, 0.5, 0.5], 1),
        (0.2, [0.25, 0.5, 0.25], 0),
        (0.25, [0.25, 0.5, 0.25], 1),
        (0.75, [0.25, 0.5, 0.25], 2),
        (1 - 2**-23, [0.3, 0.7, 0.0], 1),
        (1 - 2**-23, [0.3, 0.3, 0.3], 2),
        (1 - 2**-23, [0.4, 0.4, 0.4], 2),
    ],
)
def test_inverse_of_the_cumulative_distribution_at_its_corners(
    monkeypatch, uniform, probs, expected
):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, uniform))
    sample = categorical.sample_classes(jax.random.key(0), jnp.log(jnp.array(probs)))
    assert sample == expected


def test_sampling_agrees_under_jit_vmap_and_scan():
    log_probs = jnp.log(random_probs(4, 6, 8))
    keys = jax.random.split(jax.random.key(4), 4)
    one_by_one = [
        categorical.sample_classes(key, row) for key, row in zip(keys, log_probs, strict=True)
    ]
    mapped = jax.jit(jax.vmap(categorical.sample_classes))(keys, log_probs)
    _, scanned = jax.lax.scan(
        lambda carry, x: (carry, categorical.sample_classes(*x)), 0, (keys, log_probs)
    )
    np.testing.assert_array_equal(mapped, jnp.stack(one_by_one))
    np.testing.assert_array_equal(scanned, mapped)


# Straight-through


def test_straight_through_is_the_sample_with_the_gradient_of_the_probabilities():
    # Many rows, since (1 + p) - p happens to be exactly 1 for most p.
    probs = jnp.asarray(random_probs(70, 7))
    one_hot = jax.nn.one_hot(jnp.arange(70) % 7, 7)
    weights = jax.random.normal(jax.random.key(0), (70, 7))
    value, pullback = jax.vjp(lambda p: categorical.straight_through(one_hot, p), probs)
    np.testing.assert_array_equal(value, one_hot)
    np.testing.assert_array_equal(pullback(weights)[0], weights)


# Entropy and KL


def test_entropy_equals_scipy():
    probs = random_probs(3, 4, 9)
    expected = scipy.stats.entropy(probs, axis=-1)
    np.testing.assert_allclose(categorical.entropy(jnp.log(probs)), expected, rtol=1e-5)


def test_entropy_with_impossible_classes():
    log_probs = jnp.log(jnp.array([0.5, 0.0, 0.5]))
    value, gradient = jax.value_and_grad(categorical.entropy)(log_probs)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    slope = -0.5 * (math.log(0.5) + 1)
    np.testing.assert_allclose(gradient, [slope, 0.0, slope], rtol=1e-6)
    assert categorical.entropy(jnp.log(jnp.array([0.0, 1.0]))) == 0.0


def test_kl_equals_scipy():
    q, p = random_probs(6, 9, seed=1), random_probs(6, 9, seed=2)
    expected = scipy.special.rel_entr(q, p).sum(-1)
    np.testing.assert_allclose(categorical.kl_divergence(q, jnp.log(p)), expected, rtol=1e-4)


def test_kl_gradient_to_both_sides():
    q, p = random_probs(9, seed=1), random_probs(9, seed=2)
    to_q, to_log_p = jax.grad(categorical.kl_divergence, argnums=(0, 1))(q, jnp.log(p))
    np.testing.assert_allclose(to_q, np.log(q / p) + 1, rtol=1e-4)
    np.testing.assert_allclose(to_log_p, -q, rtol=1e-6)


def test_kl_of_a_one_hot_is_the_negative_log_likelihood():
    q = jnp.array([0.0, 1.0, 0.0])
    # The last class is impossible under both: 0 (log 0 - log 0) must be 0, gradient included.
    log_p = jnp.log(jnp.array([0.75, 0.25, 0.0]))
    value, gradients = jax.value_and_grad(categorical.kl_divergence, (0, 1))(q, log_p)
    np.testing.assert_allclose(value, math.log(4), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [0.0, math.log(4) + 1, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], [0.0, -1.0, 0.0])


def test_kl_of_a_subnormal_probability_is_that_of_zero():
    log_p = jnp.log(jnp.array([0.5, 0.5]))
    value, gradient = jax.value_and_grad(categorical.kl_divergence)(jnp.array([1.0, 1e-42]), log_p)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [math.log(2) + 1, 0.0], rtol=1e-6)


def test_kl_is_infinite_where_the_prior_excludes_the_posterior():
    q, p = jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])
    assert categorical.kl_divergence(q, jnp.log(p)) == jnp.inf


def test_balanced_kl_trains_one_side_each():
    q, p = random_probs(2, 3, 5, seed=1), random_probs(2, 3, 5, seed=2)
    expected = scipy.special.rel_entr(q, p).sum(-1)

    @jax.jit
    def pullbacks(q, log_p):
        (dyn, rep), pullback = jax.vjp(categorical.balanced_kl, q, log_p)
        ones, zeros = jnp.ones_like(dyn), jnp.zeros_like(dyn)
        return (dyn, rep), pullback((ones, zeros)), pullback((zeros, ones))

    values, (dyn_q, dyn_p), (rep_q, rep_p) = pullbacks(q, jnp.log(p))
    for value in values:
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_array_equal(dyn_q, 0.0)
    np.testing.assert_allclose(dyn_p, -q, rtol=1e-6)
    np.testing.assert_allclose(rep_q, np.log(q / p) + 1, rtol=1e-4)
    np.testing.assert_array_equal(rep_p, 0.0)


# Free bits


def test_free_bits_have_no_gradient_below_the_threshold():
    kl = jnp.array([0.2, 0.9, 3.0])
    np.testing.assert_array_equal(categorical.free_bits(kl), jnp.array([1.0, 1.0, 3.0]))
    np.testing.assert_array_equal(jax.vmap(jax.grad(categorical.free_bits))(kl), [0.0, 0.0, 1.0])
    assert categorical.free_bits(jnp.array(0.9), threshold=0.5) == jnp.array(0.9)
