"""The Vendi score: how many different images a set amounts to."""

import chex
import numpy as np


def vendi_score(features: np.ndarray) -> float:
    """Effective number of different images (Friedman & Dieng, 2023): exp of an entropy.

    The entropy is that of the eigenvalues of S/n, with S the cosine similarities of n images.

    Args:
      features: (n, D) float, no row zero.

    Returns:
      From 1 (all the same direction) to min(n, D).

    Raises:
      ValueError: if a row is zero or not finite.
    """
    chex.assert_rank(features, 2)
    features = np.asarray(features, np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        raise ValueError(
            f"features of image {bad[0]} (of {bad.size} such) are zero or not finite, so that they "
            "have no direction: look for it in the images or the feature network."
        )
    unit = features / norms
    # Both products have the same eigenvalues but zeros.
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    eigenvalues = np.linalg.eigvalsh(gram / len(unit))
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
