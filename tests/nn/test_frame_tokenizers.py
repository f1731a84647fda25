"""The discrete autoencoders of Delta-IRIS and IRIS: layers, order of patches, what depends on what.

The parts (`FrameEncoder`, `FrameDecoder`, `Quantiser`) have tests of their own and are used here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_blocks import NONE, SAME, block, layer, norm, numpy_params, random_variables, silu

from worldmodels_jax.nn.delta_tokenizer import DeltaTokenizer
from worldmodels_jax.nn.iris_tokenizer import IrisTokenizer
from worldmodels_jax.nn.resnet import FrameDecoder, FrameEncoder, patchify, unpatchify

S, C, A, N, V, K = 8, 2, 3, 4, 5, 6
KEY = jax.random.key(0)
B = 3
ACTIONS = jnp.array([0, 2, 1])


def frames(seed):
    return jax.random.uniform(jax.random.key(seed), (B, S, S, C))


def make_delta(kind="delta", **changes):
    """A latent map of 4x4 cells with 3 channels; a token is a patch of 2x2 of them."""
    return DeltaTokenizer(
        **{
            "kind": kind,
            "image_size": S,
            "image_channels": C,
            "num_actions": A,
            "num_tokens": N,
            "num_codes": V,
            "code_size": K,
            "encoder_channels": (4, 6),
            "latent": 3,
            "embedder_channels": (4,),
            "embedder_latent": 2,
            "action_channels": 1,
            "decoder_channels": (4, 5),
            "halve_after": (0,),
            "patch": 1,
            "commitment": 0.02,
        }
        | changes
    )


def make_iris(**changes):
    """Maps of 8x8 and 4x4, the latter with attention; 16 tokens."""
    sizes = {"num_tokens": 16, "num_codes": V, "code_size": K, "channels": 4, "blocks": 2}
    sizes |= {"attention_sizes": (4,), "latent": 3, "commitment": 1.0}
    return IrisTokenizer(S, C, **sizes | changes)


@pytest.fixture(scope="module", params=["delta", "frame"])
def tokenizer(request):
    model = make_delta(request.param)
    return model, random_delta(model)


def random_delta(model):
    variables = random_variables(model, frames(0), frames(1), ACTIONS)
    codes = jax.random.normal(KEY, (V, K))
    codes = codes / jnp.linalg.norm(codes, axis=-1, keepdims=True)
    book = variables["vq"]["quantiser"]["codebook"]
    book = book._replace(codes=codes, usage=jnp.full(V, 1 / V), updates=jnp.zeros((), jnp.int32))
    # With parameters of mean 0.3 all tokens would be the same.
    for centred in (variables["params"]["encoder"]["out"], variables["params"]["to_code"]):
        centred["kernel"] = centred["kernel"] - 0.3
        centred["bias"] = 0.1 * centred["bias"]
    return {"params": variables["params"], "vq": {"quantiser": {"codebook": book}}}


def call(model, variables, method, *args):
    return jax.jit(lambda v, *a: model.apply(v, *a, method=method))(variables, *args)


# The Delta tokenizer


def test_encoder_is_that_of_the_table(tokenizer):
    model, variables = tokenizer
    p = variables["params"]
    inputs = [frames(0)]
    if model.kind == "delta":
        table = p["encoder_actions"]["embedding"]
        assert table.shape == (A, S * S)
        inputs = [frames(1), table[ACTIONS].reshape(B, S, S, 1), frames(0)]
    x = jnp.concatenate(inputs, -1)
    latent = FrameEncoder((4, 6), 3, (0,)).apply({"params": p["encoder"]}, x)
    latent = np.asarray(latent)
    assert latent.shape == (B, 4, 4, 3)
    got = call(model, variables, "encode", frames(0), frames(1), ACTIONS)
    for b, row, column in np.ndindex(B, 2, 2):
        # Rows of the patch, its columns, then channels; tokens row by row.
        patch = [
            latent[b, 2 * row + i, 2 * column + j, c]
            for i in range(2)
            for j in range(2)
            for c in range(3)
        ]
        vector = np.array(patch) @ p["to_code"]["kernel"] + p["to_code"]["bias"]
        vector = vector / np.sqrt((vector**2).sum())
        codes = np.asarray(variables["vq"]["quantiser"]["codebook"].codes)
        token = (codes @ vector).argmax()
        assert got.tokens[b, 2 * row + column] == token
        np.testing.assert_allclose(got.vectors[b, 2 * row + column], codes[token], atol=1e-6)
    assert len(np.unique(got.tokens)) > 2
    assert got.loss.shape == (B,)


def test_decoder_is_that_of_the_table(tokenizer):
    model, variables = tokenizer
    p = variables["params"]
    vectors = jax.random.normal(KEY, (B, N, K))
    tokens = vectors @ p["from_code"]["kernel"] + p["from_code"]["bias"]
    grid = np.zeros((B, 4, 4, 3), np.float32)
    for row, column, i, j in np.ndindex(2, 2, 2, 2):
        start = 3 * (2 * i + j)
        grid[:, 2 * row + i, 2 * column + j] = tokens[:, 2 * row + column, start : start + 3]
    inputs = [grid]
    if model.kind == "delta":
        seen = FrameEncoder((4,), 2, (0,)).apply({"params": p["embedder"]}, frames(1))
        table = p["decoder_actions"]["embedding"]
        inputs = [seen, table[ACTIONS].reshape(B, 4, 4, 1), grid]
    decoder = FrameDecoder((4, 5), C, (0,))
    expected = decoder.apply({"params": p["decoder"]}, jnp.concatenate(inputs, -1))
    actual = call(model, variables, "decode", vectors, frames(1), ACTIONS)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_grid_to_tokens_to_grid_is_the_identity_and_the_first_token_is_the_top_left_patch():
    grid = jax.random.normal(KEY, (2, 8, 8, 64))
    tokens = patchify(grid, 4).reshape(2, 4, 1024)
    np.testing.assert_array_equal(unpatchify(tokens.reshape(2, 2, 2, 1024), 4), grid)
    np.testing.assert_array_equal(tokens[0, 0].reshape(4, 4, 64), grid[0, :4, :4])
    np.testing.assert_array_equal(tokens[0, 1].reshape(4, 4, 64), grid[0, :4, 4:])


def test_what_encoder_and_decoder_depend_on(tokenizer):
    model, variables = tokenizer
    conditioned = model.kind == "delta"

    @jax.jit
    def run(frame, previous, action):
        codes = model.apply(variables, frame, previous, action, method="encode")
        decoded = model.apply(variables, codes.vectors * 0 + 0.1, previous, action, method="decode")
        return codes.inputs, decoded

    inputs, decoded = run(frames(0), frames(1), ACTIONS)
    for previous, action in ((frames(2), ACTIONS), (frames(1), ACTIONS[::-1])):
        other_inputs, other_decoded = run(frames(0), previous, action)
        # The tokens are the same: what differs comes of the frame and the action before.
        for a, b in ((inputs, other_inputs), (decoded, other_decoded)):
            assert (np.abs(a - b).max() > 1e-3) == conditioned
            assert conditioned or np.array_equal(a, b)
    assert np.abs(run(frames(2), frames(1), ACTIONS)[0] - inputs).max() > 1e-3
    if not conditioned:
        alone = call(model, variables, "encode", frames(0))
        np.testing.assert_allclose(alone.inputs, inputs, atol=1e-5)


def test_the_codebook_follows_valid_frames_only():
    model = make_delta()
    variables = random_delta(model)
    valid = jnp.array([True, False, True])

    def train(model, frame):
        codes = model.encode(frame, frames(1), ACTIONS)
        model.update(codes, valid, KEY)
        return codes, model.entropy(codes, valid)

    run = jax.jit(lambda v, x: model.apply(v, x, method=train, mutable=["vq"]))
    (codes, entropy), state = run(variables, frames(0))
    usage = np.full(V, 0.98 / V)
    np.add.at(usage, np.asarray(codes.tokens)[[0, 2]].ravel(), 0.02 / 8)
    np.testing.assert_allclose(state["vq"]["quantiser"]["codebook"].usage, usage, atol=1e-6)
    assert entropy == pytest.approx(-(usage * np.log2(usage)).sum(), abs=1e-4)
    other = frames(0).at[1].set(0.0)
    _, again = run(variables, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, again)


def test_leading_axes_are_free():
    model = make_delta()
    variables = random_delta(model)
    flat = call(model, variables, "encode", frames(0), frames(1), ACTIONS)
    args = (frames(0)[None], frames(1)[None], ACTIONS[None])
    nested = call(model, variables, "encode", *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], atol=1e-5), flat, nested)
    decoded = call(model, variables, "decode", nested.vectors, *args[1:])
    expected = call(model, variables, "decode", flat.vectors, frames(1), ACTIONS)
    np.testing.assert_allclose(decoded[0], expected, atol=1e-5)


# The tokenizer of IRIS


def attention(x, p):
    normed = norm(x, p["norm"], 1e-6)
    q, k, v = (layer(normed, p[name], 1, NONE) for name in ("query", "key", "value"))
    out = np.zeros_like(x)
    for b, row, column in np.ndindex(x.shape[:3]):
        scores = (k[b] @ q[b, row, column]) / np.sqrt(x.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, row, column] = np.einsum("ij,ijc->c", weights / weights.sum(), v[b])
    return x + layer(out, p["out"], 1, NONE)


def level(x, p):
    for i in range(len([name for name in p if "block" in name])):
        x = block(x, p[f"block_{i}"], 1e-6)
        x = attention(x, p[f"attention_{i}"]) if f"attention_{i}" in p else x
    return x


def middle(x, p):
    x = attention(block(x, p["block_0"], 1e-6), p["attention"])
    return block(x, p["block_1"], 1e-6)


@pytest.fixture(scope="module")
def iris():
    model = make_iris()
    return model, random_variables(model, frames(0))


def test_iris_has_attention_at_its_sizes_and_one_more_block_in_the_decoder(iris):
    p = iris[1]["params"]
    assert set(p["encoder_levels_0"]) == {"block_0", "block_1"}
    assert set(p["encoder_levels_1"]) == {
        f"{x}_{i}" for x in ("block", "attention") for i in (0, 1)
    }
    assert set(p["decoder_levels_0"]) == {"block_0", "block_1", "block_2"}
    assert len(p["decoder_levels_1"]) == 6


def test_iris_encoder_equals_slow_numpy(iris):
    model, variables = iris
    p = numpy_params(variables)
    x = layer(2 * np.asarray(frames(0), np.float64) - 1, p["encoder_in"])
    x = level(x, p["encoder_levels_0"])
    x = layer(x, p["halve_0"], 2, ((0, 1), (0, 1)))
    x = middle(level(x, p["encoder_levels_1"]), p["encoder_middle"])
    x = layer(silu(norm(x, p["encoder_norm"], 1e-6)), p["encoder_out"])
    x = layer(x, p["to_code"], 1, NONE).reshape(B, 16, K)
    got = call(model, variables, "encode", frames(0))
    np.testing.assert_allclose(got.inputs, x, atol=1e-2)
    distance = ((x[:, :, None] - p["quantiser"]["codes"]) ** 2).sum(-1)
    np.testing.assert_array_equal(got.tokens, distance.argmin(-1))


def test_iris_decoder_equals_slow_numpy(iris):
    model, variables = iris
    p = numpy_params(variables)
    vectors = jax.random.normal(KEY, (B, 16, K))
    x = layer(np.asarray(vectors, np.float64).reshape(B, 4, 4, K), p["from_code"], 1, NONE)
    x = middle(layer(x, p["decoder_in"]), p["decoder_middle"])
    x = level(x, p["decoder_levels_1"])
    x = layer(x.repeat(2, axis=1).repeat(2, axis=2), p["double_0"], 1, SAME)
    x = level(x, p["decoder_levels_0"])
    x = layer(silu(norm(x, p["decoder_norm"], 1e-6)), p["decoder_out"])
    got = call(model, variables, "decode", vectors)
    np.testing.assert_allclose(got, (x + 1) / 2, atol=1e-2)


def test_embedding_tokens_gives_the_vectors_of_encoding(tokenizer, iris):
    for model, variables in (tokenizer, iris):
        codes = call(model, variables, "encode", frames(0), frames(1), ACTIONS)
        embedded = call(model, variables, "embed", codes.tokens)
        np.testing.assert_allclose(embedded, codes.vectors, atol=1e-6)
        reconstructed = call(model, variables, None, frames(0), frames(1), ACTIONS)
        expected = call(model, variables, "decode", embedded, frames(1), ACTIONS)
        np.testing.assert_allclose(reconstructed, expected, atol=1e-4)


# Numbers of parameters


def test_numbers_of_parameters_are_the_published_ones():
    def count(model):
        x = jnp.zeros((1, 64, 64, 3))
        shapes = jax.eval_shape(model.init, KEY, x, x, jnp.zeros((1,), jnp.int32))
        return sum(x.size for x in jax.tree.leaves(shapes["params"]))

    channels = (64, 64, 128, 128, 256)
    crafter = make_delta(
        image_size=64,
        image_channels=3,
        num_actions=17,
        num_codes=1024,
        code_size=64,
        encoder_channels=channels,
        latent=64,
        embedder_channels=channels,
        embedder_latent=8,
        action_channels=4,
        decoder_channels=channels,
        halve_after=(0, 2, 3),
    )
    assert count(crafter) == 5_409_611
    assert (crafter.latent_size, crafter.token_size) == (8, 4)
    iris = IrisTokenizer(64, 3, 16, 512, 512, 64, 2, (16, 8), 512, 1.0)
    assert iris.sizes == (64, 32, 16, 8, 4)
    assert count(iris) == 4_027_523
