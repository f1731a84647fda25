"""LaProp and adaptive gradient clipping against hand-computed numbers and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from worldmodels_jax.training import optimisers


def updates_of(optimiser, gradients, params):
    """One update after another, the parameters standing still."""

    def step(state, gradient):
        update, state = optimiser.update(gradient, state, params)
        return state, update

    return jax.jit(lambda g: jax.lax.scan(step, optimiser.init(params), g)[1])(gradients)


def vector(norm, seed=0, size=4):
    x = np.random.default_rng(seed).normal(size=size)
    return jnp.asarray(norm * x / np.linalg.norm(x), jnp.float32)


@pytest.mark.parametrize(
    ("gradient", "parameter", "clipped"),
    [
        (10.0, 1.0, 0.3),
        (0.1, 1.0, 0.1),
        (10.0, 20.0, 6.0),
        (10.0, 0.0, 3e-4),  # the floor: parameters at zero may move
        (10.0, 1e-5, 3e-4),
        (0.0, 1.0, 0.0),
    ],
)
def test_clipping_keeps_the_direction_and_bounds_the_norm(gradient, parameter, clipped):
    clip = optimisers.clip_by_parameter_norm(0.3, 1e-3)
    direction = vector(1.0)
    params = vector(parameter, seed=1)
    update, _ = clip.update(gradient * direction, clip.init(params), params)
    np.testing.assert_allclose(update, clipped * direction, rtol=1e-5)


def test_each_tensor_is_clipped_by_itself():
    clip = optimisers.clip_by_parameter_norm()
    params = {"large": vector(100.0).reshape(1, 2, 2), "small": vector(1.0)}
    gradients = {"large": vector(10.0).reshape(1, 2, 2), "small": vector(10.0)}
    update, _ = clip.update(gradients, clip.init(params), params)
    norms = jax.tree.map(jnp.linalg.norm, update)
    np.testing.assert_allclose([norms["large"], norms["small"]], [10.0, 0.3], rtol=1e-5)


def test_a_constant_gradient_moves_by_the_rate_at_every_step():
    gradient = jnp.array([1e-6, 3.0, -200.0])
    params = jnp.zeros(3)
    optimiser = optimisers.laprop(0.01, warmup=0, clip=1e9, eps=1e-20)
    updates = updates_of(optimiser, jnp.tile(gradient, (6, 1)), params)
    np.testing.assert_allclose(updates, -0.01 * jnp.tile(jnp.sign(gradient), (6, 1)), rtol=1e-4)


def test_laprop_equals_numpy_and_not_adam():
    gradients = np.random.default_rng(0).normal(size=(5, 3)) * np.array([1e-3, 1.0, 50.0])
    n = m = np.zeros(3)
    expected = []
    for t, g in enumerate(gradients, start=1):
        n = 0.99 * n + 0.01 * g**2
        m = 0.8 * m + 0.2 * g / (np.sqrt(n / (1 - 0.99**t)) + 1e-3)
        expected.append(m / (1 - 0.8**t))
    gradients, params = jnp.asarray(gradients, jnp.float32), jnp.zeros(3)
    actual = updates_of(optimisers.scale_by_laprop(0.8, 0.99, 1e-3), gradients, params)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    adam = updates_of(optax.scale_by_adam(0.8, 0.99, 1e-3), gradients, params)
    assert np.abs(actual - adam)[1:].max() > 0.05


def test_the_rate_rises_from_zero_and_then_stays():
    optimiser = optimisers.laprop(0.5, warmup=4, clip=1e9)
    updates = updates_of(optimiser, jnp.ones((7, 1)), jnp.zeros(1))
    np.testing.assert_allclose(
        -updates[:, 0], [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5], rtol=1e-4, atol=1e-7
    )


def test_no_gradient_is_no_update():
    optimiser = optimisers.laprop(0.5, warmup=0)
    updates = updates_of(optimiser, jnp.zeros((3, 2)), jnp.ones(2))
    np.testing.assert_array_equal(updates, 0.0)


def test_large_gradients_are_clipped_before_they_are_scaled():
    # The scale of a gradient is lost in LaProp; a spike is not, unless it was clipped before.
    gradients = jnp.array([[0.2], [0.2], [100.0]])
    updates = updates_of(optimisers.laprop(1.0, warmup=0), gradients, jnp.ones(1))
    same = updates_of(optimisers.laprop(1.0, warmup=0), gradients.at[2].set(0.3), jnp.ones(1))
    np.testing.assert_allclose(updates, same, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ("linear", [0.0, 0.25, 0.5, 0.375, 0.25, 0.125, 0.0]),
        # 0.25 (1 + cos(pi t / 4))
        ("cosine", [0.0, 0.25, 0.5, 0.426777, 0.25, 0.073223, 0.0]),
    ],
)
def test_the_rate_of_scheduled_adam(schedule, rates):
    # A constant gradient's update is the rate, once the moments are corrected for their start.
    optimiser = optimisers.scheduled_adam(0.5, 6, warmup=2, schedule=schedule, eps=1e-12)
    updates = updates_of(optimiser, jnp.ones((7, 1)), jnp.zeros(1))
    np.testing.assert_allclose(-updates[:, 0], rates, rtol=1e-3, atol=1e-6)


def test_scheduled_adam_is_adam_where_nothing_is_asked():
    gradients = jax.random.normal(jax.random.key(0), (5, 3))
    ours = optimisers.scheduled_adam(0.1, 5, b1=0.5, b2=0.8, eps=1e-3)
    theirs = optax.adam(0.1, 0.5, 0.8, 1e-3)
    params = jnp.ones(3)
    np.testing.assert_array_equal(
        updates_of(ours, gradients, params), updates_of(theirs, gradients, params)
    )
    clipped = optimisers.scheduled_adam(0.1, 5, clip=0.01)
    doubled = updates_of(clipped, 2 * gradients, params)
    np.testing.assert_allclose(doubled, updates_of(clipped, gradients, params), rtol=1e-5)


def test_decay_is_of_matrices_only():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    optimiser = optimisers.scheduled_adam(0.1, 5, decay=0.5)
    updates, _ = optimiser.update(
        jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params
    )
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)
