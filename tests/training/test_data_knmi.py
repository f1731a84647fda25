"""KNMI's archive as a data set: which events are read, into memory or a file, and what is not."""

import datetime
from pathlib import Path

import numpy as np
import pytest

from worldmodels_jax.data import knmi
from worldmodels_jax.training.data_knmi import KnmiConfig, RadarSource

START = datetime.datetime(2012, 8, 5, 9, 0)


def at(minutes: int) -> str:
    return (START + datetime.timedelta(minutes=minutes)).strftime("%Y%m%d%H%M")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames from T-60 to T+210, the one of minute m raining (m + 60) / 100 mm everywhere."""
    pytest.importorskip("h5py")
    root = tmp_path_factory.mktemp("archive")
    (root / "radar").mkdir()
    for minutes in range(-60, 211, 30):
        field = np.full(knmi.SHAPE, (minutes + 60) / 100)
        knmi.write_knmi_like(root / "radar" / knmi.UNADJUSTED.format(time=at(minutes)), field)
    # Of the third event frames are missing.
    (root / "train.csv").write_text(f"{at(0)},7.5\n{at(30)},2.5\n{at(60)},9.0\n")
    (root / "test.csv").write_text(f"{at(30)},2.5\n")
    return root


def test_sequences(archive: Path) -> None:
    config = KnmiConfig(files="radar", storage="memory")
    data = config.load(archive)
    assert data.name == "knmi"
    assert data.spec.shapes == {"rain": (9, 128, 128)}
    assert data.train["rain"].shape == (2, 9, 128, 128)
    # mm in 5 minutes to mm/h.
    expected = 12 * np.arange(9) * 0.3
    np.testing.assert_allclose(data.train["rain"][0, :, 5, 9], expected, rtol=1e-5)
    np.testing.assert_allclose(data.train["rain"][1, :, 5, 9], expected + 3.6, rtol=1e-5)
    np.testing.assert_array_equal(data.test["rain"][0], data.train["rain"][1])
    assert isinstance(data.source, RadarSource)
    assert data.source.catchments["Hupsel"] == knmi.model_box(knmi.CATCHMENTS["Hupsel"])
    assert len(data.source.catchments) == 11


def test_files_are_written_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = KnmiConfig(files="radar")
    first = config.load(archive)
    assert isinstance(first.train["rain"], np.memmap)
    in_memory = KnmiConfig(files="radar", storage="memory").load(archive)
    np.testing.assert_array_equal(first.train["rain"], in_memory.train["rain"])
    written = sorted(archive.glob("*.npy"))
    assert [path.name.split(".")[0] for path in written] == ["test", "train"]

    def refuse(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(knmi, "read_frame", refuse)
        again = config.load(archive)
    np.testing.assert_array_equal(again.train["rain"], first.train["rain"])
    # Other events are another file.
    fewer = KnmiConfig(files="radar", min_mm_3h=5.0).load(archive)
    assert len(fewer.train["rain"]) == 1
    assert len(fewer.test["rain"]) == 1
    assert len(sorted(archive.glob("*.npy"))) == 3


def test_what_is_missing_is_named(archive: Path) -> None:
    with pytest.raises(ValueError, match="--data_dir"):
        KnmiConfig().load(None)
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv.*data\.test_events"):
        KnmiConfig(files="radar", storage="memory", test_events="nothing.csv").load(archive)
    with pytest.raises(ValueError, match=r"train\.csv all 9 frames .*min_mm_3h=9\.5"):
        KnmiConfig(files="radar", min_mm_3h=9.5).load(archive)
