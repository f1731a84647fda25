"""The quantisers: literals, a slow NumPy codebook update, revival, gradients, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from worldmodels_jax.nn import quantiser
from worldmodels_jax.nn.quantiser import Codebook, Quantiser, normalise, update_codebook

N, K = 8, 3
KEY = jax.random.key(0)


def unit(x):
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def random_units(count, seed):
    return unit(np.random.default_rng(seed).normal(size=(count, K))).astype(np.float32)


def codebook(usage=None, updates=0):
    usage = np.full(N, 1 / N) if usage is None else usage
    return Codebook(
        jnp.asarray(random_units(N, 0)), jnp.asarray(usage, jnp.float32), jnp.asarray(updates)
    )


# Only codes 0 and 1 have been used: an entropy of 1 bit, the limit of revival at any time.
TWO_USED = np.array([0.5, 0.5, 0, 0, 0, 0, 0, 0])
# One bit and a half; log2 8 - 2 is 1, so nothing is revived.
THREE_USED = np.array([0.5, 0.25, 0.25, 0, 0, 0, 0, 0])


# The nearest code


def make(variant, **changes):
    return Quantiser(variant, N, K, 0.25, **changes)


def apply(model, variables, *args, **kwargs):
    return jax.jit(lambda v, *a: model.apply(v, *a, **kwargs))(variables, *args)


def test_cosine_takes_the_largest_cosine_of_vectors_of_any_length():
    book = codebook()
    vectors = np.random.default_rng(1).normal(size=(4, 5, K)).astype(np.float32)
    got = apply(make("cosine_ema"), {"vq": {"codebook": book}}, vectors)
    direction = unit(vectors.astype(np.float64))
    cosine = np.einsum("...k,nk->...n", direction, np.asarray(book.codes))
    np.testing.assert_array_equal(got.tokens, cosine.argmax(-1))
    np.testing.assert_array_equal(got.vectors, np.asarray(book.codes)[cosine.argmax(-1)])
    # |v - q|^2 = 2 - 2 cos for unit vectors, over K coordinates.
    np.testing.assert_allclose(got.loss, 0.25 * (2 - 2 * cosine.max(-1)) / K, atol=1e-6)


def test_euclidean_takes_the_least_distance():
    codes = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0], *[[9, 9, 9]] * 5], np.float32)
    vectors = np.array([[1.4, 0, 0], [1.6, 0, 0], [0, 3, 0]], np.float32)
    got = apply(make("euclidean"), {"params": {"codes": codes}}, vectors)
    np.testing.assert_array_equal(got.tokens, [0, 1, 2])
    np.testing.assert_allclose(got.loss, 1.25 * np.array([1.96, 1.96, 1.0]) / 3, rtol=1e-6)


@pytest.mark.parametrize("variant", ["cosine_ema", "euclidean"])
def test_the_gradient_of_the_code_is_passed_straight_through(variant):
    model = make(variant)
    variables = model.init(KEY, jnp.zeros((1, K)))
    vectors = jax.random.normal(KEY, (5, K))
    weights = jax.random.normal(jax.random.key(1), (5, K))

    def through(vectors):
        return (model.apply(variables, vectors).vectors * weights).sum()

    expected = weights
    if variant == "cosine_ema":  # what is quantised is the direction
        expected = jax.grad(lambda v: (normalise(v) * weights).sum())(vectors)
    np.testing.assert_allclose(jax.grad(through)(vectors), expected, atol=1e-5)


def test_a_trained_codebook_is_drawn_to_its_vectors_and_an_averaged_one_is_no_parameter():
    vectors = jax.random.normal(KEY, (5, K))
    model = make("euclidean")
    variables = model.init(KEY, vectors)

    def loss(params):
        got = model.apply({"params": params}, vectors)
        return got.loss.sum(), got

    gradient, got = jax.grad(loss, has_aux=True)(variables["params"])
    expected = np.zeros((N, K))
    np.add.at(expected, got.tokens, 2 / K * np.asarray(got.vectors - vectors))
    np.testing.assert_allclose(gradient["codes"], expected, atol=1e-5)
    assert "params" not in make("cosine_ema").init(KEY, vectors)


# The update


def slow_update(book, vectors, tokens, valid):
    """Without revival."""
    codes, usage = np.array(book.codes, np.float64), np.array(book.usage, np.float64)
    for c in range(N):
        mine = [v for v, t, ok in zip(vectors, tokens, valid, strict=True) if ok and t == c]
        mean = unit(np.mean(mine, 0)) if mine else np.zeros(K)
        codes[c] = unit(0.99 * codes[c] + 0.01 * mean)
        usage[c] = 0.98 * usage[c] + 0.02 * len(mine) / sum(valid)
    return codes, usage


def batch(count=12):
    tokens = np.array([0, 1, 1, 2] * (count // 4), np.int32)
    return random_units(count, 2), tokens, np.arange(count) % 5 > 0


update = jax.jit(update_codebook, static_argnames=("revival_limit", "axis_name"))


def test_update_equals_slow_numpy_over_what_is_valid():
    book = codebook()
    after = update(book, *batch(), KEY)
    codes, usage = slow_update(book, *batch())
    np.testing.assert_allclose(after.codes, codes, atol=1e-6)
    np.testing.assert_allclose(after.usage, usage, atol=1e-7)
    np.testing.assert_allclose((np.asarray(after.codes) ** 2).sum(-1), 1.0, atol=1e-6)
    # A code without vectors keeps its direction.
    np.testing.assert_allclose(after.codes[3:], book.codes[3:], atol=1e-6)
    assert np.abs(after.codes[:3] - book.codes[:3]).max(-1).min() > 1e-4
    assert after.updates == 1


def test_a_batch_without_a_valid_vector_changes_nothing():
    vectors, tokens, _ = batch()
    # Not even where all but one code are dead.
    book = codebook(np.eye(N)[0])
    after = update(book, vectors, tokens, np.zeros(12, bool), KEY)
    jax.tree.map(np.testing.assert_array_equal, after, book)


@pytest.mark.parametrize(
    ("usage", "limit", "updates", "revived"),
    [
        (TWO_USED, None, 10**6, True),
        (TWO_USED, 400, 399, True),
        (TWO_USED, 400, 400, True),  # below one bit it is always allowed
        (TWO_USED, 0, 0, True),
        (THREE_USED, None, 0, False),  # more than log2 N - 2 bits
        (THREE_USED, 0, 0, False),
    ],
)
def test_dead_codes_are_revived_under_the_stated_condition_only(usage, limit, updates, revived):
    book = codebook(usage, updates)
    vectors, _, valid = batch()
    tokens = np.zeros(12, np.int32)
    after = update(book, vectors, tokens, valid, KEY, revival_limit=limit)
    _, expected = slow_update(book, vectors, tokens, valid)
    dead = expected < 1 / (10 * N)
    assert dead.sum() == (N - 2 if usage is TWO_USED else N - 3)
    same = np.abs(after.codes[:, None] - vectors[valid]).max(-1) < 1e-6  # (N, valid)
    np.testing.assert_array_equal(same.any(-1), dead & revived)
    np.testing.assert_allclose(after.usage, np.where(dead & revived, 1 / N, expected), atol=1e-7)
    if revived:
        assert len(set(same[dead].argmax(-1))) > 1


def test_the_limit_stops_revival_between_one_bit_and_the_threshold():
    # N = 64: dead codes are revived below 4 bits, after the limit below 1 bit only.
    usage = np.where(np.arange(64) < 4, 0.25, 0.0)
    codes = unit(np.random.default_rng(0).normal(size=(64, K))).astype(np.float32)
    vectors, _, _ = batch()
    tokens, valid = np.arange(12, dtype=np.int32) % 4, np.ones(12, bool)

    def revived(updates):
        book = Codebook(jnp.asarray(codes), jnp.asarray(usage, jnp.float32), jnp.asarray(updates))
        after = update(book, vectors, tokens, valid, KEY, revival_limit=400)
        return int((after.usage == 1 / 64).sum())

    assert revived(399) == 60
    assert revived(400) == 0


def test_usage_entropy_in_bits():
    usage = jnp.array([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 1.0, 0.0]])
    np.testing.assert_allclose(quantiser.usage_entropy(usage), [2.0, 0.0, 1.5], atol=1e-6)


def test_update_over_devices_is_that_of_the_whole_batch_and_the_same_everywhere():
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    vectors, tokens, valid = batch()
    valid[3:6] = False  # nothing is valid on device 1

    def run(book, fold):
        keys = jax.random.split(KEY, 4)

        def local(book, vectors, tokens, valid, key):
            after = update_codebook(book, vectors, tokens, valid, key[0], axis_name="device")
            return jax.tree.map(lambda x: x[None], after)

        split = P("device")
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), split, split, split, split), out_specs=split
        )
        return jax.jit(mapped)(book, vectors, fold(tokens), valid, keys)

    each = run(codebook(), lambda tokens: tokens)
    codes, usage = slow_update(codebook(), vectors, tokens, valid)
    for device in range(4):
        np.testing.assert_allclose(each.codes[device], codes, atol=1e-6)
        np.testing.assert_allclose(each.usage[device], usage, atol=1e-6)
    # Revival: every device takes the same vectors, valid ones of whichever device.
    each = run(codebook(TWO_USED), np.zeros_like)
    np.testing.assert_array_equal(each.codes, np.broadcast_to(each.codes[:1], (4, N, K)))
    distance = np.abs(np.asarray(each.codes[0])[2:, None] - vectors[valid]).max(-1)
    assert distance.min(-1).max() < 1e-6
    assert len(set(distance.argmin(-1))) > 1


# The module


def test_the_module_updates_its_state_where_it_is_told_to():
    model = make("cosine_ema")
    vectors = 3.0 * jax.random.normal(KEY, (2, 4, K))
    valid = jnp.ones((2, 4), bool)
    variables = model.init(KEY, vectors)
    book = variables["vq"]["codebook"]
    np.testing.assert_allclose((np.asarray(book.codes) ** 2).sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(book.usage, 1 / N)

    def train(model, vectors):
        got = model(vectors)
        model.update(vectors, got.tokens, valid, KEY)
        return got, model.entropy(got.tokens, valid)

    (got, entropy), state = model.apply(variables, vectors, method=train, mutable=["vq"])
    flat = unit(np.asarray(vectors, np.float64)).reshape(-1, K)
    codes, usage = slow_update(book, flat, np.asarray(got.tokens).ravel(), [True] * 8)
    np.testing.assert_allclose(state["vq"]["codebook"].codes, codes, atol=1e-6)
    np.testing.assert_allclose(state["vq"]["codebook"].usage, usage, atol=1e-7)
    expected = -(usage * np.log2(usage)).sum() / usage.sum()
    assert entropy == pytest.approx(expected + np.log2(usage.sum()), abs=1e-5)
    # Quantising alone leaves the state as it is, or this would raise.
    model.apply(variables, vectors)


def test_entropy_of_a_trained_codebook_is_that_of_the_valid_tokens():
    tokens, valid = jnp.array([0, 1, 1, 7]), jnp.array([True, True, True, False])
    model = make("euclidean")
    variables = model.init(KEY, jnp.zeros((1, K)))
    entropy = model.apply(variables, tokens, valid, method="entropy")
    assert entropy == pytest.approx(-(np.log2(1 / 3) / 3 + 2 / 3 * np.log2(2 / 3)), abs=1e-5)


def test_a_zero_vector_stays_zero_and_has_a_finite_gradient():
    np.testing.assert_array_equal(normalise(jnp.zeros((2, K))), 0.0)
    assert np.isfinite(jax.grad(lambda v: normalise(v).sum())(jnp.zeros(K))).all()
