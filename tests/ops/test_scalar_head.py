"""Scalar heads: what each of the three predicts of noisy targets once it is fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from worldmodels_jax.ops.scalar_head import scalar_head


@pytest.mark.parametrize(
    ("kind", "expected"),
    # The mean of the targets; but symexp of the mean of their symlogs for bins in symlog space.
    [("symexp_twohot", 50.0), ("symlog_twohot", 9.05), ("mse", 50.0)],
)
def test_a_fitted_head_predicts_the_mean_in_its_own_space(kind, expected):
    head = scalar_head(kind, 41)
    targets = jnp.array([0.0, 100.0])
    optimiser = optax.adam(1.0 if kind == "mse" else 0.3)

    def loss(outputs, target):
        return head.loss(jnp.broadcast_to(outputs, (2, head.size)), target).mean()

    @jax.jit
    def fit():
        def step(carry, _):
            outputs, state = carry
            updates, state = optimiser.update(jax.grad(loss)(outputs, targets), state)
            return (outputs + updates, state), None

        outputs = jnp.zeros(head.size)
        carry, _ = jax.lax.scan(step, (outputs, optimiser.init(outputs)), None, 300)
        return head.mean(carry[0]), jax.grad(loss, argnums=1)(carry[0], targets)

    mean, to_target = fit()
    np.testing.assert_allclose(mean, expected, rtol=0.02)
    np.testing.assert_array_equal(to_target, 0.0)
    assert head.mean(jnp.zeros((3, head.size), jnp.bfloat16)).dtype == jnp.float32


def test_sizes():
    assert [scalar_head(kind, 7).size for kind in ("symexp_twohot", "symlog_twohot", "mse")] == [
        7,
        7,
        1,
    ]


@pytest.mark.parametrize("kind", ["symexp_twohot", "symlog_twohot", "mse"])
def test_shapes_that_would_broadcast_are_refused(kind):
    head = scalar_head(kind, 7)
    with pytest.raises(AssertionError):
        head.loss(jnp.zeros((4, head.size)), jnp.zeros((4, 1)))
