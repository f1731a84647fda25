"""Two-hot regression, both variants, against hand literals, a slow NumPy version and rlax."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from worldmodels_jax.ops import twohot

BINS = twohot.symlog_bins()
E = math.e


def test_symlog_and_symexp_literals():
    raw = jnp.array([0.0, E - 1, 1 - E, E**3 - 1])
    logs = jnp.array([0.0, 1.0, -1.0, 3.0])
    np.testing.assert_allclose(twohot.symlog(raw), logs, rtol=1e-6)
    np.testing.assert_allclose(twohot.symexp(logs), raw, rtol=1e-6)


def test_symexp_inverts_symlog_even_for_tiny_values():
    positive = np.geomspace(1e-8, 1e4, 100).astype(np.float32)
    x = np.concatenate([-positive, [0.0], positive])
    np.testing.assert_allclose(twohot.symexp(twohot.symlog(jnp.asarray(x))), x, rtol=1e-5)


def test_gradients_of_symlog_and_symexp_at_zero_and_beside_it():
    x = jnp.array([-3.0, 0.0, 3.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(twohot.symlog))(x), [0.25, 1.0, 0.25])
    np.testing.assert_allclose(jax.vmap(jax.grad(twohot.symexp))(x), [E**3, 1.0, E**3], rtol=1e-6)


def test_bins_are_symmetric_and_reach_the_limit():
    assert BINS.shape == (255,)
    assert BINS.dtype == jnp.float32
    assert (BINS[0], BINS[127], BINS[254]) == (-20.0, 0.0, 20.0)
    np.testing.assert_array_equal(BINS, -BINS[::-1])
    np.testing.assert_allclose(twohot.symlog_bins(4, 3.0), [-3.0, -1.0, 1.0, 3.0])


@pytest.mark.parametrize(("num_bins", "limit"), [(1, 20.0), (255, 0.0), (255, -2.0)])
def test_bins_refuse_what_cannot_be_a_code(num_bins, limit):
    with pytest.raises(ValueError, match=r"at least 2|positive"):
        twohot.symlog_bins(num_bins, limit)


def test_two_hot_literals_on_uneven_bins():
    bins = jnp.array([-1.0, 0.0, 2.0])
    x = jnp.array([[-9.0, -1.0, -0.25], [0.0, 0.5, 7.0]])
    expected = [
        [[1, 0, 0], [1, 0, 0], [0.25, 0.75, 0]],
        [[0, 1, 0], [0, 0.75, 0.25], [0, 0, 1]],
    ]
    np.testing.assert_array_equal(twohot.two_hot(x, bins), np.array(expected, np.float32))


def test_two_hot_equals_a_slow_search_and_rlax():
    x = np.random.default_rng(0).uniform(-22, 22, 200).astype(np.float32)
    x[:3] = [-20.0, 20.0, BINS[100]]
    bins = np.asarray(BINS, np.float64)
    expected = np.zeros((200, 255))
    for row, value in zip(expected, np.clip(x.astype(np.float64), -20, 20), strict=True):
        k = min(int(np.searchsorted(bins, value, side="right")) - 1, 253)
        row[k + 1] = (value - bins[k]) / (bins[k + 1] - bins[k])
        row[k] = 1 - row[k + 1]
    actual = twohot.two_hot(jnp.asarray(x), BINS)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_allclose(actual.sum(-1), 1.0, atol=1e-6)
    assert ((actual > 0).sum(-1) <= 2).all()
    library = rlax.transform_to_2hot(jnp.asarray(x), -20.0, 20.0, 255)
    np.testing.assert_allclose(actual, library, atol=1e-4)


def test_encoding_then_decoding_is_the_identity_up_to_the_end_bins():
    logs = np.concatenate([np.linspace(-20, 20, 4001), np.geomspace(1e-4, 1, 100)])
    x = (np.sign(logs) * np.expm1(np.abs(logs))).astype(np.float32)
    weights = twohot.two_hot(twohot.symlog(jnp.asarray(x)), BINS)
    decoded = twohot.two_hot_symlog_mean(jnp.log(weights), BINS)
    np.testing.assert_allclose(decoded, x, rtol=1e-3, atol=1e-12)


def test_beyond_the_end_bins_the_code_saturates():
    x = jnp.array([-1e12, 1e12])
    decoded = twohot.two_hot_symlog_mean(jnp.log(twohot.two_hot(twohot.symlog(x), BINS)), BINS)
    np.testing.assert_allclose(decoded, [-np.expm1(20.0), np.expm1(20.0)], rtol=1e-5)


def test_mean_literals():
    bins = jnp.array([-1.0, 0.0, 2.0])
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])) + 7.0
    expected = [0.0, math.expm1(1.3)]
    np.testing.assert_allclose(twohot.two_hot_symlog_mean(logits, bins), expected, atol=1e-6)
    assert abs(twohot.two_hot_symlog_mean(jnp.zeros(255), BINS)) < 1e-5


def test_loss_literals():
    bins = jnp.array([-1.0, 0.0, 1.0])
    logits = jnp.log(jnp.array([0.2, 0.3, 0.5])) + 4.0
    loss = twohot.two_hot_symlog_loss(logits, jnp.array(math.expm1(0.25)), bins)
    np.testing.assert_allclose(loss, -0.75 * math.log(0.3) - 0.25 * math.log(0.5), rtol=1e-5)


def test_loss_gradient_is_softmax_minus_code_at_zero_and_at_both_ends():
    target = jnp.array([0.0, -1e12, 1e12, 5.0])
    logits = jax.random.normal(jax.random.key(0), (4, 255))

    def loss(logits, target):
        return twohot.two_hot_symlog_loss(logits, target, BINS).sum()

    to_logits, to_target = jax.jit(jax.grad(loss, argnums=(0, 1)))(logits, target)
    expected = jax.nn.softmax(logits) - twohot.two_hot(twohot.symlog(target), BINS)
    np.testing.assert_allclose(to_logits, expected, atol=1e-6)
    np.testing.assert_array_equal(to_target, 0.0)


def test_gradient_through_the_code_itself_is_finite():
    def first_moment(x):
        return twohot.two_hot(twohot.symlog(x), BINS) @ BINS

    x = jnp.array([0.0, -1e12, 1e12, 5.0, twohot.symexp(jnp.array(20.0))])
    assert jnp.isfinite(jax.vmap(jax.grad(first_moment))(x)).all()


def test_losses_are_float32_for_a_bfloat16_head_and_agree_under_vmap_and_scan():
    logits = jax.random.normal(jax.random.key(1), (3, 2, 255), jnp.bfloat16)
    target = jnp.arange(6.0).reshape(3, 2)
    whole = twohot.two_hot_symlog_loss(logits, target, BINS)
    assert whole.dtype == twohot.two_hot_symlog_mean(logits, BINS).dtype == jnp.float32

    def one(logits, target):
        return twohot.two_hot_symlog_loss(logits, target, BINS)

    mapped = jax.vmap(jax.vmap(one))(logits, target)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, one(*x)), 0, (logits, target))
    np.testing.assert_allclose(mapped, whole, rtol=1e-6)
    np.testing.assert_allclose(scanned, whole, rtol=1e-6)


def test_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(AssertionError):
        twohot.two_hot_symlog_loss(jnp.zeros((4, 255)), jnp.zeros((4, 1)), BINS)


# Bins in raw space


RAW = twohot.symexp_bins()


@pytest.mark.parametrize("num_bins", [2, 5, 8, 255])
def test_raw_bins_mirror_each_other_exactly(num_bins):
    bins = np.asarray(twohot.symexp_bins(num_bins))
    assert bins.shape == (num_bins,)
    np.testing.assert_array_equal(bins, -bins[::-1])
    np.testing.assert_allclose(bins[-1], np.expm1(20.0), rtol=1e-6)
    steps = np.sign(bins) * np.log1p(np.abs(bins.astype(np.float64)))
    np.testing.assert_allclose(steps, np.linspace(-20, 20, num_bins), atol=1e-5)


def test_raw_bins_refuse_what_overflows():
    with pytest.raises(ValueError, match="limit is 89"):
        twohot.symexp_bins(255, 89.0)
    with pytest.raises(ValueError, match="at least 2"):
        twohot.symexp_bins(1)
    assert np.isfinite(twohot.symexp_bins(255, 88.0)).all()


def test_raw_bins_can_be_made_while_compiling():
    np.testing.assert_array_equal(
        jax.jit(twohot.symexp_bins, static_argnums=(0, 1))(255, 20.0), RAW
    )


def test_raw_decoding_inverts_encoding_and_is_exact_on_a_bin():
    decode = jax.jit(lambda y: twohot.two_hot_mean(jnp.log(twohot.two_hot(y, RAW)), RAW))
    magnitudes = np.geomspace(1e-3, 1e5, 500)
    y = np.concatenate([-magnitudes, [0.0], magnitudes]).astype(np.float32)
    np.testing.assert_allclose(decode(y), y, rtol=1e-4)
    np.testing.assert_array_equal(decode(RAW), RAW)
    np.testing.assert_array_equal(decode(jnp.array([-1e12, 1e12])), [RAW[0], RAW[-1]])


@pytest.mark.parametrize("compile", [True, False])
def test_equal_logits_predict_exactly_nothing(compile):
    mean = lambda logits: twohot.two_hot_mean(logits, RAW)  # noqa: E731
    mean = jax.jit(mean) if compile else mean
    np.testing.assert_array_equal(mean(jnp.zeros((3, 255))), 0.0)
    np.testing.assert_array_equal(mean(jnp.full((3, 255), -7.3)), 0.0)
    logits = jax.random.normal(jax.random.key(0), (5, 255))
    np.testing.assert_array_equal(mean(logits + logits[:, ::-1]), 0.0)


@pytest.mark.parametrize("num_bins", [6, 7])
def test_raw_mean_is_the_expected_bin(num_bins):
    bins = twohot.symexp_bins(num_bins, 3.0)
    logits = np.random.default_rng(0).normal(size=(4, num_bins))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = twohot.two_hot_mean(jnp.asarray(logits, jnp.bfloat16), bins)
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, probs @ np.asarray(bins, np.float64), rtol=0.05, atol=0.05)
    mean = twohot.two_hot_mean(jnp.asarray(logits), bins)
    np.testing.assert_allclose(mean, probs @ np.asarray(bins, np.float64), rtol=1e-5)


def test_raw_loss_literals():
    bins = jnp.array([-2.0, 0.0, 2.0])
    logits = jnp.log(jnp.array([0.2, 0.3, 0.5])) + 4.0
    loss = twohot.two_hot_loss(logits, jnp.array(0.5), bins)
    np.testing.assert_allclose(loss, -0.75 * math.log(0.3) - 0.25 * math.log(0.5), rtol=1e-5)
    gradient = jax.grad(lambda y: twohot.two_hot_loss(logits, y, bins))(jnp.array(0.5))
    assert gradient == 0.0
    with pytest.raises(AssertionError):
        twohot.two_hot_loss(jnp.zeros((4, 3)), jnp.zeros((4, 1)), bins)


def test_under_noise_raw_bins_predict_the_mean_and_symlog_bins_do_not():
    """Targets 0 and 100 at even odds: the best distribution is the average of their codes."""
    y = jnp.array([0.0, 100.0])
    raw = jnp.log(twohot.two_hot(y, RAW).mean(0))
    np.testing.assert_allclose(twohot.two_hot_mean(raw, RAW), 50.0, rtol=1e-5)
    log = jnp.log(twohot.two_hot(twohot.symlog(y), BINS).mean(0))
    np.testing.assert_allclose(twohot.two_hot_symlog_mean(log, BINS), 9.05, atol=0.01)
