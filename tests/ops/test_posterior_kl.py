"""Per-image terms against hand literals, distrax and their invariances."""

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.ops import posterior_kl

K = 10
FLOOR = 33.487  # (K/2)(K - 1 - ln K) at K = 10


def random_posteriors(n=1000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (n, K)).astype(np.float32), rng.normal(0, 1, (n, K)).astype(np.float32)


def product_term(mean, log_variance):
    return posterior_kl.product_kl(jnp.asarray(mean), jnp.asarray(log_variance)).sum(-1)


def normal(mean, log_variance):
    return distrax.MultivariateNormalDiag(mean, jnp.exp(0.5 * log_variance))


# Likelihood and the KL to the prior


def test_bernoulli_is_a_sum_over_pixels_of_each_image():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (2, 4, 4, 3)).astype(np.float32)
    target = rng.integers(0, 2, logits.shape).astype(np.float32)
    expected = -distrax.Bernoulli(logits=logits).log_prob(target).sum((1, 2, 3))
    nll = posterior_kl.bernoulli_nll(jnp.asarray(logits), jnp.asarray(target))
    assert nll.shape == (2,)
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_bernoulli_of_grey_by_hand_and_far_out():
    grey = posterior_kl.bernoulli_nll(jnp.array([[0.0]]), jnp.array([[0.3]]))
    np.testing.assert_allclose(grey, [math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(
        posterior_kl.bernoulli_nll(jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]])), [2e4]
    )


@pytest.mark.parametrize(
    ("mean", "log_variance", "expected"),
    [
        ([0.0] * K, [0.0] * K, 0.0),
        ([1.0] * K, [0.0] * K, 5.0),
        ([0.0], [math.log(4)], 0.80685),
    ],
)
def test_kl_to_the_prior_by_hand(mean, log_variance, expected):
    kl = posterior_kl.standard_normal_kl(jnp.array(mean), jnp.array(log_variance))
    np.testing.assert_allclose(kl.sum(), expected, atol=1e-5)


def test_kl_to_the_prior_against_distrax():
    mean, log_variance = random_posteriors(20)
    prior = normal(jnp.zeros(K), jnp.zeros(K))
    expected = normal(mean, log_variance).kl_divergence(prior)
    kl = posterior_kl.standard_normal_kl(jnp.asarray(mean), jnp.asarray(log_variance))
    np.testing.assert_allclose(kl.sum(-1), expected, rtol=1e-4)


# The product of posteriors


@pytest.mark.parametrize(
    ("variance", "mean", "product_variance", "product_mean"),
    [([1.0, 1.0], [0.0, 2.0], 0.5, 1.0), ([1.0, 4.0], [0.0, 5.0], 0.8, 1.0)],
)
def test_product_by_hand(variance, mean, product_variance, product_mean):
    got = posterior_kl.product_of_posteriors(jnp.array(mean), jnp.log(jnp.array(variance)))
    np.testing.assert_allclose(got, [product_mean, math.log(product_variance)], rtol=1e-5)


def test_product_term_by_hand():
    # (1/2)[2 ln .5 + 2/.5 + 2 (1/.5) - 2]
    np.testing.assert_allclose(product_term([0.0, 2.0], [0.0, 0.0]), 2.30685, rtol=1e-5)


def test_product_term_against_distrax():
    mean, log_variance = random_posteriors(20)
    center, spread = posterior_kl.product_of_posteriors(
        jnp.asarray(mean), jnp.asarray(log_variance)
    )
    wide = jnp.ones((20, K))
    target = normal(center[:, None] * wide, spread[:, None] * wide)
    expected = normal(mean, log_variance).kl_divergence(target)
    np.testing.assert_allclose(product_term(mean, log_variance), expected, rtol=1e-4)


def test_product_term_has_its_floor_where_all_latents_agree():
    np.testing.assert_allclose(product_term([3.0] * K, [-1.0] * K), FLOOR, rtol=1e-4)
    np.testing.assert_allclose(product_term([3.0], [-1.0]), 0.0, atol=1e-6)
    assert (product_term(*random_posteriors()) > FLOOR).all()


def test_product_term_ignores_order_shift_and_scale():
    mean, log_variance = random_posteriors(20)
    expected = product_term(mean, log_variance)
    moved = product_term(3 * mean - 2, log_variance + 2 * np.float32(math.log(3)))
    np.testing.assert_allclose(moved, expected, rtol=1e-4)
    order = np.random.default_rng(2).permutation(K)
    np.testing.assert_allclose(product_term(mean[:, order], log_variance[:, order]), expected, 1e-5)


def test_product_term_is_stationary_where_all_latents_agree():
    gradient = jax.jit(jax.grad(product_term, argnums=(0, 1)))
    np.testing.assert_allclose(gradient(jnp.zeros(K), jnp.full(K, -2.0)), 0.0, atol=1e-5)


# α-TCVAE


@pytest.mark.parametrize(
    ("alpha", "num_latents", "expected"),
    [
        (0.0, 10, (0.0, 1.0)),
        (0.25, 10, (0.25641, 0.76923)),
        (0.5, 10, (0.52632, 0.52632)),
        (0.75, 10, (0.81081, 0.27027)),
        (1.0, 10, (1.11111, 0.0)),
        (0.25, 48, (0.25131, 0.75393)),
    ],
)
def test_weights_of_the_thesis(alpha, num_latents, expected):
    np.testing.assert_allclose(posterior_kl.alpha_weights(alpha, num_latents), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "num_latents", "message"),
    [(-0.1, 10, "alpha is -0.1"), (1.1, 10, "alpha is 1.1"), (1.0, 1, "there are 1")],
)
def test_weights_out_of_range(alpha, num_latents, message):
    with pytest.raises(ValueError, match=message):
        posterior_kl.alpha_weights(alpha, num_latents)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_alpha_zero_is_the_usual_kl_bit_by_bit(beta):
    mean, log_variance = map(jnp.asarray, random_posteriors(20))
    loss = posterior_kl.alpha_tc_loss(mean, log_variance, alpha=0.0, beta=beta)
    expected = beta * posterior_kl.standard_normal_kl(mean, log_variance).sum(-1)
    np.testing.assert_array_equal(loss, expected)


def test_alpha_loss_by_hand():
    # K = 2, α = .5: both weights 2/3; C = 2.30685, V = 2.
    mean, log_variance = jnp.array([0.0, 2.0]), jnp.zeros(2)
    loss = posterior_kl.alpha_tc_loss(mean, log_variance, alpha=0.5, beta=3.0)
    np.testing.assert_allclose(loss, 2 * (2.30685 + 2), rtol=1e-5)
    loss = posterior_kl.alpha_tc_loss(mean, log_variance, alpha=0.5, beta=3.0, reduction="mean")
    np.testing.assert_allclose(loss, 2 * (2.30685 / 2 + 2), rtol=1e-5)


def test_alpha_loss_and_its_gradient_are_finite_far_out():
    log_variance = jnp.linspace(-20.0, 20.0, K)

    def loss(mean, log_variance):
        return posterior_kl.alpha_tc_loss(mean, log_variance, alpha=0.25)

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        jnp.linspace(-5, 5, K), log_variance
    )
    assert all(jnp.isfinite(x).all() for x in (value, *gradient))


def test_categorical_loss_by_hand():
    log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]]))  # product: .1 : .4
    c = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    v = math.log(2) + 0.2 * math.log(0.2) + 0.8 * math.log(0.8)
    loss = posterior_kl.categorical_alpha_tc_loss(log_probs, alpha=0.5, beta=3.0)
    np.testing.assert_allclose(loss, 2 * (c + v), rtol=1e-5)


def test_categorical_loss_of_uniform_latents_is_zero():
    loss = posterior_kl.categorical_alpha_tc_loss(jnp.full((3, 4, 8), -math.log(8)), alpha=0.25)
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-5)


# Annealed capacity


@pytest.mark.parametrize(("step", "expected"), [(0, 10.0), (4, 0.0), (8, 10.0), (80, 15.0)])
def test_capacity_by_hand(step, expected):
    loss = posterior_kl.capacity_loss(jnp.array(10.0), step, capacity=25.0, steps=10)
    np.testing.assert_allclose(loss, expected, atol=1e-5)
