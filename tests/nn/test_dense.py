"""The layer is flax's, but for the shape in which its product is taken."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense, product

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (6, 5), (5,), (0, 2, 5)])
def test_a_product_has_any_leading_axes(shape: tuple[int, ...]) -> None:
    x = jnp.resize(X, shape) if 0 not in shape else jnp.zeros(shape)
    kernel = jnp.arange(35.0).reshape(5, 7)
    np.testing.assert_allclose(product(x, kernel), np.asarray(x) @ np.asarray(kernel), rtol=1e-5)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_equals_flax(dtype: jnp.dtype | None) -> None:
    ours, theirs = Dense(7, dtype=dtype), nn.Dense(7, dtype=dtype)
    variables = ours.init(jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(0), X))
    assert ours.apply(variables, X).dtype == theirs.apply(variables, X).dtype
    np.testing.assert_array_equal(ours.apply(variables, X), theirs.apply(variables, X))

    def gradients(layer: nn.Dense) -> tuple[dict, jax.Array]:
        return jax.grad(lambda v, x: (layer.apply(v, x) ** 2).sum(), (0, 1))(variables, X)

    tolerance = 1e-4 if dtype is None else 0.2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        gradients(ours),
        gradients(theirs),
    )


def test_its_name_among_the_parameters_is_flaxs() -> None:
    class Two(nn.Module):
        layer: Callable[..., nn.Module]

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layer(3)(self.layer(2)(x))

    ours, theirs = (jax.eval_shape(Two(of).init, jax.random.key(0), X) for of in (Dense, nn.Dense))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


def test_rows_of_a_gradient_are_counted_along_one_axis() -> None:
    kernel = jnp.ones((5, 7))

    def contracted(function: Callable[[jax.Array, jax.Array], jax.Array]) -> list[int]:
        jaxpr = jax.make_jaxpr(jax.grad(lambda k: function(X, k).sum()))(kernel)
        products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        return [len(e.params["dimension_numbers"][0][0]) for e in products]

    assert contracted(jnp.matmul) == [1, 3]  # what XLA is slow at
    assert contracted(product) == [1, 1]
