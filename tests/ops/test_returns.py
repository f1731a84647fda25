"""Lambda-returns against the hand example of Delta-IRIS, a slow NumPy loop and rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from jax.sharding import PartitionSpec as P

from worldmodels_jax.ops import returns

REWARD = jnp.array([1.0, 0.0, 2.0])
NEXT_VALUE = jnp.array([1.0, 0.3, 2.0])  # V_1, V_2, V_3
BOOTSTRAP = jnp.array(2.0)


def hand_example(ends, gamma, lambda_):
    discount = gamma * (1 - jnp.array(ends, jnp.float32))
    return returns.lambda_returns(REWARD, discount, NEXT_VALUE, BOOTSTRAP, lambda_)


def test_hand_example():
    np.testing.assert_allclose(hand_example([0, 0, 0], 0.9, 0.5), [2.28025, 1.845, 3.8], rtol=1e-6)


def test_hand_example_with_an_end():
    np.testing.assert_allclose(hand_example([0, 1, 0], 0.9, 0.5), [1.45, 0.0, 3.8], rtol=1e-6)


def test_lambda_one_is_the_discounted_sum_with_bootstrap():
    sums = [1 + 0.81 * 2 + 0.729 * 2, 0.9 * 2 + 0.81 * 2, 2 + 0.9 * 2]
    np.testing.assert_allclose(hand_example([0, 0, 0], 0.9, 1.0), sums, rtol=1e-6)


def test_lambda_zero_is_the_one_step_target():
    np.testing.assert_allclose(hand_example([0, 0, 0], 0.9, 0.0), [1.9, 0.27, 3.8], rtol=1e-6)


def test_hand_example_of_rewards_on_arrival():
    """The rewards, discounts and values of states 1, 2, 3, and the returns of states 0, 1, 2."""
    reward, value = jnp.array([1.0, 0.0, 2.0]), jnp.array([0.5, 1.0, 3.0])
    ours = returns.lambda_returns(reward, jnp.full(3, 0.9), value, value[-1], 0.5)
    np.testing.assert_allclose(ours, [2.37925, 2.565, 4.7], rtol=1e-6)


def test_each_step_may_mix_by_its_own():
    mixing = jnp.array([0.5, 0.0, 0.5])  # what follows the second step does not count
    ours = hand_example([0, 0, 0], 0.9, mixing)
    np.testing.assert_allclose(ours, [1.5715, 0.27, 3.8], rtol=1e-6)


def random_trajectory(*shape):
    rng = np.random.default_rng(0)
    reward, next_value = rng.normal(size=(2, *shape)).astype(np.float32)
    discount = rng.uniform(size=shape).astype(np.float32)
    return reward, discount, next_value, rng.normal(size=shape[1:]).astype(np.float32)


def test_equals_rlax():
    reward, discount, next_value, _ = random_trajectory(16, 5)
    ours = jax.jit(returns.lambda_returns)(reward, discount, next_value, next_value[-1], 0.95)
    library = jax.vmap(rlax.lambda_returns, (1, 1, 1, None), 1)(reward, discount, next_value, 0.95)
    np.testing.assert_allclose(ours, library, rtol=1e-5)


def test_equals_a_slow_loop_when_the_bootstrap_is_not_the_last_value():
    reward, discount, next_value, bootstrap = random_trajectory(7, 2, 3)
    expected = np.empty((7, 2, 3))
    following = bootstrap.astype(np.float64)
    for step in reversed(range(7)):
        mixed = 0.3 * next_value[step] + 0.7 * following
        following = expected[step] = reward[step] + discount[step] * mixed
    ours = returns.lambda_returns(reward, discount, next_value, bootstrap, 0.7)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_gradient_reaches_every_term():
    def first(reward, bootstrap):
        discount = jnp.full(3, 0.9)
        return returns.lambda_returns(reward, discount, NEXT_VALUE, bootstrap, 0.5)[0]

    to_reward, to_bootstrap = jax.grad(first, argnums=(0, 1))(REWARD, BOOTSTRAP)
    np.testing.assert_allclose(to_reward, [1.0, 0.45, 0.45**2], rtol=1e-6)
    np.testing.assert_allclose(to_bootstrap, 0.45**3, rtol=1e-6)


def test_returns_are_summed_in_float32():
    # In bfloat16 256 + 1 is 256: the small rewards would vanish.
    ones = jnp.ones(4, jnp.bfloat16)
    start = jnp.array(256.0, jnp.bfloat16)
    ours = returns.lambda_returns(ones, ones, ones, start, 1.0)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, [260.0, 259.0, 258.0, 257.0])


def test_refuses_a_bootstrap_with_a_time_axis():
    with pytest.raises(AssertionError):
        returns.lambda_returns(REWARD, REWARD, REWARD, NEXT_VALUE, 0.95)


def test_scale_follows_numpy_percentiles():
    batches = np.random.default_rng(1).normal(5.0, 3.0, (2, 16, 40)).astype(np.float32)
    scale = returns.init_return_scale()
    assert (scale.low, scale.high) == (0.0, 0.0)
    low = high = 0.0
    for batch in batches:
        scale = returns.update_return_scale(scale, jnp.asarray(batch))
        low = 0.99 * low + 0.01 * np.quantile(batch, 0.05)
        high = 0.99 * high + 0.01 * np.quantile(batch, 0.95)
        np.testing.assert_allclose([scale.low, scale.high], [low, high], rtol=1e-5)


def test_scale_arguments_are_used():
    start = returns.ReturnScale(jnp.array(1.0), jnp.array(2.0))
    scale = returns.update_return_scale(start, jnp.arange(11.0), decay=0.5, low=0.1, high=0.8)
    np.testing.assert_allclose([scale.low, scale.high], [1.0, 5.0], rtol=1e-6)


def update_over_devices(values):
    start = returns.init_return_scale()
    return returns.update_return_scale(start, values, decay=0.0, axis_name="device")


def test_scale_over_devices_is_that_of_all_returns():
    # Shares as unlike as these have percentiles whose mean is far from those of the whole.
    values = jnp.concatenate([jnp.arange(20.0), 1000 + jnp.arange(20.0)]).reshape(2, 20)
    scale = jax.vmap(update_over_devices, axis_name="device")(values)
    np.testing.assert_allclose(scale.low, np.full(2, np.quantile(values, 0.05)), rtol=1e-6)
    np.testing.assert_allclose(scale.high, np.full(2, np.quantile(values, 0.95)), rtol=1e-6)


def test_shard_map_accepts_the_scale_as_replicated():
    # The check is static, so that one device is enough to fail it.
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(update_over_devices, mesh=mesh, in_specs=P("device"), out_specs=P())
    scale = jax.jit(mapped)(jnp.arange(21.0))
    np.testing.assert_allclose([scale.low, scale.high], [1.0, 19.0], rtol=1e-6)


def test_no_gradient_through_the_scale():
    def spread(values):
        return returns.return_range(
            returns.update_return_scale(returns.init_return_scale(), values, decay=0.0)
        )

    values = jnp.array([0.0, 10.0, 30.0])
    assert spread(values) > 1.0
    np.testing.assert_array_equal(jax.grad(spread)(values), 0.0)


def test_constant_returns_divide_by_one_and_larger_ones_by_as_much():
    def divisor(values):
        def step(scale, _):
            return returns.update_return_scale(scale, values), None

        scale, _ = jax.lax.scan(step, returns.init_return_scale(), None, length=2000)
        return returns.return_range(scale)

    assert divisor(jnp.full(20, 7.0)) == 1.0
    spread = jnp.linspace(-30.0, 70.0, 101)
    np.testing.assert_allclose(divisor(spread), 90.0, rtol=1e-4)
    np.testing.assert_allclose(divisor(100 * spread), 9000.0, rtol=1e-4)


def test_range_is_floored_at_one():
    def spread(low, high):
        return returns.return_range(returns.ReturnScale(jnp.array(low), jnp.array(high)))

    assert spread(0.0, 0.25) == 1.0
    assert spread(-2.0, 3.0) == 5.0
