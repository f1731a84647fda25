"""Size-keeping and size-doubling convolutions: both lowerings against a slow loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn import same_conv

# No two sizes agree, so that no two axes can be confused; the map is smaller than the kernel once.
B, H, W, C, F = 2, 4, 6, 3, 7


def inputs(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(B, H, W, C)).astype(np.float32)
    return x, rng.normal(size=(size, size, C, F)).astype(np.float32)


def slow(x, kernel):
    batch, height, width, _ = x.shape
    r = kernel.shape[0] // 2
    out = np.zeros((batch, height, width, kernel.shape[-1]))
    for row, column, i, j in np.ndindex(height, width, *kernel.shape[:2]):
        y, z = row + i - r, column + j - r
        if 0 <= y < height and 0 <= z < width:
            out[:, row, column] += x[:, y, z] @ kernel[i, j]
    return out


def enlarged(x):
    return x.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize("lowering", ["matmul", "lax"])
@pytest.mark.parametrize("size", [3, 5])
def test_equals_a_slow_loop(size, lowering):
    x, kernel = inputs(size)
    same = same_conv.conv_same(jnp.asarray(x), jnp.asarray(kernel), lowering)
    np.testing.assert_allclose(same, slow(x, kernel), atol=1e-4)
    doubled = same_conv.upsample_conv(jnp.asarray(x), jnp.asarray(kernel), lowering)
    np.testing.assert_allclose(doubled, slow(enlarged(x), kernel), atol=1e-4)


@pytest.mark.parametrize("convolution", [same_conv.conv_same, same_conv.upsample_conv])
def test_lowerings_have_the_same_gradients(convolution):
    x, kernel = map(jnp.asarray, inputs(5))
    cotangent = jax.random.normal(jax.random.key(0), jax.eval_shape(convolution, x, kernel).shape)

    def gradients(lowering):
        _, pullback = jax.vjp(lambda x, k: convolution(x, k, lowering), x, kernel)
        return pullback(cotangent)

    for matmul, lax in zip(
        *(jax.jit(gradients, static_argnums=0)(x) for x in ("matmul", "lax")), strict=True
    ):
        np.testing.assert_allclose(matmul, lax, atol=5e-4)


def test_a_batch_of_many_chunks_is_that_of_one():
    x = np.random.default_rng(0).normal(size=(5, 48, 64, 2)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(5, 5, 2, 2)).astype(np.float32)
    actual, library = (
        jax.jit(same_conv.conv_same, static_argnums=2)(x, kernel, lowering)
        for lowering in ("matmul", "lax")
    )
    np.testing.assert_allclose(actual, library, atol=1e-4)


def test_matrix_products_gather_nothing():
    x, kernel = map(jnp.asarray, inputs(5))

    def loss(x, kernel):
        return same_conv.upsample_conv(x, kernel, "matmul").sum()

    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    assert "dot_general" in text
    assert "conv_general" not in text
    assert "gather" not in text
    assert "scatter" not in text


def test_layer_adds_its_bias_over_any_leading_axes():
    x, _ = inputs(5)
    layer = same_conv.Convolution(same_conv.upsample_conv, size=5, features=F)
    variables = layer.init(jax.random.key(0), x)
    params = {**variables["params"], "bias": jnp.arange(1.0, F + 1)}
    y = layer.apply({"params": params}, x[None])
    expected = slow(enlarged(x), np.asarray(params["kernel"])) + params["bias"]
    np.testing.assert_allclose(y, expected[None], atol=1e-4)
    plain = same_conv.Convolution(same_conv.conv_same, 5, F, use_bias=False, dtype=jnp.bfloat16)
    assert set(plain.init(jax.random.key(0), x)["params"]) == {"kernel"}
    assert plain.apply(variables, x).dtype == jnp.bfloat16


def test_what_cannot_be_convolved_is_refused():
    x = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"4x4 has no middle"):
        same_conv.conv_same(x, jnp.zeros((4, 4, 1, 1)))
    with pytest.raises(ValueError, match=r"lowering is 'fast'"):
        same_conv.upsample_conv(x, jnp.zeros((5, 5, 1, 1)), "fast")
    with pytest.raises(AssertionError):
        same_conv.conv_same(x, jnp.zeros((5, 5, 2, 1)))
