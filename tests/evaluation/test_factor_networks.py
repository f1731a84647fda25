"""Networks that tell factors."""

import jax
import numpy as np
import pytest

from worldmodels_jax.evaluation import factor_networks
from worldmodels_jax.evaluation.factor_networks import attribute_accuracy, fit_factor_network

KEY = jax.random.key(0)


def some_factors(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, count) for size in (2, 3)], axis=1)


def test_accuracy_of_codes_that_say_one_factor_of_two() -> None:
    train, test = some_factors(1500, 0), some_factors(800, 1)

    def codes(factors: np.ndarray, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=len(factors))
        return np.stack([noise, 2.0 * factors[:, 1]], axis=1)

    accuracy = attribute_accuracy(codes(train, 2), train, codes(test, 3), test, KEY)
    assert accuracy == pytest.approx((0.5 + 1.0) / 2, abs=0.04)


def test_a_network_sees_all_factors_through_one_trunk() -> None:
    factors = some_factors(400, 0)
    inputs = np.eye(6, dtype=np.float32)[3 * factors[:, 0] + factors[:, 1]]
    trunk = 0.1 * jax.random.normal(KEY, (6, 8))
    network = fit_factor_network(
        lambda w, x: x @ w, trunk, inputs, factors, KEY, steps=300, batch_size=32, rate=3e-2
    )
    assert [head[0].shape for head in network.heads] == [(8, 2), (8, 3)]
    logits = factor_networks._logits(lambda w, x: x @ w, network, np.eye(6, dtype=np.float32))
    np.testing.assert_array_equal(logits[0].argmax(-1), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(logits[1].argmax(-1), [0, 1, 2, 0, 1, 2])
    assert np.abs(network.trunk - trunk).max() > 0.1


def test_factors_that_do_not_vary_are_refused() -> None:
    with pytest.raises(ValueError, match="have one value only"):
        attribute_accuracy(np.zeros((4, 2)), np.zeros((4, 1), int), np.zeros((4, 2)), None, KEY)
