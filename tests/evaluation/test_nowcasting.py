"""Scores of forecasts by hand, by slow loops, and by SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy import ndimage, stats

from worldmodels_jax.evaluation import nowcasting as score

OBSERVED = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 2.0, 3.0, 0.0],
        [0.0, 1.0, 9.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
)
# The same one column to the left.
FORECAST = np.roll(OBSERVED, -1, 1)


def rainy(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.maximum(rng.gamma(0.5, 4.0, (2, *shape)) - 0.5, 0.0)


def test_errors_by_hand() -> None:
    # Differences 2, 1, -3 in one row and 1, 8, -9 in another.
    assert score.mean_squared_error(FORECAST, OBSERVED) == (4 + 1 + 9 + 1 + 64 + 81) / 16
    assert score.mean_absolute_error(FORECAST, OBSERVED) == (2 + 1 + 3 + 1 + 8 + 9) / 16
    # Sum 15, squares 95, products 2*3 + 1*9 = 15.
    pcc = (15 - 15 * 15 / 16) / (95 - 15 * 15 / 16)
    assert score.pearson_correlation(FORECAST, OBSERVED) == pytest.approx(pcc)


def test_correlation_is_scipys_and_0_for_constants() -> None:
    forecast, observed = rainy(3, 5, 6)
    expected = [
        stats.pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(forecast, observed, strict=True)
    ]
    np.testing.assert_allclose(score.pearson_correlation(forecast, observed), expected)
    # 0.1 has a mean that is not 0.1: what is left of it is no structure.
    constant = np.full((5, 6), 0.1)
    assert score.pearson_correlation(constant, observed[0]) == 0.0
    assert score.pearson_correlation(observed[0], constant) == 0.0


def test_categories_by_hand_and_at_the_threshold() -> None:
    counts = score.contingency(FORECAST > 1, OBSERVED > 1)
    # What rains 1 mm/h does not exceed it. Observed: 2, 3, 9; of these 2 is forecast (as 3).
    assert [int(n) for n in counts] == [1, 2, 2, 11]
    assert score.critical_success_index(counts) == 1 / 5
    assert score.false_alarm_ratio(counts) == 2 / 3
    assert score.probability_of_detection(counts) == 1 / 3
    assert score.probability_of_false_detection(counts) == 2 / 13
    uneven = score.Contingency(*np.array([4, 3, 1, 8]))
    assert score.critical_success_index(uneven) == 4 / 8
    assert score.false_alarm_ratio(uneven) == 1 / 5
    assert score.probability_of_detection(uneven) == 4 / 7
    assert score.probability_of_false_detection(uneven) == 1 / 9


def test_fractions_by_hand() -> None:
    terms = score.fraction_terms(FORECAST, OBSERVED, 1.0, 1)
    # At 1 mm/h counts as rain here: four pixels each, two in common.
    assert (terms.difference, terms.reference) == (4, 8)
    assert score.fractions_skill_score(terms) == 0.5
    # Squares of 3: every pixel of OBSERVED sees the counts (1 2 2 1) x (1 2 2 1) / 9, FORECAST
    # (2 2 1 0) x the same. Differences 1, 0, 1, 1: 3; squares 1 + 4 + 4 + 1 = 10, 4 + 4 + 1 = 9.
    wide = score.fraction_terms(FORECAST, OBSERVED, 1.0, 3)
    assert score.fractions_skill_score(wide) == pytest.approx(1 - 3 / 19)
    assert wide.reference == pytest.approx(10 * 19 / 81)
    with pytest.raises(ValueError, match="neighbourhood of 0 pixels"):
        score.fraction_terms(FORECAST, OBSERVED, 1.0, 0)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 10, 30])
def test_fractions_are_scipys_moving_means(side: int) -> None:
    forecast, observed = rainy(3, 12, 9)

    def share(field: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter((field >= 0.1).astype(float), side, mode="constant", cval=0.0)

    a, b = (np.stack([share(field) for field in many]) for many in (forecast, observed))
    terms = score.fraction_terms(forecast, observed, 0.1, side)
    np.testing.assert_allclose(terms.difference, ((a - b) ** 2).sum((1, 2)), atol=1e-9)
    np.testing.assert_allclose(terms.reference, (a**2 + b**2).sum((1, 2)), rtol=1e-9)


def test_a_perfect_forecast_is_perfect() -> None:
    scores = score.verify(rainy(4, 2, 12, 9)[0], rainy(4, 2, 12, 9)[0])
    best = {"pcc": 1, "mse": 0, "mae": 0, "csi": 1, "far": 0, "pod": 1, "fss": 1}
    assert len(scores) == 3 + 3 * 3 + 4
    for name, values in scores.items():
        np.testing.assert_allclose(values, [best[name[:3]]] * 2, atol=1e-12, err_msg=name)


def test_undefined_scores_are_pooled_or_zero() -> None:
    dry = np.zeros_like(OBSERVED)
    forecast = np.stack([FORECAST, dry, OBSERVED])[:, None]
    observed = np.stack([OBSERVED, dry, OBSERVED])[:, None]
    options = {"thresholds": (1.0, 8.0, 20.0), "sides": (1,), "fss_threshold": 1.0}
    pooled = score.verify(forecast, observed, **options)
    zero = score.verify(forecast, observed, **options, undefined="zero")
    # Over 1 mm/h: hits 1 and 3, misses 2, false alarms 2. The dry event defines nothing.
    assert pooled["csi_1mm"] == 4 / 8
    assert pooled["far_1mm"] == 2 / 6
    assert pooled["pod_1mm"] == 4 / 6
    assert zero["csi_1mm"] == pytest.approx((1 / 5 + 1) / 3)
    assert zero["far_1mm"] == pytest.approx((2 / 3 + 0) / 3)
    assert zero["pod_1mm"] == pytest.approx((1 / 3 + 1) / 3)
    assert pooled["csi_8mm"] == 1 / 3
    assert pooled["fss_1px"] == 1 - 4 / 16
    assert zero["fss_1px"] == pytest.approx((0.5 + 1) / 3)
    # No event is above 20 mm/h, forecast or observed.
    assert np.isnan(pooled["csi_20mm"])
    assert zero["csi_20mm"] == 0.0
    # Errors are means over events either way.
    assert pooled["mse"] == zero["mse"] == pytest.approx(10 / 3)
    with pytest.raises(ValueError, match="undefined='skip' is not known"):
        score.verify(forecast, observed, undefined="skip")


def test_lead_times_are_kept_apart() -> None:
    forecast, observed = rainy(5, 3, 8, 8)
    together = score.verify(forecast, observed, sides=(2,))
    for lead in range(3):
        alone = score.verify(forecast[:, [lead]], observed[:, [lead]], sides=(2,))
        for name, values in together.items():
            assert values.shape == (3,)
            np.testing.assert_allclose(values[lead], alone[name][0], err_msg=name)


def test_what_cannot_be_verified_is_refused() -> None:
    field = np.zeros((1, 1, 4, 4))
    with pytest.raises(ValueError, match="no event to verify"):
        score.verify(field[:0], field[:0])
    with pytest.raises(ValueError, match="the observation holds NaN"):
        score.verify(field, np.full_like(field, np.nan))
    with pytest.raises(AssertionError):
        score.verify(field, field[..., :3])


def test_accumulation_is_of_the_box_alone() -> None:
    rates = np.zeros((2, 3, 4, 5))
    # Columns 1 and 2 of row 3: the first event has 6 mm/h in one of three frames, in one of two.
    rates[0, 1, 3, 2] = 6.0
    rates[1, :, 3, 3] = 100.0
    assert score.accumulation(rates, (1, 3, 3, 4), 3.0).tolist() == [3.0, 0.0]
    for box in ((1, 6, 3, 4), (1, 3, 3, 5), (2, 2, 3, 4), (-1, 3, 3, 4)):
        with pytest.raises(ValueError, match="not within frames of 4 rows and 5 columns"):
            score.accumulation(rates, box, 3.0)


EXTREME = np.array([1, 0, 1, 0, 0], bool)
AMOUNTS = np.array([6.0, 5.0, 2.0, 1.0, 0.0])


def test_detection_curves_by_hand() -> None:
    # At 5 and above: one of two extremes, one of three others. At 1: both, and two of three. At
    # 99 none.
    curve = score.roc_curve(EXTREME, AMOUNTS, (1.0, 99.0, 5.0))
    np.testing.assert_allclose(curve.x, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.y, [0, 0, 1 / 2, 1, 1])
    assert curve.area == pytest.approx(1 / 12 + 1 / 4 + 1 / 3)

    curve = score.precision_recall_curve(EXTREME, AMOUNTS, (1.0, 99.0, 5.0))
    np.testing.assert_allclose(curve.x, [0, 1 / 2, 1, 1])
    np.testing.assert_allclose(curve.y, [1, 1 / 2, 1 / 2, 2 / 5])
    assert curve.area == pytest.approx(3 / 8 + 1 / 4)


@pytest.mark.parametrize("make", [score.roc_curve, score.precision_recall_curve])
def test_the_published_thresholds_and_what_has_no_curve(make) -> None:
    assert score.DETECTION_THRESHOLDS[:2] == (0.5, 1.0)
    assert score.DETECTION_THRESHOLDS[-1] == 10.0
    # All extremes are found at 5.5 without a false alarm.
    extreme = AMOUNTS > 5.5
    assert make(extreme, AMOUNTS).area == pytest.approx(1.0)
    for same in (extreme & False, extreme | True):
        with pytest.raises(ValueError, match="of 5 events were extreme: a detection curve needs"):
            make(same, AMOUNTS)


def events() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    extreme = rng.random(200) < 0.25
    # Rounded, so that there are ties.
    return extreme, np.round(rng.normal(size=200) + extreme, 1)


def test_the_area_under_roc_is_a_rank_statistic() -> None:
    extreme, amounts = events()
    area = score.roc_curve(extreme, amounts, np.unique(amounts)).area
    ranks = stats.mannwhitneyu(amounts[extreme], amounts[~extreme]).statistic
    assert area == pytest.approx(ranks / extreme.sum() / (~extreme).sum())


def test_detection_curves_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    extreme, amounts = events()
    ours = score.precision_recall_curve(extreme, amounts, np.unique(amounts))
    precision, recall, _ = metrics.precision_recall_curve(extreme, amounts)
    assert ours.area == pytest.approx(metrics.auc(recall, precision))
    roc = score.roc_curve(extreme, amounts, np.unique(amounts))
    assert roc.area == pytest.approx(metrics.roc_auc_score(extreme, amounts))
