"""The transformers: cache against full forward, what attends to what, and a slow NumPy version."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from worldmodels_jax.evaluation import cost
from worldmodels_jax.nn.transformer import (
    BidirectionalTransformer,
    CausalTransformer,
    clear_cache,
    init_cache,
)

B, S, D, HEADS, HIDDEN, LAYERS, MAX_LENGTH = 2, 9, 8, 2, 12, 2, 10
MODEL = CausalTransformer(D, LAYERS, HEADS, HIDDEN, MAX_LENGTH, dropout=0.5)
PRE_NORM = {
    "pre_norm": True,
    "activation": "gelu",
    "attention_bias": True,
    "epsilon": 1e-3,
    "attention_dropout": 0.5,
    "embedding_dropout": 0.5,
}
PRE_NORM_MODEL = CausalTransformer(D, LAYERS, HEADS, HIDDEN, MAX_LENGTH, dropout=0.5, **PRE_NORM)
# One episode; a boundary within the prefill; one in each half of the sequence.
SEGMENTS = {
    "one episode": np.zeros((B, S), np.int32),
    "boundaries": np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2, 3]], np.int32),
}


def inputs(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, S, D))


def random_variables(model):
    """Random everywhere, so that no zero bias and no unit scale hides a mistake."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs(), SEGMENTS["one episode"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def variables():
    return random_variables(MODEL)


@pytest.fixture(scope="module")
def pre_norm_variables():
    return random_variables(PRE_NORM_MODEL)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda variables, x, segments: MODEL.apply(variables, x, segments)[0])


def empty_cache(length=S):
    return init_cache(layers=LAYERS, batch=B, length=length, heads=HEADS, head_dim=D // HEADS)


# The cache


@pytest.mark.parametrize("length", [S, S + 3], ids=["exact cache", "room to spare"])
@pytest.mark.parametrize("prefill", [0, 4])
@pytest.mark.parametrize("episodes", SEGMENTS)
def test_prefill_and_decode_equal_the_full_forward(variables, forward, episodes, prefill, length):
    x, segments = inputs(), jnp.asarray(SEGMENTS[episodes])

    @jax.jit
    def cached(variables, x):
        cache, out = empty_cache(length), jnp.zeros((B, 0, D))
        if prefill:
            out, cache = MODEL.apply(variables, x[:, :prefill], segments[:, :prefill], cache)

        def decode(cache, inputs):
            token, segment = inputs
            hidden, cache = MODEL.apply(variables, token[:, None], segment[:, None], cache)
            return cache, hidden[:, 0]

        rest = jax.tree.map(lambda a: jnp.moveaxis(a[:, prefill:], 1, 0), (x, segments))
        cache, decoded = jax.lax.scan(decode, cache, rest)
        return jnp.concatenate([out, jnp.moveaxis(decoded, 0, 1)], axis=1), cache

    hidden, cache = cached(variables, x)
    assert cache.position == S
    np.testing.assert_array_equal(cache.segments[:, :S], segments)
    np.testing.assert_array_equal(cache.segments[:, S:], -1)
    np.testing.assert_allclose(hidden, forward(variables, x, segments), atol=1e-4)


def test_pre_norm_layers_decode_what_they_compute_at_once(pre_norm_variables):
    x, segments = inputs(), jnp.asarray(SEGMENTS["boundaries"])

    @jax.jit
    def both(variables, x):
        def decode(cache, inputs):
            token, segment = inputs
            out, cache = PRE_NORM_MODEL.apply(variables, token[:, None], segment[:, None], cache)
            return cache, out[:, 0]

        tokens = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, segments))
        _, decoded = jax.lax.scan(decode, empty_cache(), tokens)
        return jnp.moveaxis(decoded, 0, 1), PRE_NORM_MODEL.apply(variables, x, segments)[0]

    np.testing.assert_allclose(*both(pre_norm_variables, x), atol=1e-4)


def test_a_cleared_cache_is_like_a_new_one(variables):
    segments = jnp.asarray(SEGMENTS["one episode"])
    apply = jax.jit(MODEL.apply)
    _, cache = apply(variables, inputs(1), segments, empty_cache())
    again, _ = apply(variables, inputs()[:, :4], segments[:, :4], clear_cache(cache))
    new, _ = apply(variables, inputs()[:, :4], segments[:, :4], empty_cache())
    np.testing.assert_array_equal(again, new)


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
@pytest.mark.parametrize("model", [MODEL, PRE_NORM_MODEL], ids=["post-norm", "pre-norm"])
def test_the_last_state_alone_is_the_last_of_all_for_fewer_products(
    variables, pre_norm_variables, model, cached
):
    variables = variables if model is MODEL else pre_norm_variables
    x, segments = inputs(), jnp.asarray(SEGMENTS["boundaries"])
    cache = empty_cache(S + 2) if cached else None

    def states(variables, x, last):
        return model.apply(variables, x, segments, cache, last=last)

    whole, last = (functools.partial(states, last=last) for last in (False, True))
    expected, actual = jax.jit(lambda *args: (whole(*args), last(*args)))(variables, x)
    assert actual[0].shape == (B, 1, D)
    np.testing.assert_allclose(actual[0], expected[0][:, -1:], atol=1e-5)
    chex.assert_trees_all_close(actual[1], expected[1], atol=1e-5)
    # Of the last layer, query, output, both products of its perceptron; and of the attention.
    slots = S + 2 if cached else S
    saved = 2 * B * (S - 1) * (2 * D * D + 2 * D * model.hidden + 2 * slots * D)
    products = [cost.matmul_flops(f, variables, x) for f in (whole, last)]
    assert products[0] - products[1] == saved


def test_chunks_of_any_size_equal_the_full_forward(variables, forward):
    x, segments = inputs(), jnp.asarray(SEGMENTS["boundaries"])
    cache, out = empty_cache(), []
    apply = jax.jit(MODEL.apply)
    for start, end in ((0, 3), (3, 6), (6, 9)):
        hidden, cache = apply(variables, x[:, start:end], segments[:, start:end], cache)
        out.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(out, 1), forward(variables, x, segments), atol=1e-4)


# What attends to what


def influence(forward, variables, segments):
    """(B, S, S) bool: whether changing input j changes output i."""
    x, other = inputs(), inputs(1)
    plain = forward(variables, x, segments)
    columns = [
        np.abs(forward(variables, x.at[:, j].set(other[:, j]), segments) - plain).max(-1)
        for j in range(S)
    ]
    return np.stack(columns, -1) > 1e-6


@pytest.mark.parametrize("episodes", SEGMENTS)
def test_attention_is_causal_and_stays_within_the_segment(variables, forward, episodes):
    segments = SEGMENTS[episodes]
    same = segments[:, :, None] == segments[:, None, :]
    expected = same & np.tril(np.ones((S, S), bool))
    np.testing.assert_array_equal(influence(forward, variables, jnp.asarray(segments)), expected)


def test_a_segment_does_not_depend_on_what_was_before_it_bit_by_bit(variables, forward):
    segments = jnp.asarray(SEGMENTS["boundaries"])
    x = inputs()
    other = jnp.where(segments[..., None] >= 2, x, 100 * inputs(1))
    before, after = (np.asarray(forward(variables, v, segments)) for v in (x, other))
    kept = np.asarray(segments) >= 2
    np.testing.assert_array_equal(before[kept], after[kept])


def test_positions_keep_counting_across_a_reset(variables, forward):
    # The same token alone in its segment, at another place: only its position differs.
    x = jnp.broadcast_to(inputs()[:, :1], (B, S, D))
    alone = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    hidden = forward(variables, x, alone)
    assert np.abs(hidden[:, 1:] - hidden[:, :1]).max(-1).min() > 1e-3


# The layers


def layer_norm(x, params, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0.0)


def attend(x, params, allowed):
    """One sequence, one head and one query at a time."""
    size = D // HEADS
    query, key, value = (dense(x, params[name]) for name in ("query", "key", "value"))
    out = np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            keys = np.flatnonzero(allowed[i])
            scores = np.array([query[i, part] @ key[j, part] for j in keys]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[i, part] = (weights / weights.sum()) @ value[keys, part]
    return dense(out, params["out"])


def numpy_params(variables):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])


def test_causal_transformer_equals_slow_numpy(variables, forward):
    p, segments = numpy_params(variables), SEGMENTS["boundaries"]
    expected = []
    for b in range(B):
        allowed = (segments[b][:, None] == segments[b]) & np.tril(np.ones((S, S), bool))
        x = np.asarray(inputs()[b], np.float64) + p["positions"][:S]
        x = layer_norm(x, p["norm_in"], 1e-6)
        for layer in range(LAYERS):
            x = x + attend(x, p[f"attention_{layer}"], allowed)
            x = layer_norm(x, p[f"norm_attention_{layer}"], 1e-6)
            up = np.maximum(dense(x, p[f"up_{layer}"]), 0.0)
            x = layer_norm(x + dense(up, p[f"down_{layer}"]), p[f"norm_mlp_{layer}"], 1e-6)
        expected.append(x)
    hidden = forward(variables, inputs(), jnp.asarray(segments))
    np.testing.assert_allclose(hidden, expected, atol=1e-4)


def test_pre_norm_transformer_equals_slow_numpy(pre_norm_variables):
    p, segments = numpy_params(pre_norm_variables), SEGMENTS["boundaries"]
    assert set(p["attention_0"]["query"]) == {"kernel", "bias"}
    expected = []
    for b in range(B):
        allowed = (segments[b][:, None] == segments[b]) & np.tril(np.ones((S, S), bool))
        x = np.asarray(inputs()[b], np.float64) + p["positions"][:S]
        for layer in range(LAYERS):
            normed = layer_norm(x, p[f"norm_attention_{layer}"], 1e-3)
            x = x + attend(normed, p[f"attention_{layer}"], allowed)
            up = dense(layer_norm(x, p[f"norm_mlp_{layer}"], 1e-3), p[f"up_{layer}"])
            up = up * 0.5 * (1 + scipy.special.erf(up / np.sqrt(2)))
            x = x + dense(up, p[f"down_{layer}"])
        expected.append(layer_norm(x, p["norm_out"], 1e-3))
    forward = jax.jit(PRE_NORM_MODEL.apply)
    hidden, _ = forward(pre_norm_variables, inputs(), jnp.asarray(segments))
    np.testing.assert_allclose(hidden, expected, atol=1e-4)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "embedding_dropout"])
def test_each_dropout_acts_in_training_only(rate, pre_norm_variables):
    x, segments = inputs(), jnp.asarray(SEGMENTS["boundaries"])
    rates = dict.fromkeys(("dropout", "attention_dropout", "embedding_dropout"), 0.0)

    def run(value, deterministic):
        sizes = PRE_NORM | rates | {rate: value}
        model = CausalTransformer(D, LAYERS, HEADS, HIDDEN, MAX_LENGTH, **sizes)
        key = {"dropout": jax.random.key(0)}
        apply = jax.jit(
            lambda x: model.apply(pre_norm_variables, x, segments, None, deterministic, rngs=key)[0]
        )
        return apply(x)

    plain = run(0.0, False)
    np.testing.assert_allclose(run(0.5, True), plain, atol=1e-5)
    # A rate at which nothing is dropped takes the path of dropout to the same place.
    np.testing.assert_allclose(run(1e-6, False), plain, atol=1e-4)
    assert np.abs(run(0.5, False) - plain).max() > 0.1


def test_initial_kernels_have_the_standard_deviation_asked_for():
    model = CausalTransformer(64, 1, 2, 64, 128, **PRE_NORM, init_std=0.02)
    shape = jnp.zeros((1, 2, 64)), jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), *shape)["params"]
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        if kind == "kernel":
            assert np.std(x) == pytest.approx(0.02, rel=0.1)
        elif kind == "bias":
            np.testing.assert_array_equal(x, 0.0)


def test_causal_transformer_has_the_parameters_of_the_tables(variables):
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["positions"] == (MAX_LENGTH, D)
    # q, k, v, o have no bias.
    assert shapes["attention_0"] == {
        name: {"kernel": (D, D)} for name in ("query", "key", "value", "out")
    }
    assert shapes["up_1"] == {"kernel": (D, HIDDEN), "bias": (HIDDEN,)}


def test_dropout_is_on_in_training_only(variables):
    x, segments = inputs(), jnp.asarray(SEGMENTS["one episode"])

    @jax.jit
    def train(key):
        return MODEL.apply(variables, x, segments, None, False, rngs={"dropout": key})[0]

    first, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.1


def test_bidirectional_transformer_equals_slow_numpy():
    model = BidirectionalTransformer(LAYERS, HEADS, HIDDEN)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs())
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes
    )
    p = numpy_params(variables)
    assert set(p["attention_0"]["query"]) == {"kernel", "bias"}
    expected = []
    for x in np.asarray(inputs(), np.float64):
        for layer in range(LAYERS):
            normed = layer_norm(x, p[f"norm_attention_{layer}"], 1e-6)
            x = x + attend(normed, p[f"attention_{layer}"], np.ones((S, S), bool))
            up = dense(layer_norm(x, p[f"norm_mlp_{layer}"], 1e-6), p[f"up_{layer}"])
            gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            x = x + dense(gelu, p[f"down_{layer}"])
        expected.append(x)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, inputs()), expected, atol=1e-4)


def test_bfloat16_keeps_float32_parameters_and_a_bfloat16_cache():
    model = CausalTransformer(D, 1, HEADS, HIDDEN, MAX_LENGTH, dtype=jnp.bfloat16)
    segments = jnp.asarray(SEGMENTS["boundaries"])
    variables = jax.jit(model.init)(jax.random.key(0), inputs(), segments)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    cache = init_cache(
        layers=1, batch=B, length=S, heads=HEADS, head_dim=D // HEADS, dtype=jnp.bfloat16
    )
    hidden, cache = jax.jit(model.apply)(variables, inputs(), segments, cache)
    assert hidden.dtype == cache.keys[0].dtype == jnp.bfloat16
    exact = CausalTransformer(D, 1, HEADS, HIDDEN, MAX_LENGTH)
    full = jax.jit(exact.apply)(variables, inputs(), segments)[0]
    np.testing.assert_allclose(hidden.astype(jnp.float32), full, atol=0.1)


def test_a_sequence_longer_than_the_position_table_is_refused(variables):
    x = jnp.zeros((B, MAX_LENGTH + 1, D))
    with pytest.raises(ValueError, match=rf"{MAX_LENGTH + 1} tokens .* \({MAX_LENGTH} rows\)"):
        MODEL.apply(variables, x, jnp.zeros(x.shape[:2], jnp.int32))


def test_segments_of_another_shape_are_refused(variables):
    with pytest.raises(AssertionError):
        MODEL.apply(variables, inputs(), jnp.zeros((B, S + 1), jnp.int32))
