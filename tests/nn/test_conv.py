"""The two convolutions: both lowerings against slow loops, each other and hand literals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn import conv

# Nothing is square and no two sizes agree, so that no two axes can be confused.
B, H, W, C, F = 2, 6, 10, 3, 5
CONVOLUTIONS = [conv.conv4s2, conv.conv_transpose4s2]
LAYERS = [conv.Conv4S2, conv.ConvTranspose4S2]


def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, H, W, C)).astype(np.float32)
    return x, rng.normal(size=(4, 4, C, F)).astype(np.float32)


def slow_conv(x, kernel):
    out = np.zeros((B, H // 2, W // 2, F))
    for row, column, i, j in np.ndindex(H // 2, W // 2, 4, 4):
        r, c = 2 * row - 1 + i, 2 * column - 1 + j
        if 0 <= r < H and 0 <= c < W:
            out[:, row, column] += x[:, r, c] @ kernel[i, j]
    return out


def slow_conv_transpose(x, kernel):
    out = np.zeros((B, 2 * H, 2 * W, F))
    for row, column, i, j in np.ndindex(H, W, 4, 4):
        r, c = 2 * row - 1 + i, 2 * column - 1 + j
        if 0 <= r < 2 * H and 0 <= c < 2 * W:
            out[:, r, c] += x[:, row, column] @ kernel[i, j]
    return out


@pytest.mark.parametrize("lowering", ["matmul", "lax"])
@pytest.mark.parametrize(
    ("convolution", "slow"),
    [(conv.conv4s2, slow_conv), (conv.conv_transpose4s2, slow_conv_transpose)],
)
def test_equals_a_slow_loop(convolution, slow, lowering):
    x, kernel = inputs()
    actual = convolution(jnp.asarray(x), jnp.asarray(kernel), lowering)
    np.testing.assert_allclose(actual, slow(x, kernel), atol=1e-4)


@pytest.mark.parametrize("lowering", ["matmul", "lax"])
def test_one_pixel_paints_the_middle_of_the_kernel(lowering):
    # Tap k of the only input pixel lands on pixel k - 1: taps 1 and 2 are inside, none is mirrored.
    kernel = jnp.arange(16.0).reshape(4, 4, 1, 1)
    out = conv.conv_transpose4s2(jnp.ones((1, 1, 1, 1)), kernel, lowering)
    np.testing.assert_array_equal(out[0, :, :, 0], [[5.0, 6.0], [9.0, 10.0]])


@pytest.mark.parametrize("lowering", ["matmul", "lax"])
def test_two_by_two_pixels_see_the_middle_of_the_kernel(lowering):
    kernel = jnp.arange(16.0).reshape(4, 4, 1, 1)
    x = jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(1, 2, 2, 1)
    assert conv.conv4s2(x, kernel, lowering).item() == 5.0 + 60.0 + 900.0 + 10000.0


# Sizes for each algorithm behind "matmul"; five frames in chunks of two leave a remainder.
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("chunk", [2, 8])
@pytest.mark.parametrize("shape", [(5, 6, 10, 3), (5, 8, 12, 16), (5, 4, 8, 20)])
def test_lowerings_have_the_same_gradients(convolution, shape, chunk, monkeypatch):
    fine = shape[1] * shape[2] * (1 if convolution is conv.conv4s2 else 4)
    monkeypatch.setattr(conv, "_CHUNK", chunk * fine)
    x = jax.random.normal(jax.random.key(1), shape)
    kernel = jax.random.normal(jax.random.key(2), (4, 4, shape[-1], 17))
    out = jax.eval_shape(convolution, x, kernel)
    cotangent = jax.random.normal(jax.random.key(0), out.shape)

    def gradients(lowering):
        value, pullback = jax.vjp(lambda x, k: convolution(x, k, lowering), x, kernel)
        return value, *pullback(cotangent)

    for matmul, lax in zip(gradients("matmul"), gradients("lax"), strict=True):
        np.testing.assert_allclose(matmul, lax, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_winograd_saves_seven_of_sixteen_multiplications(convolution):
    x, kernel = jnp.zeros((1, 32, 32, 32)), jnp.zeros((4, 4, 32, 32))
    direct, fast = (
        jax.jit(convolution, static_argnums=2).lower(x, kernel, lowering).compile().cost_analysis()
        for lowering in ("lax", "matmul")
    )
    products = 2 * 16 * 32 * 32 * (16 * 16 if convolution is conv.conv4s2 else 32 * 32)
    assert direct["flops"] > 0.9 * products
    assert fast["flops"] < 0.75 * products  # 9/16, and the sums


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_auto_is_matmul_on_cpu_and_the_library_elsewhere(monkeypatch, convolution):
    x, kernel = map(jnp.asarray, inputs())
    for backend, library in (("cpu", False), ("gpu", True)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        jaxpr = jax.make_jaxpr(lambda x, k: convolution(x, k))(x, kernel)
        assert ("conv_general_dilated" in str(jaxpr)) == library


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_inside_scan_equals_outside(layer):
    module = layer(features=F, use_bias=True)
    frames = jax.random.normal(jax.random.key(0), (3, 2, 4, 6, C))
    variables = module.init(jax.random.key(1), frames[0])

    def loss(variables, x):
        return jnp.sum(jnp.sin(module.apply(variables, x)))

    @jax.jit
    def inside(variables):
        zeros = jax.tree.map(jnp.zeros_like, variables)
        return jax.lax.scan(
            lambda total, x: (jax.tree.map(jnp.add, total, jax.grad(loss)(variables, x)), None),
            zeros,
            frames,
        )[0]

    outside = jax.jit(jax.grad(loss))(variables, frames)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
        inside(variables),
        outside,
    )


@pytest.mark.parametrize(
    ("layer", "fan_in"), [(conv.Conv4S2, 16 * C), (conv.ConvTranspose4S2, 16 * 64)]
)
def test_parameters_are_those_of_pytorch(layer, fan_in):
    module = layer(features=64, use_bias=True)
    params = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, C)))["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (4, 4, C, 64), "bias": (64,)}
    bound = fan_in**-0.5
    for parameter in params.values():
        assert parameter.dtype == jnp.float32
        # Uniform on [-bound, bound]: the largest of many draws is just inside.
        assert 0.9 * bound < parameter.max() <= bound
        assert -bound <= parameter.min() < -0.9 * bound
    np.testing.assert_allclose(params["kernel"].std(), bound / 3**0.5, rtol=0.05)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_bias_by_default_and_bias_is_added_when_asked(layer):
    x = jnp.asarray(inputs()[0])
    plain = layer(features=F).init(jax.random.key(0), x)
    assert list(plain["params"]) == ["kernel"]
    bias = jnp.arange(5.0)
    biased = {"params": {**plain["params"], "bias": bias}}
    with_bias = layer(features=F, use_bias=True).apply(biased, x)
    np.testing.assert_allclose(with_bias, layer(features=F).apply(plain, x) + bias, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_leading_axes_are_free(layer):
    module = layer(features=F)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6, C))
    variables = module.init(jax.random.key(1), x[0])
    whole = module.apply(variables, x)
    one_by_one = jax.vmap(jax.vmap(lambda frame: module.apply(variables, frame)))(x)
    np.testing.assert_allclose(whole, one_by_one, atol=1e-5)


@pytest.mark.parametrize("lowering", ["matmul", "lax"])
@pytest.mark.parametrize("layer", LAYERS)
def test_compute_type(layer, lowering):
    x = jnp.asarray(inputs()[0])
    variables = layer(features=F).init(jax.random.key(0), x)
    assert variables["params"]["kernel"].dtype == jnp.float32
    full = layer(features=F, lowering=lowering).apply(variables, x)
    half = layer(features=F, lowering=lowering, dtype=jnp.bfloat16).apply(variables, x)
    assert full.dtype == jnp.float32
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 5, 6, C), (1, 6, 5, C)])
@pytest.mark.parametrize("lowering", ["matmul", "lax"])
def test_odd_sides_are_refused_with_the_remedy(shape, lowering):
    with pytest.raises(ValueError, match=rf"{shape[1]}x{shape[2]} pixels.*pad or resize"):
        conv.conv4s2(jnp.zeros(shape), jnp.zeros((4, 4, C, F)), lowering)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_unknown_lowering_is_refused(convolution):
    with pytest.raises(ValueError, match="'gemm'"):
        convolution(jnp.zeros((1, 2, 2, C)), jnp.zeros((4, 4, C, F)), "gemm")


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_kernels_of_another_shape_are_refused(convolution):
    with pytest.raises(AssertionError):
        convolution(jnp.zeros((1, 4, 4, C)), jnp.zeros((3, 3, C, F)))
    with pytest.raises(AssertionError):
        convolution(jnp.zeros((1, 4, 4, C)), jnp.zeros((4, 4, F, C)))
