"""Aggregates, profiles and probability of improvement against rliable and hand-computed numbers."""

import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from worldmodels_jax.evaluation import aggregates, scores

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of third parties, on import
    from rliable import library as rliable_library
    from rliable import metrics as rliable_metrics

TAUS = np.array([-1.0, 0.0, 0.3, 0.5, 1.0, 2.5])


def _scores(runs: int, tasks: int, seed: int = 0) -> np.ndarray:
    """Skewed, some negative, rounded to halves so that there are ties."""
    x = np.random.default_rng(seed).gamma(1.0, 1.2, size=(runs, tasks)) - 0.4
    return np.round(2 * x) / 2


@pytest.mark.parametrize("shape", [(1, 26), (5, 26), (3, 7), (4, 1)])
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mean", rliable_metrics.aggregate_mean),
        ("median", rliable_metrics.aggregate_median),
        ("iqm", rliable_metrics.aggregate_iqm),
        ("optimality_gap", rliable_metrics.aggregate_optimality_gap),
    ],
)
def test_aggregates_are_rliables(
    shape: tuple[int, int], name: str, theirs: Callable[[np.ndarray], float]
) -> None:
    x = _scores(*shape)
    np.testing.assert_allclose(aggregates.AGGREGATES[name](x), theirs(x), rtol=1e-12)


def test_aggregates_literals() -> None:
    """Task means 1, 2, 6; pooled 0 1 2 2 3 10, the middle four of which make the IQM."""
    x = [[0.0, 1.0, 10.0], [2.0, 3.0, 2.0]]
    assert aggregates.mean_of_tasks(x) == 3.0
    assert aggregates.median_of_tasks(x) == 2.0
    assert aggregates.AGGREGATES["iqm"](x) == 2.0
    assert aggregates.optimality_gap(x) == pytest.approx(1 / 6)  # only the 0 falls short
    assert aggregates.optimality_gap(x, gamma=3.0) == pytest.approx(3 - (0 + 1 + 3 + 2 + 3 + 2) / 6)


def test_optimality_gap_with_another_target_is_rliables() -> None:
    x = _scores(5, 6)
    theirs = rliable_metrics.aggregate_optimality_gap(x, gamma=2.0)
    np.testing.assert_allclose(aggregates.optimality_gap(x, gamma=2.0), theirs, rtol=1e-12)


def test_profile_is_rliables() -> None:
    """With ties at the thresholds: what equals a threshold is not above it."""
    x = _scores(5, 26)
    assert np.isin(TAUS[:5], x).sum() >= 3
    theirs = rliable_library.score_distributions(x, TAUS)
    np.testing.assert_allclose(aggregates.performance_profile(x, TAUS), theirs, rtol=1e-12)


def test_profile_literal() -> None:
    profile = aggregates.performance_profile([[0.0, 1.0], [1.0, 2.0]], [-0.1, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_array_equal(profile, [1.0, 0.75, 0.75, 0.25, 0.0])


@pytest.mark.parametrize(("runs_x", "runs_y"), [(5, 5), (3, 5), (1, 4), (1, 1)])
def test_probability_of_improvement_is_rliables(runs_x: int, runs_y: int) -> None:
    x, y = _scores(runs_x, 20), _scores(runs_y, 20, seed=1)
    assert any(np.intersect1d(x[:, task], y[:, task]).size for task in range(20)), "no tie"
    theirs = rliable_metrics.probability_of_improvement(x, y)
    np.testing.assert_allclose(aggregates.probability_of_improvement(x, y), theirs, rtol=1e-12)


def test_probability_of_improvement_literal() -> None:
    """Task one: of four pairs 2 > 1 and 3 > 1 are won, 2 = 2 is a tie, 3 > 2 is won: 3.5 / 4.

    Task two is lost: 0. A pool of tasks would count 5 > 2.
    """
    x, y = [[2.0, 5.0], [3.0, 5.0]], [[1.0, 9.0], [2.0, 9.0]]
    assert aggregates.probability_of_improvement(x, y) == 3.5 / 8
    assert aggregates.probability_of_improvement(y, x) == 4.5 / 8
    assert aggregates.probability_of_improvement(x, x) == 0.5


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """rliable, drawing the indices that ours draws with seed 3."""
    rng = np.random.default_rng(3)

    def choice(number: int, shape: tuple[int, ...], replace: bool) -> np.ndarray:
        assert replace
        return rng.integers(number, size=shape)

    monkeypatch.setattr(np.random, "choice", choice)
    return rliable_library


@pytest.mark.parametrize("name", list(aggregates.AGGREGATES))
def test_interval_of_an_aggregate_is_rliables(same_draws: ModuleType, name: str) -> None:
    x = _scores(5, 9)
    theirs = {
        "mean": rliable_metrics.aggregate_mean,
        "median": rliable_metrics.aggregate_median,
        "iqm": rliable_metrics.aggregate_iqm,
        "optimality_gap": rliable_metrics.aggregate_optimality_gap,
    }[name]
    _, interval = same_draws.get_interval_estimates(
        {"x": x}, lambda table: np.array([theirs(table)]), reps=200
    )
    ours = scores.bootstrap(aggregates.AGGREGATES[name], x, seed=3, repetitions=200)
    assert ours[1] > ours[0]
    np.testing.assert_allclose(ours, interval["x"][:, 0], rtol=1e-12)


def test_interval_of_a_profile_is_rliables(same_draws: ModuleType) -> None:
    x = _scores(5, 9)
    _, bands = same_draws.create_performance_profile({"x": x}, TAUS, reps=200)
    ours = scores.bootstrap(
        lambda table: aggregates.performance_profile(table, TAUS), x, seed=3, repetitions=200
    )
    assert ours.shape == (2, 6)
    np.testing.assert_allclose(ours, bands["x"], atol=1e-12)


def test_interval_of_an_improvement_is_rliables(same_draws: ModuleType) -> None:
    """Each system's runs are drawn by themselves, task by task, whatever their number."""
    x, y = _scores(4, 6), _scores(5, 6, seed=1)
    _, interval = same_draws.get_interval_estimates(
        {"x, y": (x, y)},
        lambda *pair: np.array([rliable_metrics.probability_of_improvement(*pair)]),
        reps=200,
    )
    ours = scores.bootstrap(aggregates.probability_of_improvement, x, y, seed=3, repetitions=200)
    np.testing.assert_allclose(ours, interval["x, y"][:, 0], rtol=1e-12)


def test_bootstrap_of_single_runs_is_the_statistic() -> None:
    ours = scores.bootstrap(aggregates.mean_of_tasks, [[1.0, 4.0]], seed=0)
    np.testing.assert_array_equal(ours, [2.5, 2.5])
    mixed = scores.bootstrap(aggregates.probability_of_improvement, [[1.0]], [[0.0], [2.0]], seed=0)
    np.testing.assert_array_equal(mixed, [0.0, 1.0])  # one run against two: still an interval


def test_comparison_has_every_statistic_of_every_system() -> None:
    systems = {"a": _scores(5, 4), "b": _scores(3, 4, 1), "c": _scores(1, 4, 2)}
    found = aggregates.compare(systems, ["a", "b"], TAUS, seed=7, repetitions=50)
    assert list(found.aggregates) == list(found.profiles) == ["a", "b", "c"]
    for name, x in systems.items():
        for label, statistic in aggregates.AGGREGATES.items():
            low, high = scores.bootstrap(statistic, x, seed=7, repetitions=50)
            assert found.aggregates[name][label] == (statistic(x), low, high)
        profile = found.profiles[name]
        np.testing.assert_array_equal(profile.value, aggregates.performance_profile(x, TAUS))
        assert (profile.low <= profile.value + 1e-12).all()
        assert (profile.value <= profile.high + 1e-12).all()
    assert found.aggregates["a"]["mean"].low < found.aggregates["a"]["mean"].high
    # Each pair once, the systems in focus first.
    assert list(found.improvement) == [("a", "b"), ("a", "c"), ("b", "c")]
    value, low, high = found.improvement["a", "c"]
    assert value == aggregates.probability_of_improvement(systems["a"], systems["c"])
    assert low < value < high
    again = aggregates.compare(systems, ["a", "b"], TAUS, seed=7, repetitions=50)
    assert again.aggregates == found.aggregates


def test_aggregate_errors() -> None:
    with pytest.raises(ValueError, match=r"scores have shape \(2,\); give \(runs, tasks\)"):
        aggregates.mean_of_tasks([1.0, 2.0])
    with pytest.raises(ValueError, match="X are of 2 tasks and those of Y of 1; give both"):
        aggregates.probability_of_improvement([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"scores at \[\[0, 1\]\] are not finite"):
        aggregates.optimality_gap([[1.0, np.inf]])
    with pytest.raises(ValueError, match="no scores"):
        aggregates.compare({"a": np.zeros((0, 3))}, ["a"], TAUS)
