"""The reader of KNMI's radar files, on files of its layout; what it refuses."""

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodels_jax.data import knmi

START = datetime.datetime(2014, 7, 28, 9, 30)


def minutes(offset: int) -> datetime.datetime:
    return START + datetime.timedelta(minutes=offset)


@pytest.fixture
def h5py() -> Any:
    return pytest.importorskip("h5py")


@pytest.fixture
def rain() -> np.ndarray:
    """Dry but for a few pixels of the full grid."""
    field = np.zeros(knmi.SHAPE)
    field[0, 0], field[264, 242], field[519, 497], field[300, 401] = 0.126, 0.04, 12.0, 2.55
    return field


@pytest.fixture
def file(h5py: Any, rain: np.ndarray, tmp_path: Path) -> Path:
    valid = np.ones(knmi.SHAPE, bool)
    valid[764, 699] = False
    knmi.write_knmi_like(tmp_path / "frame.h5", rain, valid)
    return tmp_path / "frame.h5"


def test_raw_values_are_hundredths_of_millimetres(file: Path, h5py: Any) -> None:
    with h5py.File(file) as content:
        raw = content["image1/image_data"]
        assert raw.dtype == np.uint16
        # 2.55 mm is the value 255, which means missing in files of 8 bits but not in these.
        assert [raw[0, 0], raw[264, 242], raw[300, 401], raw[764, 699]] == [13, 4, 255, 65535]
    frame = knmi.read_frame(file)
    assert frame.rain.dtype == np.float32
    assert frame.rain.shape == (765, 700)
    np.testing.assert_allclose(frame.rain[[0, 519, 300], [0, 497, 401]], [0.13, 12.0, 2.55])
    assert np.argwhere(~frame.valid).tolist() == [[764, 699]]
    assert frame.rain[764, 699] == 0.0
    assert frame.meta["geo_row_offset"] == 3650.0
    assert frame.meta["geo_dim_pixel"] == "KM,KM"
    assert str(frame.meta["projection"]).startswith("+proj=stere +lat_0=90")


def test_attributes_come_in_several_forms(file: Path, h5py: Any) -> None:
    with h5py.File(file, "r+") as content:
        content["image1/image_data"][1, :3] = [65534, 0, 100]
        attributes = content["image1/calibration"].attrs
        attributes["calibration_formulas"] = np.array([b"GEO=0.020000*PV+0.500000"])
        attributes["calibration_missing_data"] = 65534
        content["geographic"].attrs["geo_dim_pixel"] = "KM,KM"
    frame = knmi.read_frame(file)
    np.testing.assert_allclose(frame.rain[1, :3], [0.0, 0.5, 2.5])
    assert frame.valid[1, :3].tolist() == [False, True, True]
    assert frame.meta["geo_dim_pixel"] == "KM,KM"
    with h5py.File(file, "r+") as content:
        del content["image1/calibration"].attrs["calibration_formulas"]
    assert knmi.read_frame(file).rain[1, 2] == np.float32(1.0)


def _truncate(h5py: Any, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _text(h5py: Any, path: Path) -> None:
    path.write_text("<html>404</html>")


def _shape(h5py: Any, path: Path) -> None:
    with h5py.File(path, "r+") as content:
        del content["image1/image_data"]
        content["image1/image_data"] = np.zeros((256, 256), np.uint16)


def _announced(h5py: Any, path: Path) -> None:
    with h5py.File(path, "r+") as content:
        content["geographic"].attrs["geo_number_rows"] = np.array([764])


def _no_data(h5py: Any, path: Path) -> None:
    with h5py.File(path, "r+") as content:
        del content["image1/image_data"]


def _no_sentinel(h5py: Any, path: Path) -> None:
    with h5py.File(path, "r+") as content:
        del content["image1/calibration"].attrs["calibration_missing_data"]


def _reflectivity(h5py: Any, path: Path) -> None:
    with h5py.File(path, "r+") as content:
        content["image1/calibration"].attrs["calibration_formulas"] = "GEO=10^(PV/20)"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, r"frame\.h5 cannot be read as HDF5 .* truncated"),
        (_text, r"frame\.h5 cannot be read as HDF5"),
        (_shape, r"'image1/image_data' that is of shape \(256, 256\): the grid has 765 rows"),
        (_announced, r"says that it is of shape \(764\.0, 700\.0\)"),
        (_no_data, "has no 'image1/image_data'"),
        (_no_sentinel, "lacks the attribute 'calibration_missing_data' of '/image1/calibration'"),
        (_reflectivity, r"is calibrated by 'GEO=10\^\(PV/20\)'"),
    ],
)
def test_spoilt_files_are_refused(
    file: Path, h5py: Any, spoil: Callable[[Any, Path], None], message: str
) -> None:
    spoil(h5py, file)
    with pytest.raises(ValueError, match=message):
        knmi.read_frame(file)


def test_a_file_that_is_not_there(h5py: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no radar file .*none\.h5"):
        knmi.read_frame(tmp_path / "none.h5")


def test_without_h5py_one_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"worldmodels_jax\[data\]"):
        knmi.read_frame(tmp_path / "frame.h5")


@pytest.mark.parametrize("value", [-0.01, 655.34, np.nan])
def test_what_a_file_cannot_hold_is_not_written(h5py: Any, tmp_path: Path, value: float) -> None:
    field = np.full(knmi.SHAPE, value)
    with pytest.raises(ValueError, match=r"of which a file holds 0 to 655\.33"):
        knmi.write_knmi_like(tmp_path / "frame.h5", field)
    with pytest.raises(ValueError, match=r"to write is of shape \(765, 699\)"):
        knmi.write_knmi_like(tmp_path / "frame.h5", field[:, 1:])
    assert list(tmp_path.iterdir()) == []


def test_files_are_found_in_both_layouts(tmp_path: Path) -> None:
    flat = tmp_path / "RAD_NL25_RAP_5min_201407280935.h5"
    below = tmp_path / "2014/07/RAD_NL25_RAP_5min_201407280930.h5"
    adjusted = tmp_path / "2014/07/RAD_NL25_RAC_MFBS_EM_5min_201407280930_NL.h5"
    below.parent.mkdir(parents=True)
    for path in (flat, below, adjusted, tmp_path / "RAD_NL25_RAP_5min_2014.h5"):
        path.touch()
    found = knmi.index_folder(tmp_path)
    assert list(found.items()) == [(START, below), (minutes(5), flat)]
    assert knmi.index_folder(tmp_path, knmi.ADJUSTED) == {START: adjusted}

    (tmp_path / below.name).touch()
    with pytest.raises(ValueError, match="of the same time: remove one"):
        knmi.index_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file named OTHER"):
        knmi.index_folder(tmp_path, "OTHER_{time}.h5")
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere"):
        knmi.index_folder(tmp_path / "elsewhere")


def test_sequences_are_nine_frames_or_left_out(file: Path, h5py: Any, tmp_path: Path) -> None:
    last = tmp_path / "last.h5"
    knmi.write_knmi_like(last, np.full(knmi.SHAPE, 0.5))
    index = {minutes(offset): file for offset in range(-60, 180, 30)} | {minutes(180): last}
    # 30 minutes later there is no frame at T+180.
    ((start, frames),) = knmi.load_sequences(index, [START, minutes(30)])
    assert start == START
    assert frames.shape == (9, 128, 128)
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames[8], 6.0)
    # One pixel of four, 12 to the hour: 0.04 and 2.55 mm; 12 mm are 36 mm/h.
    wet = [(0, 0), (18, 79), (127, 127)]
    assert [tuple(at) for at in np.argwhere(frames[2])] == wet
    np.testing.assert_allclose([frames[2][at] for at in wet], [0.12, 7.65, 36.0], rtol=1e-6)


def test_events_are_accumulated_from_after_their_start(
    file: Path, h5py: Any, tmp_path: Path
) -> None:
    dry, before = tmp_path / "dry.h5", tmp_path / "before.h5"
    knmi.write_knmi_like(dry, np.zeros(knmi.SHAPE))
    knmi.write_knmi_like(before, np.ones(knmi.SHAPE))
    index = {minutes(offset): dry for offset in range(0, 185, 5)}
    # At T it is rain of before; at T+5 and T+180 it counts.
    index |= {minutes(0): before, minutes(5): file, minutes(180): file}
    total = knmi.event_accumulation(index, START)
    assert total is not None
    np.testing.assert_allclose(total[519, 497], 24.0)
    del index[minutes(95)]
    assert knmi.event_accumulation(index, START) is None


def test_rates_are_cut_at_128() -> None:
    assert (knmi.model_grid(np.full(knmi.SHAPE, 11.0)) == 128.0).all()


def test_boxes_on_the_models_grid() -> None:
    # 296-242 = 54, 322-242 = 80, 432-264 = 168, 457-264 = 193: halved, and grown outward.
    assert knmi.model_box(knmi.CATCHMENTS["Delfland"]) == (27, 40, 84, 97)
    assert knmi.model_box(knmi.CATCHMENTS["Hupsel"]) == (115, 117, 78, 80)
    assert knmi.model_box((242, 498, 264, 520)) == (0, 128, 0, 128)
    assert len(knmi.CATCHMENTS) == 11
    for box in knmi.CATCHMENTS.values():
        assert min(knmi.model_box(box)) >= 0
    with pytest.raises(ValueError, match="not within the crop"):
        knmi.model_box((241, 300, 264, 300))


def test_event_lists(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("201407280930,12.5\n201407280945, 7\n")
    assert knmi.read_events(path) == [(START, 12.5), (minutes(15), 7.0)]
    path.write_text("201407280930,12.5\nsoon,7\n")
    with pytest.raises(ValueError, match=r"line 2 of .*events\.csv is 'soon,7'"):
        knmi.read_events(path)


def test_thresholds_are_quantiles_of_what_is_wet() -> None:
    acc = [0.0] * 5 + [1.0, 2.0, 3.0, 4.0, 5.0]
    assert knmi.threshold_from_quantile(acc, 0.75) == 4.0
    assert knmi.threshold_from_quantile(acc, 0.5, wet_only=False) == 0.5
    with pytest.raises(ValueError, match=r"q=95\.0 is no quantile"):
        knmi.threshold_from_quantile(acc, 95.0)
    with pytest.raises(ValueError, match="no event to take a quantile of"):
        knmi.threshold_from_quantile([0.0], 0.5)
