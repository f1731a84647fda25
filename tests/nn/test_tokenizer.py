"""The observation module: literals of both quantisers, the layers of the tables, BatchNorm."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn import tokenizer
from worldmodels_jax.nn.conv import conv4s2, conv_transpose4s2
from worldmodels_jax.nn.tokenizer import Tokenizer, padded_size

SHAPE, N, V, CODE = (10, 5, 2), 3, 4, 6
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 4, *SHAPE), np.uint8)
KEY = jax.random.key(0)


def make(kind="categorical", shape=SHAPE, **changes):
    sizes = {"num_tokens": N, "num_classes": V, "code_size": CODE, "unimix": 0.01} | changes
    return Tokenizer(kind, shape, channels=(4, 6), mlp_width=8, **sizes)


@pytest.fixture(scope="module")
def variables():
    """Of the categorical tokenizer; parameters of both signs, running variances positive."""
    shapes = jax.eval_shape(make().init, KEY, FRAMES, KEY)
    rng = np.random.default_rng(1)

    def draw(path, x):
        low = 0.5 if path[-1].key == "var" else -0.5
        return jnp.asarray(rng.uniform(low, low + 1.0, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def encode():
    return jax.jit(
        lambda variables, frames, key: make().apply(variables, frames, key, method="encode")
    )


@pytest.fixture(scope="module")
def decode():
    return jax.jit(lambda variables, vectors: make().apply(variables, vectors, method="decode"))


# Layers


@pytest.mark.parametrize(
    ("size", "levels", "expected"),
    [((64, 64), 4, (64, 64)), ((10, 5), 2, (12, 8)), ((10, 5), 3, (16, 8)), ((1, 3), 1, (2, 4))],
)
def test_padded_size(size, levels, expected):
    assert padded_size(size, levels) == expected


def test_an_encoder_too_deep_for_the_image_is_refused_with_a_depth_that_works():
    with pytest.raises(ValueError, match=r"10x5 .* 4 levels.* at most 3 entries"):
        padded_size((10, 5), 4)
    for height in range(1, 20):
        with pytest.raises(ValueError, match="entries") as refused:
            padded_size((height, 20), 6)
        deepest = int(re.search(r"at most (\d+) entries", str(refused.value))[1])
        padded_size((height, 20), deepest)
        with pytest.raises(ValueError, match="entries"):
            padded_size((height, 20), deepest + 1)


def batch_norm(x, params, stats):
    x = (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)
    return jnp.maximum(x * params["scale"] + params["bias"], 0.0)


def test_encoder_is_that_of_the_table(variables, encode):
    params, stats = variables["params"]["encoder"], variables["batch_stats"]["encoder"]
    x = jnp.pad(FRAMES.reshape(-1, *SHAPE) / 255.0, ((0, 0), (0, 2), (0, 3), (0, 0)))
    x = x.astype(jnp.float32)
    for i in range(2):
        x = conv4s2(x, params[f"Conv4S2_{i}"]["kernel"])
        x = batch_norm(x, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"])
    dense = variables["params"]["to_code"]
    logits = (x.reshape(2, 4, 3 * 2 * 6) @ dense["kernel"] + dense["bias"]).reshape(2, 4, N, V)
    expected = 0.99 * jax.nn.softmax(logits) + 0.01 / V
    np.testing.assert_allclose(encode(variables, FRAMES, KEY).probs, expected, atol=1e-5)


def test_decoder_is_that_of_the_table(variables, decode):
    params, stats = variables["params"]["decoder"], variables["batch_stats"]["decoder"]
    vectors = jax.random.normal(KEY, (2, 4, N, V))
    x = (vectors.reshape(8, -1) @ params["Dense_0"]["kernel"]).reshape(8, 3, 2, 6)
    x = batch_norm(x, params["BatchNorm_0"], stats["BatchNorm_0"])
    x = conv_transpose4s2(x, params["ConvTranspose4S2_0"]["kernel"])
    x = batch_norm(x, params["BatchNorm_1"], stats["BatchNorm_1"])
    last = params["ConvTranspose4S2_1"]
    x = conv_transpose4s2(x, last["kernel"]) + last["bias"]
    expected = x[:, :10, :5].reshape(FRAMES.shape)
    assert expected.min() < 0.0  # no activation
    actual = decode(variables, vectors)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_encoding_in_chunks_changes_nothing(variables, encode, monkeypatch):
    whole = encode(variables, FRAMES, KEY)
    monkeypatch.setattr(tokenizer, "_CHUNK", 3 * 10 * 5)  # of 8 frames: a remainder is left
    chunked = jax.jit(lambda v: make().apply(v, FRAMES, KEY, method="encode"))
    assert "scan" in str(jax.make_jaxpr(chunked)(variables))
    np.testing.assert_allclose(chunked(variables).probs, whole.probs, atol=1e-6)
    np.testing.assert_array_equal(chunked(variables).tokens, whole.tokens)


def test_running_statistics_serve_all_but_training(variables, encode):
    tokenizer = make()

    @jax.jit
    def train(frames):
        return tokenizer.apply(
            variables, frames, KEY, True, method="encode", mutable=["batch_stats"]
        )

    whole = encode(variables, FRAMES, KEY).probs
    # A frame on its own is encoded as it is among others.
    np.testing.assert_allclose(encode(variables, FRAMES[:1], KEY).probs, whole[:1], atol=1e-5)
    posterior, state = train(FRAMES)
    assert np.abs(posterior.probs - whole).max() > 1e-2
    # The first layer's statistics: the old ones keep a share of 0.9.
    x = jnp.pad(FRAMES.reshape(-1, *SHAPE) / 255.0, ((0, 0), (0, 2), (0, 3), (0, 0)))
    x = conv4s2(x.astype(jnp.float32), variables["params"]["encoder"]["Conv4S2_0"]["kernel"])
    old = variables["batch_stats"]["encoder"]["BatchNorm_0"]
    new = state["batch_stats"]["encoder"]["BatchNorm_0"]
    for name, value in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
        np.testing.assert_allclose(new[name], 0.9 * old[name] + 0.1 * value, rtol=1e-4)


# Categorical posterior


def test_categorical_posterior_is_a_straight_through_sample(variables, encode):
    posterior = encode(variables, FRAMES, KEY)
    assert posterior.tokens.shape == posterior.vectors.shape == (2, 4, N, V)
    np.testing.assert_array_equal(posterior.tokens.sum(-1), 1.0)
    np.testing.assert_array_equal(np.unique(posterior.tokens), [0.0, 1.0])
    np.testing.assert_array_equal(posterior.vectors, posterior.tokens)
    assert posterior.loss == 0.0


def test_gradient_of_the_sample_is_that_of_the_probabilities(variables):
    weights = jax.random.normal(KEY, (2, 4, N, V))

    @jax.jit
    def gradients(params):
        def weighted(params, field):
            posterior = make().apply({**variables, "params": params}, FRAMES, KEY, method="encode")
            return (getattr(posterior, field) * weights).sum()

        return [jax.grad(weighted)(params, field) for field in ("vectors", "probs", "tokens")]

    vectors, probs, tokens = gradients(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, vectors, probs)
    assert np.abs(vectors["to_code"]["kernel"]).max() > 1e-4
    assert all((x == 0.0).all() for x in jax.tree.leaves(tokens))


def test_samples_follow_the_probabilities(variables, encode):
    frames = np.broadcast_to(FRAMES[0, 0], (40, 50, *SHAPE))
    posterior = encode(variables, frames, KEY)
    frequencies = posterior.tokens.mean((0, 1))
    np.testing.assert_allclose(frequencies, posterior.probs[0, 0], atol=0.05)
    other = encode(variables, frames, jax.random.key(1))
    assert (other.tokens != posterior.tokens).any()


# VQ

CODEBOOK = jnp.array([[0.0, 0.0], [1.0, 1.0], [3.0, 0.0], [0.0, 9.0]])
CODES = jnp.array([[0.5, 0.4], [0.6, 0.8], [2.0, -1.0]])  # nearest: 0, 1, 2


def quantise(codebook, code):
    tokenizer = make("vq", code_size=2)
    return tokenizer.apply({"params": {"codebook": codebook}}, code, method="_nearest")


def test_vq_takes_the_nearest_code():
    posterior = quantise(CODEBOOK, CODES)
    np.testing.assert_array_equal(posterior.tokens.argmax(-1), [0, 1, 2])
    np.testing.assert_allclose(posterior.vectors, CODEBOOK[:3], atol=1e-6)
    np.testing.assert_array_equal(posterior.probs, posterior.tokens)
    # Squared errors 0.25 + 0.16, 0.16 + 0.04, 1 + 1: once for the codebook, a quarter for the
    # encoder, and the mean of six numbers.
    np.testing.assert_allclose(posterior.loss, 1.25 * (0.41 + 0.20 + 2.0) / 6, rtol=1e-6)


def test_vq_gradients():
    to_code = jax.grad(lambda code: (quantise(CODEBOOK, code).vectors * CODES).sum())(CODES)
    np.testing.assert_array_equal(to_code, CODES)  # straight through
    to_book, to_code = jax.grad(lambda *x: quantise(*x).loss, argnums=(0, 1))(CODEBOOK, CODES)
    error = CODES - CODEBOOK[:3]
    np.testing.assert_allclose(to_book, [*(-2 * error / 6), [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(to_code, 0.25 * 2 * error / 6, atol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "vq"])
def test_embedded_tokens_are_the_vectors(kind):
    tokenizer = make(kind)

    @jax.jit
    def run(key):
        variables = tokenizer.init(key, FRAMES, key)
        posterior = tokenizer.apply(variables, FRAMES, key, method="encode")
        return posterior, tokenizer.apply(variables, posterior.tokens, method="embed")

    posterior, embedded = run(KEY)
    assert posterior.tokens.shape == (2, 4, N, V)
    assert posterior.vectors.shape == (2, 4, N, V if kind == "categorical" else CODE)
    np.testing.assert_allclose(embedded, posterior.vectors, atol=1e-5)


# Observations


def test_pixels_are_seen_between_zero_and_one_and_vectors_in_symlog_space():
    frames = jnp.array([0, 51, 255], jnp.uint8).reshape(3, 1, 1, 1)
    target = make(shape=(1, 1, 1)).apply({}, frames, method="target")
    np.testing.assert_allclose(target.ravel(), [0.0, 0.2, 1.0], rtol=1e-6)
    vector = jnp.array([-(np.e**2 - 1), 0.0, np.e - 1], jnp.float32)
    target = make(shape=(3,)).apply({}, vector, method="target")
    np.testing.assert_allclose(target, [-2.0, 0.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "vq"])
def test_vectors_are_encoded_and_reconstructed(kind):
    tokenizer = make(kind, shape=(7,))
    observation = 100 * jax.random.normal(KEY, (2, 4, 7))
    variables = jax.jit(tokenizer.init)(KEY, observation, KEY)
    assert set(variables) == {"params"}  # no BatchNorm
    out = jax.jit(tokenizer.apply)(variables, observation, KEY)
    assert out.shape == (2, 4, 7)
    assert out.dtype == jnp.float32
    posterior = jax.jit(lambda o: tokenizer.apply(variables, o, KEY, method="encode"))(observation)
    assert posterior.tokens.shape == (2, 4, N, V)


def test_bfloat16_gives_float32_probabilities_close_to_float32(variables, encode):
    tokenizer = make(dtype=jnp.bfloat16)
    run = jax.jit(lambda frames: tokenizer.apply(variables, frames, KEY, method="encode"))
    probs = run(FRAMES).probs
    assert probs.dtype == jnp.float32
    exact = encode(variables, FRAMES, KEY).probs
    assert 0.0 < np.abs(probs - exact).max() < 0.1


def test_observations_of_the_wrong_shape_are_refused(variables):
    with pytest.raises(AssertionError):
        make().apply(variables, FRAMES[..., :1], KEY)
    with pytest.raises(ValueError, match=r"\(10, 5\) are neither images .* nor vectors"):
        make(shape=(10, 5)).init(KEY, FRAMES[..., 0], KEY)
