"""KNMI's radar archive: 5-minute rainfall over the Netherlands, from HDF5 files.

The two products that nowcasting is trained and verified on are in HDF5 files of KNMI's own layout,
one per 5 minutes: the radar's own accumulations, and those adjusted to rain gauges. Times are UTC.
Reading needs h5py (``pip install 'worldmodels_jax[data]'``).

Axis letters here: H = 765 rows, from north to south, W = 700 columns, from west to east, 1 km each.
"""

import datetime
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np
from numpy.typing import ArrayLike

Box = tuple[int, int, int, int]  # first column, last column + 1, first row, last row + 1
Index = Mapping[datetime.datetime, Path]

SHAPE = (765, 700)
UNADJUSTED = "RAD_NL25_RAP_5min_{time}.h5"  # input of the model
ADJUSTED = "RAD_NL25_RAC_MFBS_EM_5min_{time}_NL.h5"  # truth of the events
PROJECTION = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 +y_0=0"

CROP: Box = (242, 498, 264, 520)
CROP_FACTOR = 2  # pixels of the crop along a side of one of the model's
MAX_RATE = 128.0  # mm/h
FRAME_OFFSETS = tuple(range(-60, 181, 30))  # minutes from T: three observed, six to be forecast
EVENT_MINUTES = 180

# Catchments, on the full grid.
CATCHMENTS: Mapping[str, Box] = {
    "Aa": (386, 431, 467, 515),
    "Beemster": (340, 351, 370, 382),
    "Delfland": (296, 322, 432, 457),
    "DeLinde": (414, 439, 322, 340),
    "Dwarsdiep": (427, 442, 290, 304),
    "GroteWaterleiding": (456, 467, 409, 421),
    "HHRijnland": (332, 343, 429, 444),
    "Hupsel": (473, 476, 421, 424),
    "Luntersebeek": (391, 406, 422, 432),
    "Regge": (450, 494, 371, 410),
    "Reusel": (369, 381, 487, 517),
}

_DATA = "image1/image_data"
_CALIBRATION = "image1/calibration"
_SENTINELS = {"calibration_out_of_image": 65535, "calibration_missing_data": 65534}
_GEOGRAPHY: Mapping[str, float | str] = {
    "geo_number_columns": SHAPE[1],
    "geo_number_rows": SHAPE[0],
    "geo_pixel_size_x": 1.0,
    "geo_pixel_size_y": -1.0,
    "geo_column_offset": 0.0,
    "geo_row_offset": 3650.0,
    "geo_dim_pixel": "KM,KM",
}
_MM = 0.01  # of one unit of the raw data, in both products
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
_FORMULA = re.compile(rf"\s*GEO\s*=\s*([-+]?{_NUMBER})\s*\*\s*PV\s*([-+]{_NUMBER})?\s*")
_TIME = "%Y%m%d%H%M"


class RadarFrame(NamedTuple):
    """One file."""

    rain: np.ndarray  # (H, W) float32, mm in 5 minutes; 0 where not valid
    valid: np.ndarray  # (H, W) bool, within the radars' range and not missing
    meta: dict[str, float | str]  # the grid's geography, and its projection as "projection"


def read_frame(path: Path) -> RadarFrame:
    """Reads one file of 5 minutes.

    Args:
      path: the file.

    Returns:
      The accumulations, where they are valid, and where they are.

    Raises:
      ModuleNotFoundError: if h5py is not installed.
      FileNotFoundError: if there is no such file.
      ValueError: for a file that is truncated, not HDF5 or of another layout or grid.
    """
    h5py = _h5py()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no radar file {path}: check the folder, or download it anew.")
    try:
        with h5py.File(path, "r") as file:
            return _frame(path, file)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as HDF5 ({error}): it is truncated or something else; delete "
            "it and download it anew."
        ) from error


def write_knmi_like(path: Path, rain: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Writes a field as KNMI does, to a hundredth of a millimetre.

    Args:
      path: the file; one that is there is replaced.
      rain: (H, W) mm in 5 minutes.
      valid: (H, W) bool, False for what is out of the radars' range; None for none.

    Raises:
      ModuleNotFoundError: if h5py is not installed.
      ValueError: for a field of another shape, or values that 16 bits do not hold.
    """
    h5py = _h5py()
    _check_shape("the field to write", rain.shape)
    largest = (min(_SENTINELS.values()) - 1) * _MM
    if not ((rain >= 0) & (rain <= largest)).all():
        raise ValueError(
            f"rain is {np.min(rain)} to {np.max(rain)} mm in 5 minutes, of which a file holds 0 to "
            f"{largest:.2f}: fill what is missing with 0 and pass it as not valid."
        )
    raw = np.round(np.asarray(rain, np.float64) / _MM).astype(np.uint16)
    if valid is not None:
        raw = np.where(valid, raw, _SENTINELS["calibration_out_of_image"]).astype(np.uint16)
    with h5py.File(path, "w") as file:
        file.create_dataset(_DATA, data=raw, compression="gzip", compression_opts=1)
        calibration = file.create_group(_CALIBRATION)
        calibration.attrs["calibration_formulas"] = np.bytes_(f"GEO={_MM:f}*PV+0.000000")
        for name, sentinel in _SENTINELS.items():
            calibration.attrs[name] = np.array([sentinel], np.int32)
        geographic = file.create_group("geographic")
        for name, value in _GEOGRAPHY.items():
            is_text = isinstance(value, str)
            geographic.attrs[name] = np.bytes_(value) if is_text else np.array([value])
        projection = file.create_group("geographic/map_projection")
        projection.attrs["projection_proj4_params"] = np.bytes_(PROJECTION)


def index_folder(root: Path, pattern: str = UNADJUSTED) -> dict[datetime.datetime, Path]:
    """Finds a product's files, in one folder or in ``YYYY/MM/`` below it.

    Args:
      root: the folder.
      pattern: the files' name with ``{time}`` in place of the time, e.g. ``ADJUSTED``.

    Returns:
      The files by the end of their 5 minutes, in the order of time.

    Raises:
      FileNotFoundError: if there is no such folder, or no such file in it.
      ValueError: for two files of one time.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root}: unpack the radar archive there.")
    before, after = (re.escape(part) for part in pattern.split("{time}"))
    name = re.compile(rf"{before}(\d{{12}}){after}")
    found: dict[datetime.datetime, Path] = {}
    for path in sorted(Path(root).rglob(pattern.replace("{time}", "*"))):
        if match := name.fullmatch(path.name):
            time = datetime.datetime.strptime(match[1], _TIME)
            if time in found:
                raise ValueError(f"{found[time]} and {path} are of the same time: remove one.")
            found[time] = path
    if not found:
        raise FileNotFoundError(
            f"no file named {pattern} in {root} or below: check the folder, or whether it holds "
            "the other product."
        )
    return dict(sorted(found.items()))


def read_events(path: Path) -> list[tuple[datetime.datetime, float]]:
    """Reads a list of events: lines of ``YYYYMMDDHHMM,accumulation``.

    Args:
      path: the file.

    Returns:
      The start times T, and mm in the 3 hours after them.

    Raises:
      ValueError: for a line of another form.
    """
    events = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            time, amount = line.split(",")
            events.append((datetime.datetime.strptime(time.strip(), _TIME), float(amount)))
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is {line!r}: write YYYYMMDDHHMM,mm, as in "
                "201008260900,12.5."
            ) from error
    return events


def load_sequences(
    index: Index, starts: Iterable[datetime.datetime]
) -> Iterator[tuple[datetime.datetime, np.ndarray]]:
    """Reads the nine frames around each start time, one sequence after the other.

    Args:
      index: the files by time.
      starts: times T.

    Yields:
      T and its frames, (9, 128, 128) float32 mm/h, at T-60, T-30, ... T+180 minutes. Sequences of
      which a file is missing are left out.
    """
    for start in starts:
        if paths := _paths(index, start, FRAME_OFFSETS):
            yield start, np.stack([model_grid(read_frame(path).rain) for path in paths])


def event_accumulation(index: Index, start: datetime.datetime) -> np.ndarray | None:
    """The rain of the 3 hours after a start time, from all 36 files of 5 minutes.

    Args:
      index: the files by time.
      start: T.

    Returns:
      (H, W) float32 mm over (T, T+180 min], None if a file is missing.
    """
    paths = _paths(index, start, range(5, EVENT_MINUTES + 1, 5))
    if paths is None:
        return None
    total = np.zeros(SHAPE, np.float32)
    for path in paths:
        total += read_frame(path).rain
    return total


def model_grid(rain: np.ndarray) -> np.ndarray:
    """The crop that models see: rates on pixels of 2 km, at most 128 mm/h.

    Args:
      rain: (H, W) mm in 5 minutes.

    Returns:
      (128, 128) float32 mm/h.
    """
    chex.assert_shape(rain, SHAPE)
    left, right, top, bottom = CROP
    shape = ((bottom - top) // CROP_FACTOR, CROP_FACTOR, (right - left) // CROP_FACTOR, CROP_FACTOR)
    rates = 12 * rain[top:bottom, left:right].reshape(shape).mean((1, 3), dtype=np.float32)
    return np.clip(rates, 0.0, MAX_RATE)


def model_box(box: Box) -> Box:
    """A box of the full grid on the model's, grown to whole pixels of it.

    Args:
      box: e.g. one of ``CATCHMENTS``.

    Raises:
      ValueError: if it is not within the crop.
    """
    left, right, top, bottom = box
    if not (CROP[0] <= left < right <= CROP[1] and CROP[2] <= top < bottom <= CROP[3]):
        raise ValueError(f"box {box} is not within the crop {CROP}: choose one that is.")
    first = [(at - start) // CROP_FACTOR for at, start in ((left, CROP[0]), (top, CROP[2]))]
    last = [-((start - at) // CROP_FACTOR) for at, start in ((right, CROP[0]), (bottom, CROP[2]))]
    return first[0], last[0], first[1], last[1]


def threshold_from_quantile(acc: ArrayLike, q: float, *, wet_only: bool = True) -> float:
    """The accumulation that a share 1 - q of all events exceeds.

    Args:
      acc: (E,) mm, of as many start times.
      q: in (0, 1), e.g. 0.95 for the top 5 %.
      wet_only: whether events without rain are left out first.

    Raises:
      ValueError: for another q, or if no event is left.
    """
    if not 0 < q < 1:
        raise ValueError(f"q={q} is no quantile to cut at: give a number between 0 and 1.")
    acc = np.asarray(acc, np.float64)
    acc = acc[acc > 0] if wet_only else acc
    if not acc.size:
        raise ValueError("no event to take a quantile of: give some, or some with rain.")
    return float(np.quantile(acc, q))


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "KNMI's radar files need h5py, which is not installed: run "
            "`pip install 'worldmodels_jax[data]'`."
        ) from error


def _paths(index: Index, start: datetime.datetime, minutes: Iterable[int]) -> list[Path] | None:
    """The files at some minutes from the start, None if one is missing."""
    times = [start + datetime.timedelta(minutes=offset) for offset in minutes]
    return [index[time] for time in times] if all(time in index for time in times) else None


def _frame(path: Path, file: Any) -> RadarFrame:
    for name in (_DATA, _CALIBRATION, "geographic", "geographic/map_projection"):
        if name not in file:
            raise ValueError(f"{path} has no {name!r}: it is not one of KNMI's radar products.")
    meta = {name: _attribute(path, file["geographic"], name) for name in _GEOGRAPHY}
    projection = _attribute(path, file["geographic/map_projection"], "projection_proj4_params")
    data = file[_DATA]
    _check_shape(f"{path} holds {_DATA!r} that", data.shape)
    _check_shape(f"{path} says that it", (meta["geo_number_rows"], meta["geo_number_columns"]))
    raw = data[...]
    calibration = file[_CALIBRATION]
    valid = ~np.isin(raw, [_attribute(path, calibration, name) for name in _SENTINELS])
    scale, offset = _MM, 0.0
    if "calibration_formulas" in calibration.attrs:
        scale, offset = _line(path, str(_attribute(path, calibration, "calibration_formulas")))
    rain = np.where(valid, scale * raw + offset, 0.0).astype(np.float32)
    return RadarFrame(rain, valid, {**meta, "projection": projection})


def _check_shape(what: str, shape: tuple[Any, ...]) -> None:
    if tuple(shape) != SHAPE:
        raise ValueError(
            f"{what} is of shape {tuple(shape)}: the grid has {SHAPE[0]} rows and {SHAPE[1]} "
            "columns; look for another product or another radar's file."
        )


def _line(path: Path, formula: str) -> tuple[float, float]:
    """The scale and offset of a calibration formula."""
    if match := _FORMULA.fullmatch(formula):
        return float(match[1]), float(match[2] or 0.0)
    raise ValueError(
        f"{path} is calibrated by {formula!r}, not by a line like GEO=0.010000*PV+0.000000: is it "
        "a reflectivity instead of a rainfall product?"
    )


def _attribute(path: Path, group: Any, name: str) -> float | str:
    """A number or text, which KNMI's files hold bare or as an array of one, text often as bytes."""
    if name not in group.attrs:
        raise ValueError(
            f"{path} lacks the attribute {name!r} of {group.name!r}: it is incomplete, or of "
            "another layout; download it anew."
        )
    value = np.asarray(group.attrs[name]).reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("ascii")
    return value if isinstance(value, str) else float(value)
