"""Crafter's score of an agent's success rates (Hafner 2021, arXiv 2109.06780)."""

import numpy as np
from numpy.typing import ArrayLike


def crafter_score(success_rates: ArrayLike) -> float:
    """Returns exp(mean_i ln(1 + s_i)) - 1, in percent.

    Very nearly a geometric mean: a gain of one percentage point counts more for an achievement
    that is rarely unlocked than for one that always is, and the offset keeps an achievement that
    is never unlocked from making the score 0. Of several runs, take the mean of their scores.

    Args:
      success_rates: (achievements,) s_i, of all episodes the percentage in which achievement i
        was unlocked, in [0, 100]; those of Crafter are 22.

    Raises:
      ValueError: no rates, more than one axis, or a rate outside [0, 100].
    """
    rates = np.asarray(success_rates, np.float64)
    if rates.ndim != 1 or rates.size == 0:
        raise ValueError(
            f"success_rates have shape {rates.shape}; give one percentage per achievement, "
            "for instance those of one run"
        )
    valid = (rates >= 0) & (rates <= 100)  # false of NaN
    if not valid.all():
        raise ValueError(
            f"success rates {rates[~valid].tolist()} are no percentages; give numbers in [0, 100]"
        )
    return float(np.expm1(np.log1p(rates).mean()))
