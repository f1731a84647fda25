"""The Fréchet distance between two sets of features, as FID and FVD take it."""

import chex
import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet (Wasserstein-2) distance between Gaussians fitted to two sets of features.

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    with sample means and unbiased covariances (Dowson & Landau, 1982). The estimate is biased
    upwards, the more so the fewer samples there are for the number of dimensions: only sets of
    the same size can be compared. With no more samples than dimensions the covariances are
    singular; the distance is then that of degenerate Gaussians, still defined and still 0 for equal
    sets, but far above that of the distributions.

    The trace of the root is computed from the centred features A, B (one row per sample): S_a S_b
    has the non-zero eigenvalues of G^T G with G = A B^T / sqrt((n_a - 1)(n_b - 1)), so that it is
    the sum of G's singular values. No matrix root is taken: that of a singular product is where
    ``scipy.linalg.sqrtm`` loses digits and turns complex.

    Args:
      a: ``(n_a, D)`` features of one set.
      b: ``(n_b, D)`` features of the other.

    Returns:
      The distance, at least 0.

    Raises:
      ValueError: if a set has fewer than two samples, or a feature that is not finite.
    """
    chex.assert_rank([a, b], 2)
    chex.assert_equal(a.shape[1], b.shape[1])
    for features in (a, b):
        if len(features) < 2:
            raise ValueError(
                f"a Gaussian cannot be fitted to {len(features)} videos: the Fréchet distance "
                "needs at least 2 of each kind, and a meaningful one more than there are features."
            )
        if not np.isfinite(features).all():
            raise ValueError(
                "features hold NaN or infinite values: look for them in the videos or weights."
            )
    mean_a, factor_a = _gaussian(a)
    mean_b, factor_b = _gaussian(b)
    root = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    traces = (factor_a**2).sum() + (factor_b**2).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + traces - 2 * root))


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) and a factor R, (min(n, D), D), of the covariance R^T R."""
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    factor: np.ndarray = np.linalg.qr(centred, mode="r")  # type: ignore[assignment]  # its stub
    return mean, factor
