"""MIG and SNC of perfect, random and hand-made codes."""

import math

import numpy as np
import pytest

from worldmodels_jax.evaluation import single_latents

SIZES = (3, 4)


def some_factors(n: int = 2_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZES, (n, len(SIZES)))


def noise(n: int = 2_000, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3))


# Bins and information


def test_equal_width_bins_by_hand() -> None:
    values = np.array([[0.0, 7.0], [0.9, 7.0], [1.0, 7.0], [2.0, 7.0]])
    np.testing.assert_array_equal(
        single_latents.equal_width_bins(values, 2), [[0, 0], [0, 0], [1, 0], [1, 0]]
    )


def test_mutual_information_by_hand() -> None:
    a = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(single_latents.mutual_information(a, 1 - a), math.log(2))
    assert single_latents.mutual_information(a, np.array([0, 1, 0, 1])) == 0
    # p(0,0) = 1/2, p(1,0) = p(1,1) = 1/4: H(a) + H(b) - H(a, b)
    expected = math.log(2) - (0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - 1.5 * math.log(2)
    got = single_latents.mutual_information(a, np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(got, expected)


def test_constant_factors_are_refused() -> None:
    factors = np.array([[0, 5, 1], [1, 5, 1]])
    with pytest.raises(ValueError, match=r"factors \[1, 2\] have one value only, \[5, 1\]"):
        single_latents.mig(np.eye(2), factors)


# MIG


def test_mig_of_perfect_and_random_codes() -> None:
    factors = some_factors()
    perfect = np.column_stack([factors[:, 1] * -3.0, noise()[:, 0], factors[:, 0] * 0.1])
    assert single_latents.mig(perfect, factors) > 0.95
    assert single_latents.mig(noise(), factors) < 0.05


def test_mig_of_a_repeated_latent_is_zero() -> None:
    factors = some_factors()
    np.testing.assert_allclose(single_latents.mig(np.tile(factors, (1, 2)), factors), 0, atol=1e-9)


def test_mig_by_hand() -> None:
    # Of a fair bit, one latent knows all and another, of the two bits' and, .2158 of .6931 nats.
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    codes = np.column_stack([bits, bits[:, 0] & bits[:, 1]])
    known = 0.75 * math.log(4 / 3) + 0.25 * math.log(4) - 0.5 * math.log(2)
    expected = 1 - known / math.log(2)
    np.testing.assert_allclose(single_latents.mig(codes, bits), expected)
    with pytest.raises(ValueError, match="two latents, but there are 1"):
        single_latents.mig(codes[:, :1], bits)


# SNC


def test_alignment_gives_each_factor_its_latent() -> None:
    factors = some_factors()
    codes = np.column_stack([noise()[:, 0], -factors[:, 1], factors[:, 0] + 0.1 * noise()[:, 1]])
    np.testing.assert_array_equal(single_latents.align_neurons(codes, factors), [2, 1])


def test_alignment_gives_no_latent_twice() -> None:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 2, 2_000)
    second = np.where(rng.random(2_000) < 0.9, first, 1 - first)
    factors = np.column_stack([second, first])
    codes = np.column_stack([first, noise()[:, 0]])  # latent 0 is the best one for both
    np.testing.assert_array_equal(single_latents.align_neurons(codes, factors), [1, 0])
    with pytest.raises(ValueError, match="2 factors cannot have one each of 1 latents"):
        single_latents.align_neurons(codes[:, :1], factors)


def snc(codes: np.ndarray, test_codes: np.ndarray) -> float:
    return single_latents.snc(codes, some_factors(), test_codes, some_factors(seed=5))


def test_snc_of_perfect_and_random_codes() -> None:
    order = np.array([2, 0, 3, 1])  # which class is where on the line does not matter

    def perfect(factors: np.ndarray) -> np.ndarray:
        return np.column_stack([order[factors[:, 1]], 0.0 * factors[:, 0], -7.0 * factors[:, 0]])

    np.testing.assert_allclose(snc(perfect(some_factors()), perfect(some_factors(seed=5))), 1.0)
    assert snc(noise(), noise(seed=6)) < 0.05


def test_snc_of_a_continuous_code() -> None:
    def position(factors: np.ndarray, seed: int) -> np.ndarray:
        return factors + 0.3 * np.random.default_rng(seed).random(factors.shape)

    # Bins of equal counts miss a class's border by a little: classes are not equally many.
    assert snc(position(some_factors(), 0), position(some_factors(seed=5), 1)) > 0.9


def test_snc_is_corrected_by_each_factors_own_chance() -> None:
    # 75% and 50% of classes 1; the latents say the first without error and nothing of the second.
    factors = np.array([[1, 0], [1, 1], [1, 0], [1, 1], [0, 0], [0, 1], [1, 0], [1, 1]] * 50)
    codes = np.column_stack([factors[:, 0], np.tile([0, 0, 1, 1, 0, 0, 1, 1], 50)])
    score = single_latents.snc(codes, factors, codes, factors)
    np.testing.assert_allclose(score, 0.5, atol=1e-9)


def test_snc_by_hand_with_errors() -> None:
    # Latent 0 reads factor 0 right in 3 of 4 test images: (3/4 - 1/2) / (1 - 1/2).
    factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    test_codes = np.array([[0, 0], [0, 1], [1, 0], [0, 1]])
    score = single_latents.snc(factors, factors, test_codes, factors)
    np.testing.assert_allclose(score, (0.5 + 1.0) / 2)
