"""The published tables: complete, and as consistent with what is printed under them as they are."""

from pathlib import Path

import numpy as np
import pytest

import worldmodels_jax
from worldmodels_jax.evaluation import published
from worldmodels_jax.evaluation.aggregates import AGGREGATES

DATA = Path(worldmodels_jax.__file__).parent / "evaluation" / "published"


def test_atari_is_complete() -> None:
    """Cells of the table's corners and middle, and what identifies a slipped row or column."""
    table = published.atari100k()
    assert len(table.tasks) == len(set(table.tasks)) == 26
    assert table.tasks == tuple(sorted(table.tasks))
    assert list(table.scores) == [
        *["SimPLe", "TWM", "IRIS", "DreamerV3"],
        *["STORM (re-run)", "STORM (released)", "GIT-STORM (paper)"],
    ]
    cell = {
        (system, task): float(scores[:, i].mean())
        for system, scores in table.scores.items()
        for i, task in enumerate(table.tasks)
    }
    assert cell["SimPLe", "Alien"] == 617
    assert cell["GIT-STORM (paper)", "Up N Down"] == 10098
    assert cell["GIT-STORM (paper)", "Freeway"] == 13
    assert cell["STORM (re-run)", "Kangaroo"] == 1716
    assert cell["DreamerV3", "Crazy Climber"] == 86000
    assert cell["TWM", "Qbert"] == 3331
    assert cell["IRIS", "Breakout"] == 84
    pong = table.tasks.index("Pong")
    assert (table.low[pong], table.high[pong]) == (-21, 15)
    assert (table.high > table.low).all()


def test_normalised_literals() -> None:
    """GIT-STORM: Boxing (81 - 0) / 12, Pong (6 + 21) / 36, Alien (1145 - 228) / 6900."""
    table = published.atari100k()
    row = table.normalise(table.scores["GIT-STORM (paper)"])[0]
    by_game = dict(zip(table.tasks, row, strict=True))
    assert by_game["Boxing"] == 6.75
    assert by_game["Pong"] == 0.75
    assert by_game["Alien"] == pytest.approx(917 / 6900)


# Printed digits: in percent without decimals for those reported by others.
UNIT = {"SimPLe": 0.01, "TWM": 0.01, "IRIS": 0.01, "DreamerV3": 0.01}


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_ataris_printed_mean_and_median_follow_from_its_cells(statistic: str) -> None:
    """Within what rounding the cells to units allows."""
    table = published.atari100k()
    for system, printed in table.printed[statistic].items():
        cells = table.scores[system]
        least, found, most = (
            AGGREGATES[statistic](table.normalise(cells + shift)) for shift in (-0.5, 0, 0.5)
        )
        assert most - least < 0.02
        half = UNIT.get(system, 0.001) / 2
        assert least - half <= printed <= most + half, (system, found)


def test_ataris_recomputed_aggregates() -> None:
    """Of the means per game. The paper's, in comments, pool single runs, which it does not print.

    The gap of means is a lower bound of the gap of runs, for min(x, 1) is concave (Jensen).
    """
    table = published.atari100k()
    expected = {
        "SimPLe": (0.333, 0.134, 0.208, 0.708),  # 0.33, 0.13, 0.130, 0.729
        "TWM": (0.957, 0.506, 0.529, 0.479),  # 0.96, 0.51, 0.459, 0.513
        "IRIS": (1.048, 0.289, 0.542, 0.482),  # 1.05, 0.29, 0.501, 0.512
        "DreamerV3": (1.037, 0.487, 0.534, 0.483),  # 1.04, 0.49, 0.502, 0.503
        "STORM (re-run)": (0.947, 0.357, 0.455, 0.513),  # 0.947, 0.357, 0.426, 0.528
        "GIT-STORM (paper)": (1.124, 0.423, 0.540, 0.484),  # 1.126, 0.426, 0.522, 0.500
    }
    assert list(table.printed["mean"]) == list(expected)
    assert list(table.printed) == list(AGGREGATES)
    for system, values in expected.items():
        normalised = table.normalise(table.scores[system])
        found = [statistic(normalised) for statistic in AGGREGATES.values()]
        np.testing.assert_allclose(found, values, atol=6e-4, err_msg=system)
        assert table.printed["optimality_gap"][system] > found[3]
    printed = {name: row["GIT-STORM (paper)"] for name, row in table.printed.items()}
    assert printed == {"mean": 1.126, "median": 0.426, "iqm": 0.522, "optimality_gap": 0.5}


def test_storms_released_runs() -> None:
    """Five seeds: mean 1.222, median 0.426, IQM 0.561, gap 0.472, far from the re-run's."""
    table = published.atari100k()
    released = table.scores["STORM (released)"]
    assert released.shape == (5, 26)
    found = [statistic(table.normalise(released)) for statistic in AGGREGATES.values()]
    np.testing.assert_allclose(found, [1.222, 0.426, 0.561, 0.472], atol=6e-4)
    assert (released[:, table.tasks.index("Freeway")] == 0).all()
    same = np.round(released.mean(axis=0)) == table.scores["STORM (re-run)"][0]
    games = {task for task, equal in zip(table.tasks, same, strict=True) if equal}
    assert games == {"Boxing", "Freeway", "Hero", "Ms Pacman", "Seaquest", "Up N Down"}


def test_dmc_and_where_its_printed_aggregates_do_not_follow() -> None:
    table = published.dmc()
    assert len(table.tasks) == 20
    assert table.tasks == tuple(sorted(table.tasks))
    assert list(table.printed) == ["mean", "median"]
    wrong = {}
    for statistic, row in table.printed.items():
        assert list(row) == list(table.scores)
        for system, printed in row.items():
            found = AGGREGATES[statistic](table.normalise(table.scores[system]))
            # Cells are rounded to 0.1 of 1000, and so is what is printed of them.
            if abs(found - printed) > 1.01e-4:
                wrong[system, statistic] = (round(1000 * found, 2), round(1000 * printed, 2))
    assert wrong == {
        ("PPO", "mean"): (221.94, 211.9),
        ("STORM (re-run)", "mean"): (228.8, 214.5),
        ("STORM (re-run)", "median"): (64.05, 31.5),
        ("GIT-STORM (paper)", "mean"): (437.26, 442.1),
        ("GIT-STORM (paper)", "median"): (436.5, 475.12),
    }
    walk = table.normalise(table.scores["GIT-STORM (paper)"])[0, table.tasks.index("Walker Walk")]
    assert walk == pytest.approx(0.8547)


def test_video_tables() -> None:
    atari, dmc = published.video_prediction("atari"), published.video_prediction("dmc")
    assert len(atari) == len(dmc) == 6
    assert atari["Boxing", "STORM (re-run)"] == {"fvd": 1458.32, "perplexity": 49.24}
    assert atari["Boxing", "GIT-STORM (paper)"] == {"fvd": 1580.32, "perplexity": 54.95}
    assert dmc["Quadruped Run", "GIT-STORM (paper)"] == {"fvd": 1000.91, "perplexity": 2.61}
    assert dmc["Hopper Hop", "STORM (re-run)"] == {"fvd": 4024.11, "perplexity": 3.39}
    worse = [
        task
        for table in (atari, dmc)
        for task, system in table
        if system == "GIT-STORM (paper)"
        and table[task, system]["fvd"] > table[task, "STORM (re-run)"]["fvd"]
    ]
    assert worse == ["Boxing"]
    prior = published.video_prior()
    assert prior == {
        ("TECO with MLP prior", "DMLab"): 153,
        ("TECO with MLP prior", "SSv2"): 228,
        ("TECO with MaskGIT prior", "DMLab"): 48,
        ("TECO with MaskGIT prior", "SSv2"): 199,
    }
    with pytest.raises(ValueError, match="suite 'minatar'; give atari or dmc"):
        published.video_prediction("minatar")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("atari/MsPacman", "Ms Pacman"),
        ("atari/UpNDown", "Up N Down"),
        ("atari/Tennis", None),
        ("Breakout-MinAtar", None),
        ("Breakout", None),
    ],
)
def test_environments_find_their_game(name: str, task: str | None) -> None:
    assert published.atari100k().task_of(name) == task
    assert published.dmc().task_of(name) is None


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("dmc/cartpole_balance_sparse", "Cartpole Balance Sparse"),
        ("dmc/cup_catch", "Cup Catch"),
        ("dmc/ball_in_cup_catch", "Cup Catch"),
        ("dmc/humanoid_walk", None),
    ],
)
def test_environments_find_their_task(name: str, task: str | None) -> None:
    assert published.dmc().task_of(name) == task


def test_every_file_says_where_it_is_from() -> None:
    files = sorted(DATA.iterdir())
    assert len(files) == 8
    for path in files:
        comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert "Source: " in comments[0], path
        assert any("Transcribed: " in line for line in comments), path
