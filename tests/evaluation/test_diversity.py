"""The Vendi score of sets whose effective number is known."""

import math

import numpy as np
import pytest

from worldmodels_jax.evaluation.diversity import vendi_score


def test_equal_images_count_once_whatever_their_norm() -> None:
    features = np.outer([1.0, 2.0, 30.0], [3.0, 4.0])
    np.testing.assert_allclose(vendi_score(features), 1.0, atol=1e-6)


def test_orthogonal_images_count_each() -> None:
    np.testing.assert_allclose(vendi_score(5 * np.eye(6, 8)), 6.0, rtol=1e-9)


def test_unequal_groups_by_hand() -> None:
    # Eigenvalues 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    np.testing.assert_allclose(vendi_score(np.eye(2)[[0, 0, 0, 1]]), expected, rtol=1e-9)


def test_two_images_at_an_angle_by_hand() -> None:
    # Cosine 1/2: eigenvalues 3/4 and 1/4 again.
    features = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    np.testing.assert_allclose(vendi_score(features), expected, rtol=1e-9)


def test_repeating_a_set_changes_nothing_on_either_side_of_the_kernel() -> None:
    features = np.random.default_rng(0).normal(size=(20, 30))
    repeated = np.tile(features, (3, 1))  # 60 images of 30 features: the other matrix
    np.testing.assert_allclose(vendi_score(repeated), vendi_score(features), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_images_without_a_direction_are_refused(value: float) -> None:
    features = np.ones((4, 3))
    features[2:] = value
    with pytest.raises(ValueError, match=r"image 2 \(of 2 such\)"):
        vendi_score(features)
