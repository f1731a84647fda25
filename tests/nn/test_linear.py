"""DreamerV3's layers against NumPy; the block-diagonal Linear against a dense one with a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from worldmodels_jax.nn import linear

RNG = np.random.default_rng(0)


def randomised(params):
    """Parameters at which no bias is zero and no scale is one."""
    return jax.tree.map(lambda x: jnp.asarray(RNG.normal(0.5, 0.7, x.shape), jnp.float32), params)


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, params):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * params["scale"]


def layer(x, params):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return normed * params["scale"] + params["bias"]


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_mlp_equals_numpy(norm):
    x = RNG.normal(size=(2, 3, 5)).astype(np.float32) * 0.05  # small, so that epsilon is seen
    model = linear.SiluMLP(width=4, depth=2, out_features=3, norm=norm)
    variables = randomised(jax.jit(model.init)(jax.random.key(0), x))
    params = variables["params"]
    y = x.astype(np.float64)
    for i in range(2):
        dense = params["Hidden_0"][f"Dense_{i}"]
        y = y @ np.asarray(dense["kernel"], np.float64)
        if norm == "rms":
            y = rms(y + dense["bias"], params["Hidden_0"][f"Norm_{i}"]["RMSNorm_0"])
        else:
            assert "bias" not in dense
            y = layer(y, params["Hidden_0"][f"Norm_{i}"]["LayerNorm_0"])
        y = silu(y)
    out = params["Dense_0"]
    actual = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(actual, y @ out["kernel"] + out["bias"], rtol=1e-4, atol=1e-5)


def test_no_hidden_layer_is_the_identity():
    x = jnp.arange(3.0)
    hidden = linear.Hidden(7, depth=0)
    assert hidden.init(jax.random.key(0), x) == {}
    np.testing.assert_array_equal(hidden.apply({}, x), x)


def test_an_output_of_scale_zero_is_zero_and_compute_dtype_leaves_it_float32():
    x = RNG.normal(size=(2, 5)).astype(np.float32)
    model = linear.SiluMLP(4, 1, 3, output_scale=0.0, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    y = model.apply(variables, x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 0.0)


@pytest.mark.parametrize(
    ("shape", "fan", "scale", "deviation"),
    [
        ((400, 100), "fan_in", 1.0, 1 / 20),
        ((400, 100), "fan_avg", 1.0, 1 / np.sqrt(250)),
        ((400, 100), "fan_in", 0.01, 0.01 / 20),
        ((5, 5, 16, 64), "fan_in", 1.0, 1 / 20),
        ((4, 100, 100), "fan_in", 1.0, 1 / 20),  # four blocks of 100 inputs
    ],
)
def test_kernels_have_the_deviation_of_their_fan_and_no_tail(shape, fan, scale, deviation):
    kernel = linear.kernel_init(fan, scale)(jax.random.key(0), shape)
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
    # The published factor: truncated at two of 1.1368 deviations.
    assert 2.2 < np.abs(kernel).max() / deviation <= 2 * 1.1369


def test_block_linear_equals_a_dense_linear_with_a_block_mask():
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    model = linear.BlockLinear(features=9, blocks=3)
    variables = randomised(model.init(jax.random.key(0), x))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (3, 2, 3)
    np.testing.assert_allclose(
        model.apply(variables, x), x @ scipy.linalg.block_diag(*kernel) + bias, rtol=1e-5, atol=1e-5
    )
    assert linear.BlockLinear(9, 3, dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(("inputs", "features"), [(7, 9), (6, 8)])
def test_blocks_that_do_not_fit_are_refused(inputs, features):
    with pytest.raises(ValueError, match=rf"{inputs} inputs and {features} outputs .* 3 blocks"):
        linear.BlockLinear(features, 3).init(jax.random.key(0), jnp.zeros((1, inputs)))
