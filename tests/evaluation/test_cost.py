"""Arithmetic by hand; times and memory only as far as they must be true anywhere."""

import jax
import jax.numpy as jnp
import pytest

from worldmodels_jax.evaluation import cost


def test_products_are_counted_by_hand() -> None:
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert cost.matmul_flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5
    batched = jax.vmap(jnp.matmul, in_axes=(0, None))
    assert cost.matmul_flops(batched, jnp.ones((7, 3, 4)), b) == 7 * 2 * 3 * 4 * 5
    assert cost.matmul_flops(jnp.add, a, a) == 0
    # Forward, and one product for the gradient of each factor.
    both = jax.grad(lambda a, b: (a @ b).sum() ** 2, argnums=(0, 1))
    assert cost.matmul_flops(both, a, b) == 3 * 2 * 3 * 4 * 5


def test_a_convolution_is_a_product_of_patches() -> None:
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert cost.matmul_flops(convolve, x, kernel) == 2 * (2 * 4 * 4) * (4 * 4 * 3) * 5


def test_a_loop_counts_as_often_as_it_runs_and_a_branch_as_the_dearest() -> None:
    a = jnp.ones((4, 4))
    product = 2 * 4**3

    def looped(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=6)[0]

    assert cost.matmul_flops(jax.jit(looped), a) == 6 * product

    def branched(a: jax.Array) -> jax.Array:
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ a @ a, lambda x: x @ a, a)

    assert cost.matmul_flops(branched, a) == 2 * product

    def unknown(a: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ a, a)

    with pytest.raises(ValueError, match="while loop holds matrix products"):
        cost.matmul_flops(unknown, a)
    harmless = jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, 0)
    assert harmless == 3


def test_a_compiled_function_tells_what_it_takes() -> None:
    a = jnp.ones((64, 64))
    compiled = cost.compile_function(jnp.matmul, a, a)
    assert compiled.call(a, a)[0, 0] == 64
    assert compiled.flops == pytest.approx(2 * 64**3, rel=0.05)
    assert compiled.memory >= 3 * a.nbytes
    assert compiled.seconds > 0
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        cost.compile_function(jnp.matmul, a, a, options={"no_such_option": True})


def test_timing_repeats_as_often_as_asked() -> None:
    calls = []

    def call(x: int) -> None:
        calls.append(x)

    timing = cost.time_call(call, 5, repeats=4, seconds=0.0)
    assert calls == [5] * 5  # the first is not counted
    assert timing.repeats == 4
    assert 0 <= timing.low <= timing.median <= timing.high
    assert cost.time_call(call, 5, repeats=1, seconds=1e9).repeats == 100
