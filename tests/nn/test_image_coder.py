"""The encoder and decoder of frames: against NumPy, padding, sizes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_same_conv import enlarged, slow

from worldmodels_jax.nn import image_coder

RNG = np.random.default_rng(0)
H, W, C = 12, 22, 3  # two stages: padded to 12x24, the coarsest map is 3x6
D, S = 6, 5
CHANNELS = (4, 6)


def randomised(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: jnp.asarray(RNG.normal(0.2, 0.5, x.shape), jnp.float32), shapes)


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def norm_silu(x, scale):
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale
    return x / (1 + np.exp(-x))


def test_encoder_equals_numpy():
    x = RNG.uniform(size=(2, H, W, C)).astype(np.float32)
    encoder = image_coder.ImageEncoder(CHANNELS)
    variables = randomised(encoder, x)
    params = double(variables["params"])
    y = np.pad(x.astype(np.float64) - 0.5, ((0, 0), (0, 0), (0, 2), (0, 0)))
    for i in range(2):
        conv = params[f"Convolution_{i}"]
        y = slow(y, conv["kernel"]) + conv["bias"]
        corners = [y[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
        y = norm_silu(np.max(corners, axis=0), params[f"Norm_{i}"]["RMSNorm_0"]["scale"])
    assert y.shape == (2, 3, 6, 6)
    np.testing.assert_allclose(jax.jit(encoder.apply)(variables, x), y.reshape(2, -1), rtol=1e-3)


def test_decoder_equals_numpy():
    deter = RNG.normal(size=(2, D)).astype(np.float32)
    stoch = RNG.normal(size=(2, S)).astype(np.float32)
    decoder = image_coder.ImageDecoder(CHANNELS, (H, W, C), width=7, blocks=2)
    variables = randomised(decoder, deter, stoch)
    params = double(variables["params"])
    # Each half of h makes three channels of the 3x6 map.
    block = params["BlockLinear_0"]
    x = np.stack([deter[:, :3] @ block["kernel"][0], deter[:, 3:] @ block["kernel"][1]], 1)
    x = x.reshape(2, -1) + block["bias"]
    x = np.concatenate([half.reshape(2, 3, 6, 3) for half in np.split(x, 2, axis=1)], -1)
    hidden = params["Hidden_0"]
    y = stoch @ hidden["Dense_0"]["kernel"] + hidden["Dense_0"]["bias"]
    y = norm_silu(y, hidden["Norm_0"]["RMSNorm_0"]["scale"])
    y = y @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    x = norm_silu(x + y.reshape(x.shape), params["Norm_0"]["RMSNorm_0"]["scale"])
    first, last = params["Convolution_0"], params["Convolution_1"]
    assert first["kernel"].shape == (5, 5, 6, 4)
    x = slow(enlarged(x), first["kernel"]) + first["bias"]
    x = norm_silu(x, params["Norm_1"]["RMSNorm_0"]["scale"])
    x = slow(enlarged(x), last["kernel"]) + last["bias"]
    assert x.shape == (2, 12, 24, C)
    actual = jax.jit(decoder.apply)(variables, deter, stoch)
    np.testing.assert_allclose(actual, 1 / (1 + np.exp(-x[:, :, :W])), atol=1e-4)


def test_strided_version_halves_doubles_and_predicts_one_half_at_zero():
    encoder = image_coder.ImageEncoder(CHANNELS, "stride", "layer", "fan_avg")
    x = jnp.zeros((2, 3, H, W, C))
    variables = encoder.init(jax.random.key(0), x)
    assert variables["params"]["Convolution_0"]["kernel"].shape == (4, 4, C, 4)
    assert "bias" not in variables["params"]["Convolution_0"]
    assert encoder.apply(variables, x).shape == (2, 3, 3 * 6 * 6)
    decoder = image_coder.ImageDecoder(
        CHANNELS, (H, W, C), 7, resampling="stride", norm="layer", fan="fan_avg"
    )
    state = jnp.ones((2, 3, D)), jnp.ones((2, 3, S))
    variables = decoder.init(jax.random.key(0), *state)
    assert variables["params"]["Dense_0"]["kernel"].shape == (D + S, 3 * 6 * 6)
    assert variables["params"]["Convolution_1"]["kernel"].shape == (4, 4, 4, C)
    frames = decoder.apply(variables, *state)
    assert frames.shape == (2, 3, H, W, C)
    assert np.ptp(frames) > 0
    np.testing.assert_array_equal(
        decoder.apply(jax.tree.map(jnp.zeros_like, variables), *state), 0.5
    )


@pytest.mark.parametrize(
    ("size", "stages", "expected"),
    [
        ((64, 64), 4, (4, 4)),
        ((64, 64), 2, (16, 16)),
        ((10, 5), 1, (5, 3)),
        ((10, 10), 1, (5, 5)),
        ((63, 84), 3, (8, 11)),
    ],
)
def test_coarsest_map(size, stages, expected):
    assert image_coder.coarse_size(size, stages) == expected


@pytest.mark.parametrize(
    ("size", "stages", "message"),
    [
        ((64, 64), 1, r"64x64 become maps of 32x32 in 1 stages .* a length of 2 or 3 or 4"),
        ((10, 5), 2, r"10x5 become maps of 3x2 .* model.channels a length of 1"),
        ((64, 4), 2, r"64x4 .* resize the frames, or flatten them with model.channels=\(\)"),
    ],
)
def test_a_map_too_coarse_or_too_fine_is_refused(size, stages, message):
    with pytest.raises(ValueError, match=message):
        image_coder.coarse_size(size, stages)
