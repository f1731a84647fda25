"""Rows taken some at a time."""

import jax
import numpy as np

from worldmodels_jax.evaluation.batches import in_batches


def test_batches_are_of_one_size_and_lose_no_row() -> None:
    seen = []

    def function(rows: dict) -> dict:
        seen.append(rows["x"].shape)
        return {"double": 2 * rows["x"], "draw": jax.vmap(jax.random.uniform)(rows["key"])}

    rows = {"x": np.arange(7)[:, None], "key": jax.random.split(jax.random.key(0), 7)}
    out = in_batches(function, rows, 3)
    np.testing.assert_array_equal(out["double"], 2 * rows["x"])
    np.testing.assert_array_equal(out["draw"], jax.vmap(jax.random.uniform)(rows["key"]))
    assert seen == [(3, 1)] * 3


def test_fewer_rows_than_a_batch_are_not_filled_up() -> None:
    sizes = []
    in_batches(lambda x: sizes.append(len(x)) or x, np.arange(2), 3)
    assert sizes == [2]
