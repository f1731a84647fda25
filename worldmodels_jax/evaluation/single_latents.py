"""What single latents know of single factors: MIG and SNC.

Codes are posterior means, n images of K latents; factors are integer classes, n images of M
factors. ``neuron_knockout`` asks the opposite: what is lost without a factor's latent.
"""

import chex
import numpy as np
from scipy.optimize import linear_sum_assignment

_MIG_BINS = 20


def equal_width_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Classes of continuous values, by bins of equal width between a column's extremes.

    Args:
      values: (n, ...) float; each column is binned on its own, a constant one into bin 0.
      num_bins: number of classes.

    Returns:
      (n, ...) int64 in ``[0, num_bins)``.
    """
    low, high = values.min(0), values.max(0)
    share = (values - low) / np.where(high > low, high - low, 1.0)
    return np.minimum((share * num_bins).astype(np.int64), num_bins - 1)


def check_factors(factors: np.ndarray) -> None:
    """Refuses factors that do not vary: no score is defined for them.

    Args:
      factors: (n, M) int.

    Raises:
      ValueError: if a factor has a single value.
    """
    chex.assert_rank(factors, 2)
    constant = np.flatnonzero((factors == factors[:1]).all(0))
    if constant.size:
        raise ValueError(
            f"factors {constant.tolist()} have one value only, {factors[0, constant].tolist()}, so "
            "that nothing can be said of them: leave them out, or draw more images."
        )


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) of two columns of classes, from their counts.

    Args:
      a: (n,) int, not negative.
      b: (n,) int, not negative.

    Returns:
      In nats.
    """
    chex.assert_rank([a, b], 1)
    joint = contingency(a, b) / len(a)
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def contingency(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How often each pair of classes occurs.

    Args:
      a: (n,) int, not negative.
      b: (n,) int, not negative.

    Returns:
      (max a + 1, max b + 1) float64.
    """
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    return counts


def mig(codes: np.ndarray, factors: np.ndarray) -> float:
    """Mutual information gap (Chen et al., 2018), mean_j (I_(1) - I_(2)) / H(v_j).

    Of each factor, how much more the best latent knows than the second best, with latents in 20
    bins of equal width.

    Args:
      codes: (n, K) float, K at least 2.
      factors: (n, M) int.

    Returns:
      In [0, 1].

    Raises:
      ValueError: if a factor does not vary, or there is a single latent.
    """
    check_factors(factors)
    if codes.shape[1] < 2:
        raise ValueError(f"a gap needs two latents, but there are {codes.shape[1]}.")
    binned = equal_width_bins(codes, _MIG_BINS)
    gaps = []
    for column in _as_classes(factors).T:
        best = np.sort([mutual_information(code, column) for code in binned.T])
        gaps.append((best[-1] - best[-2]) / mutual_information(column, column))
    return float(np.mean(gaps))


def _as_classes(factors: np.ndarray) -> np.ndarray:
    """Factors with their values numbered without gaps."""
    return np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T], axis=1)


def _bin_edges(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Inner edges of bins that hold as equally many values as ties allow."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < 2:
        return np.empty(0)
    below = np.cumsum(counts)[:-1]
    targets = len(values) * np.arange(1, num_bins) / num_bins
    # Edges lie between values: one on a repeated value would part what cannot be told apart, and a
    # latent that copies a factor would lose its classes.
    nearest = np.unique(np.abs(below[None] - targets[:, None]).argmin(1))
    edges: np.ndarray = (distinct[nearest] + distinct[nearest + 1]) / 2
    return edges


def align_neurons(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Gives each factor a latent of its own, so that together they know most of the factors.

    A latent is cut into as many bins of equal counts as the factor has values; the sum of the
    mutual informations is maximised (Hungarian algorithm).

    Args:
      codes: (n, K) float.
      factors: (n, M) int, M at most K.

    Returns:
      (M,) int, the latent of each factor.

    Raises:
      ValueError: if there are fewer latents than factors, or a factor does not vary.
    """
    check_factors(factors)
    num_latents, num_factors = codes.shape[1], factors.shape[1]
    if num_latents < num_factors:
        raise ValueError(
            f"{num_factors} factors cannot have one each of {num_latents} latents: give a model of "
            "more latents, or fewer factors."
        )
    gain = np.zeros((num_factors, num_latents))
    for j, column in enumerate(_as_classes(factors).T):
        for k, code in enumerate(codes.T):
            edges = _bin_edges(code, column.max() + 1)
            gain[j, k] = mutual_information(np.searchsorted(edges, code), column)
    return linear_sum_assignment(-gain)[1]


def snc(
    train_codes: np.ndarray,
    train_factors: np.ndarray,
    test_codes: np.ndarray,
    test_factors: np.ndarray,
) -> float:
    """Single-neuron classification (Mahon et al., 2023): factors read from one latent each.

    A factor's latent is that of ``align_neurons``; its bins are given to classes one to one, so
    that most training images are right. Accuracy a on test images is corrected by that of chance,
    c = sum p^2 of the factor's own classes: the mean of max(0, (a - c) / (1 - c)).

    Args:
      train_codes: (n, K) float.
      train_factors: (n, M) int, M at most K.
      test_codes: (n', K) float.
      test_factors: (n', M) int, of values that occur in training.

    Returns:
      In [0, 1].

    Raises:
      ValueError: if there are fewer latents than factors, or a factor does not vary.
    """
    check_factors(test_factors)
    aligned = align_neurons(train_codes, train_factors)
    scores = []
    for j, k in enumerate(aligned):
        values, train_classes = np.unique(train_factors[:, j], return_inverse=True)
        edges = _bin_edges(train_codes[:, k], len(values))
        counts = np.zeros((len(values), len(values)))
        np.add.at(counts, (np.searchsorted(edges, train_codes[:, k]), train_classes), 1)
        of_bin = values[linear_sum_assignment(-counts)[1]]
        truth = test_factors[:, j]
        accuracy = (of_bin[np.searchsorted(edges, test_codes[:, k])] == truth).mean()
        chance = ((np.unique(truth, return_counts=True)[1] / len(truth)) ** 2).sum()
        scores.append(max(0.0, (accuracy - chance) / (1 - chance)))
    return float(np.mean(scores))
