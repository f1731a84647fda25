"""Score statistics against scipy and hand-computed literals."""

import numpy as np
import pytest
from scipy import stats

from worldmodels_jax.evaluation import scores as scores_lib


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4,), (5,), (7,), (8,), (5, 26), (2, 3, 4)])
def test_interquartile_mean_is_scipys_trimmed_mean(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(sum(shape)).normal(size=shape) ** 3
    expected = stats.trim_mean(x, 0.25, axis=None)
    np.testing.assert_allclose(scores_lib.interquartile_mean(x), expected, rtol=1e-12)


def test_interquartile_mean_literal() -> None:
    """Of eight, two go at each end: (3 + 4 + 5 + 7) / 4."""
    assert scores_lib.interquartile_mean([1000, 4, 3, -50, 5, 9, 2, 7]) == 4.75


def test_bootstrap_interval_of_two_runs_by_enumeration() -> None:
    """Resamples of {0, 1} have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    inner = scores_lib.bootstrap_interval([0.0, 1.0], np.mean, seed=0, confidence=0.4)
    outer = scores_lib.bootstrap_interval([0.0, 1.0], np.mean, seed=0, confidence=0.6)
    assert inner == (0.5, 0.5)
    assert outer == (0.0, 1.0)


def test_bootstrap_interval_agrees_with_scipy() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=30)
    ours = scores_lib.bootstrap_interval(x, np.median, seed=1, repetitions=4000, confidence=0.9)
    theirs = stats.bootstrap(
        (x,), np.median, n_resamples=4000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.1 * x.std())


def test_bootstrap_is_stratified() -> None:
    """Tasks keep to themselves, and each draws runs of its own.

    Whole rows drawn together would give a mean of 1/2 always in the second table, and scores drawn
    from the pool would spread in the first.
    """
    constant = scores_lib.bootstrap_interval([[0.0, 10.0], [0.0, 10.0]], np.mean, seed=0)
    crossed = scores_lib.bootstrap_interval([[0.0, 1.0], [1.0, 0.0]], np.mean, seed=0)
    assert constant == (5.0, 5.0)
    assert crossed == (0.0, 1.0)


def test_bootstrap_statistic_sees_the_table() -> None:
    """The largest of the tasks' means, which is that of 5 and 7 drawn twice: 5, 6 or 7."""
    x = [[1.0, 5.0], [1.0, 7.0]]
    low_high = scores_lib.bootstrap_interval(x, lambda t: t.mean(axis=0).max(), seed=0)
    assert low_high == (5.0, 7.0)


def test_bootstrap_depends_on_the_seed_only() -> None:
    x = np.random.default_rng(0).normal(size=10)
    one, again, other = (scores_lib.bootstrap_interval(x, np.mean, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_human_normalised_literal() -> None:
    score = [[0.0, 10.0], [5.0, -20.0]]
    normalised = scores_lib.human_normalised(score, random=[0.0, -10.0], human=[10.0, -20.0])
    np.testing.assert_allclose(normalised, [[0.0, -2.0], [0.5, 1.0]])


def test_summary_of_runs_is_over_runs() -> None:
    """Means of the runs are 1, 2, 3, 10; two in the middle make the interquartile mean."""
    returns = [[0.0, 2.0], [2.0, 2.0], [-3.0, 9.0], [10.0, 10.0]]
    found = scores_lib.summary(returns)
    assert list(found) == ["mean", "iqm", "std", "min", "max", "ci"]
    assert (found["mean"], found["iqm"], found["min"], found["max"]) == (4.0, 2.5, 1.0, 10.0)
    np.testing.assert_allclose(found["std"], np.sqrt((9 + 4 + 1 + 36) / 3))
    assert found["ci"] == scores_lib.bootstrap_interval([1.0, 2.0, 3.0, 10.0], np.mean, seed=0)


@pytest.mark.parametrize("returns", [[1.0, 1.0, -1.0, 1.0], [[1.0, 1.0, -1.0, 1.0]]])
def test_summary_of_one_run_is_over_episodes(returns: list) -> None:
    found = scores_lib.summary(returns)
    assert (found["mean"], found["iqm"], found["std"]) == (0.5, 1.0, 1.0)
    assert (found["min"], found["max"]) == (-1.0, 1.0)
    assert found["ci"][0] < 0.5 < found["ci"][1]


def test_summary_of_one_episode() -> None:
    assert scores_lib.summary([3.0]) == {
        "mean": 3.0,
        "iqm": 3.0,
        "std": 0.0,
        "min": 3.0,
        "max": 3.0,
        "ci": (3.0, 3.0),
    }


def test_errors_name_value_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"no scores in an array of shape \(0,\)"):
        scores_lib.interquartile_mean([])
    with pytest.raises(ValueError, match=r"scores at \[\[1\]\] are not finite; drop runs"):
        scores_lib.interquartile_mean([0.0, np.nan])
    with pytest.raises(ValueError, match=r"x has shape \(1, 1, 2\); give \(runs,\)"):
        scores_lib.bootstrap_interval([[[1.0, 2.0]]], np.mean, seed=0)
    with pytest.raises(ValueError, match="confidence is 95 and repetitions 2000; give"):
        scores_lib.bootstrap_interval([1.0], np.mean, seed=0, confidence=95)
    with pytest.raises(ValueError, match=r"confidence is 0\.95 and repetitions 0; give"):
        scores_lib.bootstrap_interval([1.0], np.mean, seed=0, repetitions=0)
    with pytest.raises(ValueError, match=r"references are equal in \[\[1\]\]; correct them"):
        scores_lib.human_normalised([1.0, 2.0], [0.0, 3.0], [1.0, 3.0])
    with pytest.raises(ValueError, match=r"returns have shape \(1, 1, 1\); give"):
        scores_lib.summary([[[1.0]]])
