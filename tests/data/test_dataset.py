"""Splits and the order of batches."""

import numpy as np
import pytest

from worldmodels_jax.data.dataset import Dataset, batch_indices, num_examples, split


def test_a_split_is_a_partition_that_keeps_rows_together() -> None:
    arrays = {"x": np.arange(10), "y": 10 * np.arange(10)}
    train, test = split(arrays, 0.25, seed=0)
    assert (num_examples(train), num_examples(test)) == (8, 2)
    assert sorted([*train["x"], *test["x"]]) == list(range(10))
    for part in (train, test):
        assert (part["y"] == 10 * part["x"]).all()
        assert (np.diff(part["x"]) > 0).all()
    other = split(arrays, 0.25, seed=1)[1]["x"]
    assert not np.array_equal(other, test["x"])


def test_a_split_with_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves 0 of 3 examples"):
        split({"x": np.arange(3)}, 0.2, seed=0)


def test_arrays_of_different_lengths_are_no_data_set() -> None:
    with pytest.raises(ValueError, match=r"'x': 3, 'y': 2"):
        num_examples({"x": np.arange(3), "y": np.arange(2)})


def test_an_epoch_is_a_permutation_and_the_next_another() -> None:
    order = batch_indices(size=11, batch_size=3, seed=5, first_step=0, num_steps=6)
    first, second = order[:3].ravel(), order[3:].ravel()
    for epoch in (first, second):
        assert len(set(epoch)) == 9  # two of the eleven are left out
        assert set(epoch) <= set(range(11))
    assert not np.array_equal(first, second)
    assert set(first) != set(second)


def test_the_order_is_the_same_from_any_step() -> None:
    whole = batch_indices(7, 2, 3, 0, 10)
    np.testing.assert_array_equal(batch_indices(7, 2, 3, 4, 5), whole[4:9])
    assert not np.array_equal(batch_indices(7, 2, 4, 0, 10), whole)


def test_a_spec_has_the_shapes_of_one_example() -> None:
    train = {"image": np.zeros((5, 4, 4, 3), np.uint8), "label": np.zeros(5)}
    spec = Dataset("toy", train, train).spec
    assert (spec.name, spec.num_train) == ("toy", 5)
    assert spec.shapes == {"image": (4, 4, 3), "label": ()}
