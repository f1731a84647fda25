"""What classifiers read from codes: DCI and unfairness; and how many latents are used.

Codes are posterior means, n images of K latents; factors are integer classes, n images of M
factors. Scores of single latents are in ``single_latents``.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

from worldmodels_jax.evaluation.single_latents import check_factors, contingency


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness (Eastwood & Williams, 2018), in [0, 1]."""

    disentanglement: float
    completeness: float
    informativeness: float

    @property
    def arithmetic_mean(self) -> float:
        """Of the three."""
        return float(np.mean(self))

    @property
    def geometric_mean(self) -> float:
        """Of the three: the number to report."""
        return float(np.prod(self) ** (1 / 3))


def fit_classifiers(
    codes: np.ndarray, factors: np.ndarray, *, fast: bool = False, seed: int = 0
) -> tuple[Any, ...]:
    """A classifier of each factor from the codes: gradient-boosted trees.

    Args:
      codes: (n, K) float.
      factors: (n, M) int.
      fast: whether to take a random forest of 20 trees of depth 9 in their place.
      seed: of the classifiers.

    Returns:
      M fitted scikit-learn classifiers.

    Raises:
      ModuleNotFoundError: without scikit-learn.
      ValueError: if a factor does not vary.
    """
    check_factors(factors)
    try:
        ensemble = importlib.import_module("sklearn.ensemble")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "DCI and unfairness need scikit-learn, which is not installed: run "
            "`pip install 'worldmodels_jax[eval]'`."
        ) from error

    def new() -> Any:
        if fast:
            return ensemble.RandomForestClassifier(20, max_depth=9, random_state=seed)
        return ensemble.GradientBoostingClassifier(random_state=seed)

    return tuple(new().fit(codes, column) for column in factors.T)


def predict_factors(classifiers: Sequence[Any], codes: np.ndarray) -> np.ndarray:
    """What each classifier says of each code.

    Args:
      classifiers: M of ``fit_classifiers``.
      codes: (n, K).

    Returns:
      (n, M) int.
    """
    return np.stack([classifier.predict(codes) for classifier in classifiers], axis=1)


def dci(classifiers: Sequence[Any], codes: np.ndarray, factors: np.ndarray) -> DCI:
    """DCI of codes with the importances that fitted classifiers give to them.

    Args:
      classifiers: M of ``fit_classifiers``, fitted to other images.
      codes: (n, K) of test images.
      factors: (n, M) of the same.

    Returns:
      The three scores; informativeness is the mean test accuracy.
    """
    importances = np.stack([c.feature_importances_ for c in classifiers], axis=1)
    disentanglement, completeness = modularity(importances)
    accuracy = (predict_factors(classifiers, codes) == factors).mean()
    return DCI(disentanglement, completeness, float(accuracy))


def modularity(importances: np.ndarray) -> tuple[float, float]:
    """D and C of DCI: whether a latent matters for one factor, and a factor needs one latent.

        D = sum_i rho_i (1 - H_M(R_i / |R_i|))          C = sum_j kappa_j (1 - H_K(R_j / |R_j|))

    with the shares rho of rows and kappa of columns, and entropies in base M and K.

    Args:
      importances: R, (K, M), not negative, K and M at least 2.

    Returns:
      ``(D, C)`` in [0, 1]; zeros if nothing matters.

    Raises:
      ValueError: if there is a single latent or factor.
    """
    chex.assert_rank(importances, 2)
    if min(importances.shape) < 2:
        raise ValueError(
            f"importances of {importances.shape[0]} latents for {importances.shape[1]} factors "
            "cannot be spread: give at least 2 of each."
        )
    return _concentration(importances), _concentration(importances.T)


def _concentration(rows: np.ndarray) -> float:
    total = rows.sum()
    if total == 0:
        return 0.0
    p = rows + 1e-11
    p /= p.sum(1, keepdims=True)
    spread = -(p * np.log(p)).sum(1) / np.log(rows.shape[1])
    return float((rows.sum(1) / total * (1 - spread)).sum())


# Unfairness and usage


def prediction_unfairness(predictions: np.ndarray, sensitive: np.ndarray) -> float:
    """How much the distribution of predictions depends on a factor that they are not about.

    The mean over values s, weighted by counts, of the total variation between p(y) and p(y | s)
    (Locatello et al., 2019).

    Args:
      predictions: (n,) int, of one factor.
      sensitive: (n,) int, another factor: as observed, or as set by interventions.

    Returns:
      In [0, 1].
    """
    _, y = np.unique(predictions, return_inverse=True)
    _, s = np.unique(sensitive, return_inverse=True)
    counts = contingency(s, y)
    conditional = counts / counts.sum(1, keepdims=True)
    variation = 0.5 * np.abs(conditional - counts.sum(0) / len(y)).sum(1)
    return float((counts.sum(1) / len(y) * variation).sum())


def unfairness(predictions: np.ndarray, factors: np.ndarray) -> float:
    """Mean unfairness over ordered pairs of different factors, grouped by observed values.

    Args:
      predictions: (n, M) int of ``predict_factors``.
      factors: (n, M) int, M at least 2.

    Returns:
      In [0, 1]; 0 is fair.
    """
    chex.assert_equal_shape([predictions, factors])
    num_factors = factors.shape[1]
    return float(
        np.mean(
            [
                prediction_unfairness(predictions[:, i], factors[:, j])
                for i in range(num_factors)
                for j in range(num_factors)
                if i != j
            ]
        )
    )


def latent_usage(kl: np.ndarray, threshold: float = 0.3) -> tuple[int, float]:
    """How many latents say something, and how evenly.

    Args:
      kl: (n, K) nats, KL[q(z_k|x) || N(0, 1)] of n images.
      threshold: nats on average above which a latent is active.

    Returns:
      The number of active latents, and the smallest mean KL over the mean of them.
    """
    chex.assert_rank(kl, 2)
    mean = kl.mean(0)
    return int((mean > threshold).sum()), float(mean.min() / mean.mean())
