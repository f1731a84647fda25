"""The Fréchet distance against closed forms and scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from worldmodels_jax.evaluation.frechet import frechet_distance


def whitened(n: int, d: int, seed: int) -> np.ndarray:
    """Samples of exactly zero mean and unit covariance."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_diagonal_gaussians_by_hand() -> None:
    a = whitened(50, 3, 0) * [1.0, 2.0, 3.0] + [0.0, 1.0, 0.0]
    b = whitened(40, 3, 1) * [1.0, 4.0, 0.5] + [2.0, 1.0, -1.0]
    # Means: 4 + 0 + 1; deviations: 0 + 2^2 + 2.5^2.
    np.testing.assert_allclose(frechet_distance(a, b), 5.0 + 4.0 + 6.25, rtol=1e-9)


@pytest.mark.parametrize("sizes", [(60, 40), (7, 9)], ids=["full rank", "fewer videos than dims"])
def test_any_gaussians_against_the_matrix_root(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(12, 12))
    a = rng.normal(size=(sizes[0], 12)) @ mix + 1.0
    b = rng.normal(size=(sizes[1], 12)) ** 2
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    if min(sizes) > 12:
        root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    else:  # the root of a singular product is not reliable, its eigenvalues are
        root = np.sqrt(np.abs(np.linalg.eigvals(cov_a @ cov_b))).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(frechet_distance(b, a), frechet_distance(a, b), rtol=1e-9)


@pytest.mark.parametrize("n", [100, 5])
def test_equal_sets_have_no_distance(n: int) -> None:
    x = np.random.default_rng(3).normal(5.0, 100.0, (n, 30)).astype(np.float32)
    assert 0 <= frechet_distance(x, x[::-1]) < 1e-6


def test_a_shift_is_its_square() -> None:
    x = np.random.default_rng(4).normal(size=(20, 6))
    np.testing.assert_allclose(frechet_distance(x, x + 0.5), 6 * 0.25, rtol=1e-9)


def test_what_cannot_be_fitted_is_refused() -> None:
    x = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"to 1 videos: .* needs at least 2"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        frechet_distance(x, np.full((4, 3), np.nan))
    with pytest.raises(AssertionError):
        frechet_distance(x, np.zeros((4, 2)))
