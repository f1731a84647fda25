"""Crafter's score against arithmetic by hand."""

import math

import numpy as np
import pytest

from worldmodels_jax.evaluation.crafter import crafter_score


def test_scores_by_hand() -> None:
    assert crafter_score(np.zeros(22)) == 0.0
    assert crafter_score(np.full(22, 100.0)) == pytest.approx(100.0)
    # The root of (1 + 3) (1 + 8) = 36, less 1.
    assert crafter_score([3.0, 8.0]) == pytest.approx(5.0)
    # The cube root of 1 * 8 * 27 = 216, less 1: a zero does not make it zero.
    assert crafter_score([0.0, 7.0, 26.0]) == pytest.approx(5.0)
    # One of 22 always: 101^(1/22) - 1.
    assert crafter_score([100.0] + 21 * [0.0]) == pytest.approx(0.23340, abs=1e-5)


def test_a_rare_achievement_counts_more_than_a_common_one() -> None:
    assert crafter_score([11.0, 90.0]) > crafter_score([10.0, 91.0])
    assert crafter_score([25.0, 75.0]) < 50.0


@pytest.mark.parametrize("rate", [-0.1, 100.1, math.nan])
def test_what_is_no_percentage_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"success rates \[{rate}\] are no percentages"):
        crafter_score([50.0, rate])


@pytest.mark.parametrize("rates", [[], 5.0, [[1.0, 2.0]]])
def test_what_is_no_list_of_rates_is_refused(rates: object) -> None:
    with pytest.raises(ValueError, match="one percentage per achievement"):
        crafter_score(rates)
