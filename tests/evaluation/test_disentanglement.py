"""DCI and unfairness: matrices by hand, and perfect, mixed and random codes."""

import math
import sys

import numpy as np
import pytest

from worldmodels_jax.evaluation import disentanglement


def some_factors(n: int = 300, sizes: tuple[int, ...] = (3, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, sizes, (n, len(sizes)))


class Threshold:
    """A stand-in for a fitted classifier: says which codes of one latent are positive."""

    def __init__(self, latent: int, num_latents: int) -> None:
        self.latent = latent
        self.feature_importances_ = np.eye(num_latents)[latent]

    def predict(self, codes: np.ndarray) -> np.ndarray:
        return (codes[:, self.latent] > 0).astype(int)


# Importances


def test_one_latent_a_factor_is_perfect_in_any_order() -> None:
    np.testing.assert_allclose(disentanglement.modularity(np.eye(3)[[2, 0, 1]]), (1, 1), atol=1e-6)


def test_equal_importances_score_nothing() -> None:
    np.testing.assert_allclose(disentanglement.modularity(np.ones((4, 3))), (0, 0), atol=1e-6)
    assert disentanglement.modularity(np.zeros((4, 3))) == (0, 0)


def test_modularity_by_hand() -> None:
    # Rows (3/4, 1/4) and (1, 0) with shares 4/5 and 1/5: D. Columns (3/4, 1/4) and (1, 0) with
    # shares 4/5 and 1/5: C has the same value; a third, silent latent changes the base alone.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    importances = np.array([[3.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    d, c = disentanglement.modularity(importances)
    np.testing.assert_allclose(d, 0.8 * (1 - entropy / math.log(2)) + 0.2, atol=1e-6)
    np.testing.assert_allclose(c, 0.8 * (1 - entropy / math.log(3)) + 0.2, atol=1e-6)


def test_a_split_factor_is_incomplete_but_disentangled() -> None:
    importances = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    d, c = disentanglement.modularity(importances)
    np.testing.assert_allclose(d, 1.0, atol=1e-6)
    np.testing.assert_allclose(c, 0.5 * (1 - math.log(2) / math.log(3)) + 0.5, atol=1e-6)


def test_a_single_latent_cannot_be_spread() -> None:
    with pytest.raises(ValueError, match="1 latents for 3 factors"):
        disentanglement.modularity(np.ones((1, 3)))


def test_dci_of_given_classifiers_by_hand() -> None:
    codes = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]])
    factors = np.array([[1, 0], [1, 0], [0, 0], [0, 1]])  # one of eight is read wrongly
    scores = disentanglement.dci([Threshold(0, 2), Threshold(1, 2)], codes, factors)
    np.testing.assert_allclose(scores, (1, 1, 7 / 8), atol=1e-6)
    np.testing.assert_allclose(scores.arithmetic_mean, 23 / 24, atol=1e-6)
    np.testing.assert_allclose(scores.geometric_mean, (7 / 8) ** (1 / 3), atol=1e-6)


# With scikit-learn


@pytest.mark.parametrize("fast", [False, True])
def test_dci_of_perfect_and_random_codes(fast: bool) -> None:
    pytest.importorskip("sklearn.ensemble")
    factors, test_factors = some_factors(), some_factors(seed=1)
    noise = np.random.default_rng(2).normal(size=(2, 300, 3))

    def score(codes: np.ndarray, test_codes: np.ndarray) -> disentanglement.DCI:
        classifiers = disentanglement.fit_classifiers(codes, factors, fast=fast)
        return disentanglement.dci(classifiers, test_codes, test_factors)

    columns = [1, 0, 0]

    def perfect(values: np.ndarray) -> np.ndarray:
        code = 2.0 * values[:, columns]
        code[:, 2] = 0.0  # a silent latent
        return code

    # Trees of a forest must now and then split by a latent that tells nothing.
    atol = 0.1 if fast else 0.01
    np.testing.assert_allclose(score(perfect(factors), perfect(test_factors)), 1.0, atol=atol)
    random = score(noise[0], noise[1])
    assert random.disentanglement < 0.15
    assert random.completeness < 0.15
    np.testing.assert_allclose(random.informativeness, (1 / 3 + 1 / 4) / 2, atol=0.08)


def test_without_scikit_learn_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ModuleNotFoundError, match=r"worldmodels_jax\[eval\]"):
        disentanglement.fit_classifiers(np.zeros((300, 2)), some_factors())


# Unfairness and usage


def test_unfairness_by_hand() -> None:
    # p(y) = (5/8, 3/8). s = 0 (four of eight): (1/4, 3/4), TV 3/8; s = 1: (1, 0), TV 3/8.
    predictions = np.array([0, 1, 1, 1, 0, 0, 0, 0])
    sensitive = np.array([5, 5, 5, 5, 9, 9, 9, 9])
    score = disentanglement.prediction_unfairness(predictions, sensitive)
    np.testing.assert_allclose(score, 3 / 8)


def test_unfairness_weighs_values_by_their_counts() -> None:
    # s = 0 (one of four): (0, 1), TV 1/2 from p(y) = (1/2, 1/2); s = 1: (2/3, 1/3), TV 1/6.
    score = disentanglement.prediction_unfairness(np.array([1, 0, 0, 1]), np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(score, 0.25 / 2 + 0.75 / 6)


def test_unfairness_is_of_pairs_of_different_factors() -> None:
    factors = some_factors(20_000, (2, 2))
    assert disentanglement.unfairness(factors, factors) < 0.02
    swapped = disentanglement.unfairness(factors[:, ::-1], factors)  # each tells of the other
    np.testing.assert_allclose(swapped, 0.5, atol=0.02)


def test_latent_usage_by_hand() -> None:
    kl = np.array([[0.2, 1.0, 4.0], [0.2, 0.0, 2.0]])  # means .2, .5, 3
    active, balance = disentanglement.latent_usage(kl)
    assert active == 2
    np.testing.assert_allclose(balance, 0.2 / (3.7 / 3))
    assert disentanglement.latent_usage(kl, threshold=0.1)[0] == 3
