"""Tables of forecasts: who is scored against what, and which events count as extreme."""

import numpy as np
import pytest

from worldmodels_jax.evaluation.forecasts import detect, detect_by_probability, score_table
from worldmodels_jax.evaluation.nowcasting import pearson_correlation

E, L = 4, 6
BOXES = {"left": (0, 2, 0, 4), "right": (2, 4, 0, 4)}


def observed() -> np.ndarray:
    """Extremes (6 mm in 3 hours) of the first event on the left, and of the second on the right."""
    rates = np.random.default_rng(0).random((E, L, 4, 4)) * 0.1
    rates[0, ..., :2] += 2.0
    rates[1, ..., 2:] += 2.0
    return rates


def test_scores_of_each_forecast() -> None:
    true = observed()
    table = score_table({"perfect": true, "dry": 0 * true}, true, thresholds=(1.0,), sides=(1,))
    assert set(table) == {"perfect", "dry"}
    np.testing.assert_array_equal(table["perfect"]["mse"], np.zeros(L))
    np.testing.assert_array_equal(table["perfect"]["csi_1mm"], np.ones(L))
    np.testing.assert_array_equal(table["dry"]["csi_1mm"], np.zeros(L))
    np.testing.assert_allclose(table["dry"]["mse"], (true**2).mean((0, 2, 3)))
    noisy = true + np.random.default_rng(1).random(true.shape)
    got = score_table({"noisy": noisy}, true)["noisy"]["pcc"]
    np.testing.assert_allclose(got, pearson_correlation(noisy, true).mean(0))


def test_detection_of_a_perfect_forecast_and_of_one_of_the_wrong_place() -> None:
    true = observed()
    found = detect(true, true, BOXES, 5.0)
    assert found.roc_auc == found.pr_auc == 1.0
    np.testing.assert_array_equal(found.roc_auc_by_lead, np.ones(L))
    # The other catchment's rain: said of 2 of 6 that were not extreme, and of none that was.
    wrong = detect(true[..., ::-1], true, BOXES, 5.0)
    assert wrong.roc_auc == pytest.approx((1 - 2 / 6) / 2)
    # Of one catchment that covers both nothing is extreme.
    both = detect(true, true, {"all": (0, 4, 0, 4)}, 5.0)
    assert np.isnan(both.roc_auc)
    assert np.isnan(both.pr_auc_by_lead).all()


def test_the_lead_at_which_rain_is_missed() -> None:
    true = observed()
    forecast = true.copy()
    forecast[:, 4] = 0.0
    found = detect(forecast, true, BOXES, 5.0)
    assert found.roc_auc == 1.0
    assert found.roc_auc_by_lead.tolist() == [1, 1, 1, 1, 0.5, 1]


def test_a_better_known_truth_is_preferred() -> None:
    true = observed()
    total = np.zeros((E, 4, 4))
    total[2] = 9.0  # mm; frames missed it
    assert detect(true, true, BOXES, 5.0, total).roc_auc == pytest.approx((1 - 2 / 6) / 2)
    total[2] = 4.9
    assert np.isnan(detect(true, true, BOXES, 5.0, total).roc_auc)


def test_detection_by_probability() -> None:
    true = observed()
    by = detect_by_probability(np.array([0.9, 0.2, 0.1, 0.3]), true, BOXES["left"], 5.0)
    assert by == (1.0, 1.0)
    # One of three others is ahead of it.
    roc, _ = detect_by_probability(np.array([0.25, 0.2, 0.1, 0.3]), true, BOXES["left"], 5.0)
    assert roc == pytest.approx(2 / 3)
