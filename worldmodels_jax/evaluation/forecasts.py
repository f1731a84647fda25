"""Tables of precipitation forecasts over lead times: scores of fields, and detection of extremes.

NumPy. Rates are in mm/h. Axis letters here: E events, L lead times, H rows, W columns.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import numpy as np

from worldmodels_jax.evaluation.nowcasting import (
    DETECTION_THRESHOLDS,
    FSS_SIDES,
    FSS_THRESHOLD,
    RATE_THRESHOLDS,
    UndefinedScores,
    accumulation,
    precision_recall_curve,
    roc_curve,
    verify,
)

Box = tuple[int, int, int, int]
HOURS = 3.0  # of accumulations


class Detection(NamedTuple):
    """How well extreme events are told from others; NaN where there were none, or no others."""

    roc_auc: float
    pr_auc: float
    roc_auc_by_lead: np.ndarray  # (L,)
    pr_auc_by_lead: np.ndarray  # (L,)


def score_table(
    forecasts: Mapping[str, np.ndarray],
    observed: np.ndarray,
    *,
    undefined: UndefinedScores = "pooled",
    thresholds: tuple[float, ...] = RATE_THRESHOLDS,
    sides: tuple[int, ...] = FSS_SIDES,
    fss_threshold: float = FSS_THRESHOLD,
) -> dict[str, dict[str, np.ndarray]]:
    """The scores of several forecasts of the same events.

    Args:
      forecasts: name -> ``(E, L, H, W)`` mm/h.
      observed: ``(E, L, H, W)`` mm/h.
      undefined: see ``verify``.
      thresholds: see ``verify``.
      sides: see ``verify``.
      fss_threshold: see ``verify``.

    Returns:
      name -> score -> ``(L,)``, as of ``verify``.
    """
    return {
        name: verify(
            forecast,
            observed,
            undefined=undefined,
            thresholds=thresholds,
            sides=sides,
            fss_threshold=fss_threshold,
        )
        for name, forecast in forecasts.items()
    }


def detect(
    forecast: np.ndarray,
    observed: np.ndarray,
    boxes: Mapping[str, Box],
    threshold: float,
    total: np.ndarray | None = None,
) -> Detection:
    """Detection of catchment extremes by forecast accumulations.

    Every catchment of every event counts as one. An extreme has an observed accumulation at or
    above the threshold; a forecast says so if its own is at or above another, which is varied from
    0.5 to 10 mm in 3 hours. At single leads, 3 hours of the rate of the lead are the accumulation.

    Args:
      forecast: ``(E, L, H, W)`` mm/h, over 3 hours.
      observed: the same.
      boxes: name -> catchment, see ``accumulation``.
      threshold: mm in 3 hours.
      total: ``(E, H, W)`` mm, observed over the 3 hours, where that is known better than from L
        frames.

    Returns:
      The areas under ROC and precision-recall curves.
    """
    chex.assert_equal_shape([forecast, observed])
    leads = range(observed.shape[1])
    said = _catchments(forecast, boxes)
    if total is None:
        true = _catchments(observed, boxes)
    else:
        chex.assert_shape(total, (len(observed), *observed.shape[2:]))
        true = _catchments(total[:, None] / HOURS, boxes)
    by_lead = np.array(
        [
            _areas(
                _catchments(observed[:, lead : lead + 1], boxes) >= threshold,
                _catchments(forecast[:, lead : lead + 1], boxes),
            )
            for lead in leads
        ]
    )
    return Detection(*_areas(true >= threshold, said), by_lead[:, 0], by_lead[:, 1])


def detect_by_probability(
    probability: np.ndarray, observed: np.ndarray, box: Box, threshold: float
) -> tuple[float, float]:
    """Detection of the extremes of one catchment by probabilities of them.

    Args:
      probability: ``(E,)``.
      observed: ``(E, L, H, W)`` mm/h, over 3 hours.
      box: the catchment, see ``accumulation``.
      threshold: mm in 3 hours.

    Returns:
      The areas under the ROC and the precision-recall curve, of all thresholds.
    """
    true = _catchments(observed, {"": box}) >= threshold
    return _areas(true, probability, np.unique(probability))


def _catchments(rates: np.ndarray, boxes: Mapping[str, Box]) -> np.ndarray:
    """``(catchments E,)`` mm in 3 hours."""
    return np.concatenate([accumulation(rates, box, HOURS) for box in boxes.values()])


def _areas(
    extreme: np.ndarray, score: np.ndarray, thresholds: np.ndarray | None = None
) -> tuple[float, float]:
    if not 0 < extreme.sum() < len(extreme):
        return np.nan, np.nan
    levels = DETECTION_THRESHOLDS if thresholds is None else thresholds
    curves = (curve(extreme, score, levels) for curve in (roc_curve, precision_recall_curve))
    roc, precision_recall = (curve.area for curve in curves)
    return roc, precision_recall
