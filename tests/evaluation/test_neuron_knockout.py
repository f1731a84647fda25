"""Neuron knockout: a perfect code loses everything, a duplicated one nothing."""

import jax
import numpy as np
import pytest

from worldmodels_jax.evaluation.neuron_knockout import neuron_knockout

KEY = jax.random.key(0)
SIZES = (3, 3)


def codes_of(factors: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(factors), 1))
    return np.column_stack([1e3 * factors[:, 1], noise, factors[:, 0]])


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, SIZES, (512, 2)), rng.integers(0, SIZES, (500, 2))
    return codes_of(train, 1), train, codes_of(test, 2), test


def test_a_perfect_code_falls_to_chance(data: tuple[np.ndarray, ...]) -> None:
    score = neuron_knockout(*data, KEY)
    np.testing.assert_allclose(score, 2 / 3, atol=0.07)
    assert neuron_knockout(*data, KEY) == score


def test_a_duplicated_code_loses_nothing(data: tuple[np.ndarray, ...]) -> None:
    codes, factors, test_codes, test_factors = data
    twice, test_twice = (np.tile(x, (1, 2)) for x in (codes, test_codes))
    assert abs(neuron_knockout(twice, factors, test_twice, test_factors, KEY)) < 0.02


def test_labels_need_not_start_at_zero(data: tuple[np.ndarray, ...]) -> None:
    codes, factors, test_codes, test_factors = data
    shifted = neuron_knockout(codes, factors * 5 + 2, test_codes, test_factors * 5 + 2, KEY)
    np.testing.assert_allclose(shifted, neuron_knockout(*data, KEY))
