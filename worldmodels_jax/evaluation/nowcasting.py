"""Scores of precipitation forecasts: errors, categories, neighbourhoods and extremes. NumPy.

Definitions after Meo (2026), chapter 3, and the verification literature (Wilks, 2011; Roberts &
Lean, 2008, for the fractions skill score). Fields are rain rates in mm/h. Axis letters here: E
events, L lead times, H rows, W columns.
"""

from typing import Literal, NamedTuple, Self

import chex
import numpy as np
from numpy.typing import ArrayLike

RATE_THRESHOLDS = (1.0, 2.0, 8.0)  # mm/h
FSS_SIDES = (1, 10, 20, 30)  # pixels
FSS_THRESHOLD = 0.1  # mm/h
DETECTION_THRESHOLDS = tuple(0.5 * step for step in range(1, 21))  # mm in 3 h, up to 10

UndefinedScores = Literal["pooled", "zero"]


def mean_squared_error(forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The mean of (F - O)^2 over all pixels, dry ones included.

    Args:
      forecast: ``(..., H, W)``.
      observed: the same.

    Returns:
      ``(...)`` float64.
    """
    forecast, observed = _fields(forecast, observed)
    return ((forecast - observed) ** 2).mean((-2, -1))


def mean_absolute_error(forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The mean of |F - O| over all pixels, dry ones included.

    Args:
      forecast: ``(..., H, W)``.
      observed: the same.

    Returns:
      ``(...)`` float64.
    """
    forecast, observed = _fields(forecast, observed)
    return np.abs(forecast - observed).mean((-2, -1))


def pearson_correlation(forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Pearson's correlation over pixels; 0 where a field is constant, for which it is undefined.

    Args:
      forecast: ``(..., H, W)``.
      observed: the same.

    Returns:
      ``(...)`` float64 in [-1, 1].
    """
    forecast, observed = _fields(forecast, observed)
    # Compared to be constant before the mean is taken off, which leaves rounding errors.
    varies = (np.ptp(forecast, (-2, -1)) > 0) & (np.ptp(observed, (-2, -1)) > 0)
    forecast = forecast - forecast.mean((-2, -1), keepdims=True)
    observed = observed - observed.mean((-2, -1), keepdims=True)
    covariance = (forecast * observed).sum((-2, -1))
    norms = np.sqrt((forecast**2).sum((-2, -1)) * (observed**2).sum((-2, -1)))
    return np.where(varies, _ratio(covariance, norms), 0.0)


class Contingency(NamedTuple):
    """How often rain above a threshold was forecast and observed; ``(...)`` integers each."""

    hits: np.ndarray
    misses: np.ndarray
    false_alarms: np.ndarray
    correct_negatives: np.ndarray

    def total(self) -> Self:
        """Their sums over the first axis."""
        return type(self)(*(count.sum(0) for count in self))


def contingency(yes: np.ndarray, true: np.ndarray, axis: tuple[int, ...] = (-2, -1)) -> Contingency:
    """Counts what was forecast and what came true.

    Args:
      yes: ``(..., H, W)`` bool, where the forecast says so.
      true: the same, where it was observed.
      axis: the axes counted over.

    Returns:
      The counts, without those axes.
    """
    chex.assert_equal_shape([yes, true])
    chex.assert_type([yes, true], bool)
    outcomes = (yes & true, ~yes & true, yes & ~true, ~yes & ~true)
    return Contingency(*(outcome.sum(axis) for outcome in outcomes))


def critical_success_index(counts: Contingency) -> np.ndarray:
    """CSI = H / (H + M + FA); NaN where nothing was forecast or observed."""
    return _ratio(counts.hits, counts.hits + counts.misses + counts.false_alarms)


def false_alarm_ratio(counts: Contingency) -> np.ndarray:
    """FAR = FA / (H + FA), the share of forecasts that did not come true; NaN without forecasts."""
    return _ratio(counts.false_alarms, counts.hits + counts.false_alarms)


def probability_of_detection(counts: Contingency) -> np.ndarray:
    """POD = H / (H + M), or recall; NaN where nothing was observed."""
    return _ratio(counts.hits, counts.hits + counts.misses)


def probability_of_false_detection(counts: Contingency) -> np.ndarray:
    """POFD = FA / (FA + CN); NaN where it was observed everywhere."""
    return _ratio(counts.false_alarms, counts.false_alarms + counts.correct_negatives)


class FractionTerms(NamedTuple):
    """Sums over pixels whose ratio is 1 - FSS; ``(...)`` each."""

    difference: np.ndarray  # of (S_F - S_O)^2
    reference: np.ndarray  # of S_F^2 + S_O^2

    def total(self) -> Self:
        """Their sums over the first axis."""
        return type(self)(*(term.sum(0) for term in self))


def fraction_terms(
    forecast: np.ndarray, observed: np.ndarray, threshold: float, side: int
) -> FractionTerms:
    """The terms of the fractions skill score (Roberts & Lean, 2008).

    S is the share of pixels at or above the threshold in a square around each pixel. Outside of the
    field it is dry. A square of even side reaches a pixel further up and left than down and right.

    Args:
      forecast: ``(..., H, W)`` mm/h.
      observed: the same.
      threshold: mm/h.
      side: n, of the square, in pixels.

    Raises:
      ValueError: for a side below 1.
    """
    if side < 1:
        raise ValueError(f"a neighbourhood of {side} pixels is empty: take a side of at least 1.")
    forecast, observed = _fields(forecast, observed)
    a, b = (_neighbours(field >= threshold, side) / side**2 for field in (forecast, observed))
    return FractionTerms(((a - b) ** 2).sum((-2, -1)), (a**2 + b**2).sum((-2, -1)))


def fractions_skill_score(terms: FractionTerms) -> np.ndarray:
    """FSS = 1 - sum (S_F - S_O)^2 / sum (S_F^2 + S_O^2); NaN where neither field has rain."""
    return 1 - _ratio(terms.difference, terms.reference)


def verify(
    forecast: np.ndarray,
    observed: np.ndarray,
    *,
    undefined: UndefinedScores = "pooled",
    thresholds: tuple[float, ...] = RATE_THRESHOLDS,
    sides: tuple[int, ...] = FSS_SIDES,
    fss_threshold: float = FSS_THRESHOLD,
) -> dict[str, np.ndarray]:
    """All scores of a set of forecasts, for every lead time.

    Errors and correlations are averaged over events. Ratios of counts are undefined for events in
    which nothing was forecast or observed: ``"pooled"`` adds up the counts of all events before
    it divides, ``"zero"`` scores such events 0 and averages, which is how the published numbers
    were made, and which flatters FAR.

    Args:
      forecast: ``(E, L, H, W)`` mm/h.
      observed: the same.
      undefined: what becomes of scores that an event does not define.
      thresholds: of CSI, FAR and POD in mm/h; what is above them counts.
      sides: of FSS, in pixels.
      fss_threshold: of FSS in mm/h; what is at it counts as well.

    Returns:
      ``(L,)`` scores by name: ``"pcc"``, ``"mse"``, ``"mae"``, ``"csi_1mm"``, ``"far_1mm"``,
      ``"pod_1mm"`` and so on for the thresholds, and ``"fss_10px"`` for the sides. Pooled ones
      are NaN where no event defines them.

    Raises:
      ValueError: without events, for values that are not finite, or for another ``undefined``.
    """
    if undefined not in ("pooled", "zero"):
        raise ValueError(f"undefined={undefined!r} is not known: choose 'pooled' or 'zero'.")
    chex.assert_rank([forecast, observed], 4)
    if not len(forecast):
        raise ValueError("no event to verify: give at least one forecast and its observation.")
    scores = {
        "pcc": pearson_correlation(forecast, observed).mean(0),
        "mse": mean_squared_error(forecast, observed).mean(0),
        "mae": mean_absolute_error(forecast, observed).mean(0),
    }
    for threshold in thresholds:
        counts = contingency(forecast > threshold, observed > threshold)
        if undefined == "pooled":
            counts = counts.total()
        for name, score in (
            ("csi", critical_success_index),
            ("far", false_alarm_ratio),
            ("pod", probability_of_detection),
        ):
            scores[f"{name}_{threshold:g}mm"] = _over_events(score(counts), undefined)
    for side in sides:
        terms = fraction_terms(forecast, observed, fss_threshold, side)
        if undefined == "pooled":
            terms = terms.total()
        scores[f"fss_{side}px"] = _over_events(fractions_skill_score(terms), undefined)
    return scores


def accumulation(rates: np.ndarray, box: tuple[int, int, int, int], hours: float) -> np.ndarray:
    """The mean rain over a catchment: the time span times the mean rate.

    Args:
      rates: ``(..., L, H, W)`` mm/h, frames spread evenly over the time span.
      box: the catchment, ``(first column, last column + 1, first row, last row + 1)``.
      hours: the time span, e.g. 3.

    Returns:
      ``(...)`` mm, float64.

    Raises:
      ValueError: for a box that is empty or not within the frames.
    """
    left, right, top, bottom = box
    H, W = rates.shape[-2:]
    if not (0 <= left < right <= W and 0 <= top < bottom <= H):
        raise ValueError(
            f"box {box} (columns {left}:{right}, rows {top}:{bottom}) is empty or not within "
            f"frames of {H} rows and {W} columns: boxes are in pixels of the frames' own grid."
        )
    return hours * rates[..., top:bottom, left:right].mean((-3, -2, -1), dtype=np.float64)


class DetectionCurve(NamedTuple):
    """A curve from (0, .) to (1, .) and the area below it, by trapezia."""

    x: np.ndarray  # non-decreasing
    y: np.ndarray
    area: float


def roc_curve(
    extreme: np.ndarray, forecast: np.ndarray, thresholds: ArrayLike = DETECTION_THRESHOLDS
) -> DetectionCurve:
    """POD against POFD of extreme events, over thresholds of the forecast.

    An event is forecast to be extreme if its forecast is at or above the threshold. The points
    (0, 0) and (1, 1) belong to the thresholds beyond all forecasts.

    Args:
      extreme: ``(E,)`` bool, whether events were, e.g. ``observed >= 5`` mm in 3 hours.
      forecast: ``(E,)`` forecast accumulations or any other score.
      thresholds: of the forecast.

    Raises:
      ValueError: if no event was extreme, or all were.
    """
    counts = _detections(extreme, forecast, thresholds)
    pofd, pod = probability_of_false_detection(counts), probability_of_detection(counts)
    return _curve(np.r_[0.0, pofd, 1.0], np.r_[0.0, pod, 1.0])


def precision_recall_curve(
    extreme: np.ndarray, forecast: np.ndarray, thresholds: ArrayLike = DETECTION_THRESHOLDS
) -> DetectionCurve:
    """Precision, 1 - FAR, against recall, POD, of extreme events, over thresholds of the forecast.

    It begins at recall 0 with precision 1 and ends at recall 1 with the share of extreme events,
    which is what saying yes to all achieves. Thresholds above all forecasts have no precision and
    add no point.

    Args:
      extreme: ``(E,)`` bool, whether events were.
      forecast: ``(E,)`` forecast accumulations or any other score.
      thresholds: of the forecast.

    Raises:
      ValueError: if no event was extreme, or all were.
    """
    counts = _detections(extreme, forecast, thresholds)
    recall, precision = probability_of_detection(counts), 1 - false_alarm_ratio(counts)
    said = ~np.isnan(precision)
    base_rate = extreme.mean()
    return _curve(np.r_[0.0, recall[said], 1.0], np.r_[1.0, precision[said], base_rate])


def _detections(extreme: np.ndarray, forecast: np.ndarray, thresholds: ArrayLike) -> Contingency:
    """(K,) counts, from the highest threshold to the lowest."""
    chex.assert_rank([extreme, forecast], 1)
    if not 0 < extreme.sum() < len(extreme):
        raise ValueError(
            f"{extreme.sum()} of {len(extreme)} events were extreme: a detection curve needs some "
            "that were and some that were not; choose another threshold or more events."
        )
    falling = np.sort(np.asarray(thresholds, np.float64))[::-1]
    yes = forecast >= falling[:, None]
    return contingency(yes, np.broadcast_to(extreme, yes.shape), axis=(-1,))


def _curve(x: np.ndarray, y: np.ndarray) -> DetectionCurve:
    return DetectionCurve(x, y, float(np.trapezoid(y, x)))


def _fields(forecast: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chex.assert_equal_shape([forecast, observed])
    for name, field in (("forecast", forecast), ("observation", observed)):
        if not np.isfinite(field).all():
            raise ValueError(
                f"the {name} holds NaN or infinite rates: fill or leave out what is missing first."
            )
    return np.asarray(forecast, np.float64), np.asarray(observed, np.float64)


def _neighbours(wet: np.ndarray, side: int) -> np.ndarray:
    """(..., H, W) bool -> (..., H, W) int: how many are wet in the square around each pixel."""
    H, W = wet.shape[-2:]
    around = (side // 2, (side - 1) // 2)
    outside = [(0, 0)] * (wet.ndim - 2)
    # The first row and column of zeros are those of an integral image.
    padded = np.pad(wet.astype(np.int64), [*outside, *[(around[0] + 1, around[1])] * 2])
    sums = padded.cumsum(-2).cumsum(-1)
    columns = sums[..., side : side + W] - sums[..., :W]
    return columns[..., side : side + H, :] - columns[..., :H, :]


def _over_events(score: np.ndarray, undefined: UndefinedScores) -> np.ndarray:
    """(E, L), or (L,) if pooled -> (L,)."""
    return score if undefined == "pooled" else np.nan_to_num(score, nan=0.0).mean(0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN for a denominator of 0."""
    some = denominator > 0
    return np.where(some, numerator / np.where(some, denominator, 1), np.nan)
