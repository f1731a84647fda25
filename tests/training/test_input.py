"""Batches gathered ahead are those gathered when they are asked for."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from worldmodels_jax.data.dataset import batch_indices
from worldmodels_jax.training.input import gather, open_input
from worldmodels_jax.training.parallel import make_mapping

X = np.arange(20 * 3).reshape(20, 3)


@pytest.fixture(params=["array", "memmap", "hdf5"])
def arrays(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "array":
        yield {"x": X}
    elif request.param == "memmap":
        np.save(tmp_path / "x.npy", X)
        yield {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}
    else:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            yield {"x": file.create_dataset("x", data=X)}


def test_chunks_follow_one_another(arrays: dict) -> None:
    source = open_input(arrays, 4, [7], 3, 8, make_mapping(1))
    whole = X[batch_indices(20, 4, 7, 0, 9)]
    try:
        read = [np.asarray(source.read(at, count)["x"]) for at, count in ((0, 3), (3, 3), (6, 2))]
        np.testing.assert_array_equal(np.concatenate(read), whole[:8])
        # Not what was gathered ahead: a run that goes on from elsewhere.
        np.testing.assert_array_equal(source.read(2, 3)["x"], whole[2:5])
        assert source.waited() > 0
        assert source.waited() == 0
    finally:
        source.close()


def test_each_seed_has_its_order() -> None:
    batches = gather({"x": X}, 4, [1, 2], first_step=0, num_steps=3)["x"]
    assert batches.shape == (2, 3, 4, 3)
    for seed, rows in zip((1, 2), batches, strict=True):
        np.testing.assert_array_equal(rows, X[batch_indices(20, 4, seed, 0, 3)])


def test_several_hosts_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gather({"x": X}, 4, [1], 0, 2)["x"]
    monkeypatch.setattr("jax.process_count", lambda: 2)
    parts = []
    for host in range(2):
        monkeypatch.setattr("jax.process_index", lambda host=host: host)
        parts.append(gather({"x": X}, 4, [1], 0, 2)["x"])
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
