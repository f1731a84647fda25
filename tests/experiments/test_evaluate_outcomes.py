"""What an evaluation says of outcomes, for several seeds."""

import pytest

from experiments.evaluate import outcomes_of_seeds


def test_achievements_have_a_score_which_is_the_mean_of_the_seeds() -> None:
    # Percentages 3 and 8, and 0 and 0: scores 5 and 0. (That of the mean rates would be 2.54.)
    seeds = [
        {"achievement/eat_cow": 0.03, "achievement/wake_up": 0.08},
        {"achievement/eat_cow": 0.0, "achievement/wake_up": 0.0},
    ]
    result = outcomes_of_seeds(seeds)
    assert result == {
        "outcomes": {
            "achievement/eat_cow": pytest.approx(0.015),
            "achievement/wake_up": pytest.approx(0.04),
        },
        "crafter_score": pytest.approx(2.5),
    }


def test_other_outcomes_have_no_score_and_none_leave_no_trace() -> None:
    mixed = [{"achievement/eat_cow": 0.5, "distance": 7.0}]
    assert outcomes_of_seeds(mixed) == {"outcomes": mixed[0]}
    assert outcomes_of_seeds([{}, {}]) == {}
