"""Encoders and decoders of autoencoders: sizes, first values, and the layers' order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from worldmodels_jax.nn import vae_networks

KEY = jax.random.key(0)


def count(module: nn.Module, shape: tuple[int, ...]) -> int:
    made = jax.eval_shape(module.init, KEY, jnp.zeros(shape))
    return sum(x.size for x in jax.tree.leaves(made))


def output(module: nn.Module, shape: tuple[int, ...], dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda x: module.init_with_output(KEY, x)[0], jnp.zeros(shape, dtype))


def test_the_convolutional_pair_has_the_published_size() -> None:
    encoder, decoder = vae_networks.ConvEncoder(10), vae_networks.ConvDecoder((64, 64, 3))
    assert count(encoder, (1, 64, 64, 3)) == 383_956
    assert count(decoder, (1, 10)) == 382_339
    assert output(encoder, (2, 64, 64, 3)).shape == (2, 20)
    assert output(decoder, (2, 10)).shape == (2, 64, 64, 3)


def test_the_fully_connected_pair_by_hand() -> None:
    encoder, decoder = vae_networks.MlpEncoder(10), vae_networks.MlpDecoder((16, 16, 3))
    assert count(encoder, (1, 16, 16, 3)) == 769 * 256 + 257 * 128 + 129 * 20
    assert count(decoder, (1, 10)) == 11 * 128 + 129 * 256 + 257 * 768
    assert output(decoder, (5, 10)).shape == (5, 16, 16, 3)


def test_the_discriminator_by_hand() -> None:
    module = vae_networks.factor_discriminator()
    assert count(module, (1, 10)) == 11_000 + 5 * 1001 * 1000 + 1001 * 2


def test_other_images_have_other_maps() -> None:
    channels = (4, 8)
    decoder = vae_networks.ConvDecoder((8, 12, 1), channels, 16)
    assert output(decoder, (3, 2)).shape == (3, 8, 12, 1)
    # Maps of 2x3 at the coarsest: 2 -> 16 -> 2 * 3 * 8, then 8 -> 4 -> 1 by kernels of 4x4.
    assert count(decoder, (1, 2)) == 3 * 16 + 17 * 48 + (16 * 8 * 4 + 4) + (16 * 4 + 1)
    assert output(vae_networks.ConvEncoder(2, channels, 16), (3, 8, 12, 1)).shape == (3, 4)
    with pytest.raises(ValueError, match="must be even"):
        output(vae_networks.ConvEncoder(2, channels, 16), (3, 8, 10, 1))


@pytest.mark.parametrize(
    "module",
    [
        vae_networks.ConvEncoder(2, (4,), 8, jnp.bfloat16),
        vae_networks.MlpEncoder(2, (8,), jnp.bfloat16),
    ],
)
def test_outputs_and_parameters_are_float32(module: nn.Module) -> None:
    assert output(module, (1, 4, 4, 1)).dtype == jnp.float32
    made = jax.eval_shape(module.init, KEY, jnp.zeros((1, 4, 4, 1)))
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}


def test_decoders_compute_in_the_type_they_are_given() -> None:
    for module in (
        vae_networks.ConvDecoder((4, 4, 1), (4,), 8, jnp.bfloat16),
        vae_networks.MlpDecoder((4, 4, 1), (8,), jnp.bfloat16),
    ):
        variables = make(module, jnp.zeros((1, 2)))
        logits, seen = module.apply(variables, jnp.ones((1, 2)), capture_intermediates=True)
        assert logits.dtype == jnp.float32
        kinds = {x.dtype for x in jax.tree.leaves(seen["intermediates"])}
        assert jnp.dtype(jnp.bfloat16) in kinds


def make(module: nn.Module, x) -> dict:
    return jax.jit(module.init)(KEY, x)


# First values


def test_dense_kernels_have_the_variances_of_the_text() -> None:
    module = vae_networks.MlpEncoder(50, (400, 300))
    params = make(module, jnp.zeros((1, 16, 16, 3)))["params"]["DenseStack_0"]
    for index, (fan_in, variance) in enumerate([(768, 2.0), (400, 2.0), (300, 0.5)]):
        kernel = np.asarray(params[f"Dense_{index}"]["kernel"])
        assert kernel.var() * fan_in == pytest.approx(variance, rel=0.03)
        # Normal, neither cut off nor uniform: some lie beyond three deviations.
        assert np.abs(kernel).max() > 3 * kernel.std()
        assert not np.asarray(params[f"Dense_{index}"]["bias"]).any()


def test_convolutions_are_he_uniform() -> None:
    encoder = make(vae_networks.ConvEncoder(10), jnp.zeros((1, 64, 64, 3)))["params"]
    decoder = make(vae_networks.ConvDecoder((64, 64, 3)), jnp.zeros((1, 10)))["params"]
    trunk = encoder["ConvTrunk_0"]
    layers = [
        (trunk["HeConvolution_0"], 16 * 3),
        (trunk["HeConvolution_3"], 16 * 64),
        (trunk["Dense_0"], 1024),
        (encoder["DenseStack_0"]["Dense_0"], 256),
        (decoder["HeConvolution_1"], 16 * 32),  # of 64 channels to 32: of the output's
        (decoder["Dense_1"], 256),
    ]
    for layer, fan_in in layers:
        bound = math.sqrt(6 / fan_in)
        assert float(jnp.abs(layer["kernel"]).max()) == pytest.approx(bound, rel=0.01)
        assert float(jnp.abs(layer["kernel"]).max()) <= bound
        assert not np.asarray(layer["bias"]).any()


def test_an_untrained_discriminator_knows_nothing() -> None:
    module = vae_networks.factor_discriminator(16, 2)
    z = jax.random.normal(KEY, (8, 3))
    logits, variables = jax.jit(module.init_with_output)(KEY, z)
    assert not np.asarray(logits).any()
    kernel = variables["params"]["Dense_1"]["kernel"]
    assert float(jnp.abs(kernel).max()) == pytest.approx(math.sqrt(6 / 16), rel=0.05)


# The layers' order


@jax.jit
def with_biases(variables):
    """Other biases than 0, or nobody would miss them."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in pairs])


def test_dense_stack_against_numpy() -> None:
    module = vae_networks.DenseStack((5, 4), 3, slope=0.2)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    variables = with_biases(make(module, x))
    expected = x
    for index in range(3):
        layer = jax.tree.map(np.asarray, variables["params"][f"Dense_{index}"])
        expected = expected @ layer["kernel"] + layer["bias"]
        if index < 2:
            expected = np.where(expected > 0, expected, 0.2 * expected)
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_convolutional_networks_against_single_layers() -> None:
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    encoder = vae_networks.ConvEncoder(2, (3, 4), 5)
    params = with_biases(make(encoder, x))["params"]

    def convolve(x, layer, transposed=False):
        numbers = ("NHWC", "HWIO", "NHWC")
        kernel = layer["kernel"]
        if transposed:
            y = jax.lax.conv_general_dilated(
                x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=numbers
            )
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers
            )
        return y + layer["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    trunk = jax.tree.map(np.asarray, params["ConvTrunk_0"])
    hidden = relu(convolve(relu(convolve(x, trunk["HeConvolution_0"])), trunk["HeConvolution_1"]))
    hidden = relu(dense(hidden.reshape(2, -1), trunk["Dense_0"]))
    expected = dense(hidden, params["DenseStack_0"]["Dense_0"])
    np.testing.assert_allclose(
        jax.jit(encoder.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-5
    )

    z = x[:, 0, :2, 0]
    decoder = vae_networks.ConvDecoder((8, 8, 1), (3, 4), 5)
    params = with_biases(make(decoder, z))["params"]
    hidden = relu(dense(relu(dense(z, params["Dense_0"])), params["Dense_1"]))
    hidden = relu(convolve(hidden.reshape(2, 2, 2, 4), params["HeConvolution_0"], True))
    expected = convolve(hidden, params["HeConvolution_1"], True)
    np.testing.assert_allclose(
        jax.jit(decoder.apply)({"params": params}, z), expected, rtol=1e-4, atol=1e-5
    )
