"""Residual blocks against slow NumPy, and their published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_blocks import (
    NONE,
    SAME,
    block,
    layer,
    norm,
    numpy_params,
    random_variables,
    silu,
    slow_conv,
)

from worldmodels_jax.nn.resnet import (
    Conv,
    FrameDecoder,
    FrameEncoder,
    ResBlock,
    conv_patches,
    group_norm,
    patchify,
    unpatchify,
)

B, H, W, C = 2, 4, 6, 3
KEY = jax.random.key(0)


@pytest.mark.parametrize("size", [1, 2])
def test_convolution_of_disjoint_patches_equals_a_slow_loop(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, H, W, C)).astype(np.float32)
    kernel = rng.normal(size=(size, size, C, 5)).astype(np.float32)
    actual = conv_patches(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(actual, slow_conv(x, kernel, size, NONE), atol=1e-4)


def test_patches_are_cut_rows_first_and_put_together_again():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(jnp.asarray(x), 2)
    assert patches.shape == (2, 2, 3, 12)
    expected = [x[1, 2 + i, 4 + j, c] for i in range(2) for j in range(2) for c in range(3)]
    np.testing.assert_array_equal(patches[1, 1, 2], expected)
    np.testing.assert_array_equal(unpatchify(patches, 2), x)


def test_a_map_that_does_not_divide_into_patches_is_refused():
    with pytest.raises(ValueError, match="4x6 cannot be cut into patches of 4x4"):
        patchify(jnp.zeros((1, 4, 6, 1)), 4)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (24, 8), (96, 32), (7, 1)])
def test_number_of_groups(channels, groups):
    assert group_norm(channels, 1e-5, None, "norm").num_groups == groups


# The blocks


def inputs(channels=C):
    return jax.random.normal(KEY, (B, H, W, channels))


@pytest.mark.parametrize("features", [4, 6])
def test_res_block_equals_slow_numpy(features):
    model, x = ResBlock(features, epsilon=1e-2), inputs(4)
    variables = random_variables(model, x)
    assert ("skip" in variables["params"]) == (features == 6)
    expected = block(np.asarray(x, np.float64), numpy_params(variables), 1e-2)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, atol=1e-3)


@pytest.mark.parametrize("patch", [1, 2])
def test_encoder_equals_slow_numpy(patch):
    model = FrameEncoder((4, 6), latent=5, halve_after=(0,), patch=patch)
    x = jax.random.normal(KEY, (B, 2 * H, 2 * W, C))
    variables = random_variables(model, x)
    p = numpy_params(variables)
    y = np.asarray(x, np.float64)
    y = layer(y, p["in"], patch, SAME if patch == 1 else NONE)
    y = layer(block(y, p["block_0"]), p["halve_0"], 2, NONE)
    y = block(y, p["block_1"])
    y = layer(silu(norm(y, p["norm_out"])), p["out"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), y, atol=2e-3)


@pytest.mark.parametrize("patch", [1, 2])
def test_decoder_equals_slow_numpy(patch):
    model = FrameDecoder((4, 6), features=2, halve_after=(0,), patch=patch)
    x = jax.random.normal(KEY, (B, 2, 3, 5))
    variables = random_variables(model, x)
    p = numpy_params(variables)
    y = layer(np.asarray(x, np.float64), p["in"])
    y = block(y, p["block_1"])
    assert y.shape[-1] == 4  # the block of a level leads to the channels of the one before
    y = layer(y.repeat(2, axis=1).repeat(2, axis=2), p["double_0"])
    y = block(y, p["block_0"])
    y = layer(silu(norm(y, p["norm_out"])), p["out"])
    if patch == 2:  # rows of a patch, its columns, then channels
        parts = y.reshape(B, 4, 6, 2, 2, 2)
        y = np.zeros((B, 8, 12, 2))
        for i, j in np.ndindex(2, 2):
            y[:, i::2, j::2] = parts[:, :, :, i, j]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), y, atol=2e-3)


def test_64_pixels_become_8_by_8_and_64_again():
    channels, halve_after = (4, 4, 8, 8, 16), (0, 2, 3)
    x = jnp.zeros((1, 64, 64, 3))
    encoder = FrameEncoder(channels, 5, halve_after)
    latent, variables = jax.eval_shape(lambda x: encoder.init_with_output(KEY, x), x)
    assert latent.shape == (1, 8, 8, 5)
    widths = [variables["params"][f"halve_{i}"]["kernel"].shape for i in halve_after]
    assert widths == [(2, 2, 4, 4), (2, 2, 8, 8), (2, 2, 8, 8)]
    decoder = FrameDecoder(channels, 3, halve_after)
    image, variables = jax.eval_shape(lambda x: decoder.init_with_output(KEY, x), latent)
    assert image.shape == x.shape
    blocks = [variables["params"][f"block_{i}"]["conv_0"]["kernel"].shape[2:] for i in range(5)]
    assert blocks == [(4, 4), (4, 4), (8, 4), (8, 8), (16, 8)]


def test_sizes_are_those_the_published_totals_are_made_of():
    # The parameters of the Crafter tokenizer (5,409,611) and of the world model's frame encoder.
    channels, halve_after = (64, 64, 128, 128, 256), (0, 2, 3)

    def count(model, channels, side):
        variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, side, side, channels)))
        return sum(x.size for x in jax.tree.leaves(variables))

    tables = 17 * 64 * 64 + 17 * 4 * 8 * 8
    projections = 1024 * 64 + 64 + 64 * 1024 + 1024
    networks = (
        count(FrameEncoder(channels, 64, halve_after), 7, 64)
        + count(FrameEncoder(channels, 8, halve_after), 3, 64)
        + count(FrameDecoder(channels, 3, halve_after), 76, 8)
    )
    assert networks + tables + projections == 5_409_611
    assert count(FrameEncoder((32, 32, 64, 64, 128), 8, halve_after), 3, 64) == 446_632


def test_initial_weights_and_biases_are_within_one_over_the_root_of_the_fan_in():
    params = Conv(64).init(KEY, inputs(12))["params"]
    bound = 1 / np.sqrt(9 * 12)
    for x in jax.tree.leaves(params):
        assert 0.9 * bound < np.abs(x).max() <= bound


def test_bfloat16_keeps_float32_parameters():
    model, x = FrameDecoder((4,), 3, dtype=jnp.bfloat16), inputs()
    variables = model.init(KEY, x)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    block = ResBlock(4, dtype=jnp.bfloat16)
    assert block.apply(block.init(KEY, x), x).dtype == jnp.bfloat16
    image = model.apply(variables, x)
    assert image.dtype == jnp.float32
    exact = FrameDecoder((4,), 3).apply(variables, x)
    np.testing.assert_allclose(image, exact, atol=0.1)
