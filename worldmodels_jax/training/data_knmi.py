"""KNMI's radar archive as the data set of a run of ``fit``."""

import dataclasses
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from worldmodels_jax.data import knmi
from worldmodels_jax.data.dataset import Arrays, Dataset
from worldmodels_jax.files import replacing
from worldmodels_jax.training.data_config import DataConfig

FRAMES = len(knmi.FRAME_OFFSETS)
SIDE = (knmi.CROP[1] - knmi.CROP[0]) // knmi.CROP_FACTOR


class RadarSource(NamedTuple):
    """Where the examples are from.

    Attributes:
      catchments: boxes by name, on the grid of the examples.
    """

    catchments: Mapping[str, knmi.Box]


@dataclasses.dataclass(frozen=True)
class KnmiConfig(DataConfig):
    """Radar sequences: ``{"rain": (9, 128, 128) float32, mm/h}``, every 30 minutes.

    Paths are relative to ``--data_dir``.

    Attributes:
      files: folder of the product that is read, with files directly or in YYYY/MM/.
      pattern: name of the files, {time} standing for the time.
      train_events: list of start times to train on, lines of YYYYMMDDHHMM,mm.
      test_events: list of start times to evaluate with.
      min_mm_3h: least accumulation of events that are trained on, as their list tells it.
      storage: memory holds all sequences, 0.6 MB each; memmap keeps them in a file beside the
        lists, which is written once and read where it is needed.
    """

    files: str = "."
    pattern: str = knmi.UNADJUSTED
    train_events: str = "train.csv"
    test_events: str = "test.csv"
    min_mm_3h: float = 0.0
    storage: Literal["memory", "memmap"] = "memmap"

    def load(self, data_dir: Path | None) -> Dataset:
        """See ``DataConfig``."""
        if data_dir is None:
            raise ValueError(
                "KNMI's archive is read from files: give --data_dir, the folder that holds it and "
                f"the lists {self.train_events} and {self.test_events}."
            )
        index = knmi.index_folder(data_dir / self.files, self.pattern)
        train = self._sequences(index, data_dir / self.train_events, self.min_mm_3h)
        test = self._sequences(index, data_dir / self.test_events, 0.0)
        boxes = {name: knmi.model_box(box) for name, box in knmi.CATCHMENTS.items()}
        return Dataset("knmi", train, test, RadarSource(boxes))

    def _sequences(self, index: knmi.Index, events: Path, least: float) -> Arrays:
        if not events.is_file():
            raise FileNotFoundError(
                f"no list of events {events}: write one, lines of YYYYMMDDHHMM,mm, or name another "
                "by data.train_events and data.test_events."
            )
        starts = [
            start
            for start, amount in knmi.read_events(events)
            if amount >= least and _is_complete(index, start)
        ]
        if not starts:
            raise ValueError(
                f"of no event in {events} all {FRAMES} frames are there (data.min_mm_3h={least}): "
                "check the list, the folder and data.pattern."
            )
        if self.storage == "memory":
            out = np.empty((len(starts), FRAMES, SIDE, SIDE), np.float32)
            _fill(out, index, starts)
            return {"rain": out}
        # Another list, product or folder makes another file.
        told = repr([(start, str(index[start])) for start in starts])
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        path = events.with_name(f"{events.stem}.{digest}.npy")
        if not path.exists():
            _write(path, index, starts)
        return {"rain": np.load(path, mmap_mode="r")}


def _is_complete(index: knmi.Index, start: datetime.datetime) -> bool:
    times = (start + datetime.timedelta(minutes=offset) for offset in knmi.FRAME_OFFSETS)
    return all(time in index for time in times)


def _write(path: Path, index: knmi.Index, starts: Sequence[datetime.datetime]) -> None:
    with replacing(path) as temporary:
        shape = (len(starts), FRAMES, SIDE, SIDE)
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        _fill(out, index, starts)
        out.flush()


def _fill(out: np.ndarray, index: knmi.Index, starts: Sequence[datetime.datetime]) -> None:
    for i, (_, frames) in enumerate(knmi.load_sequences(index, starts)):
        out[i] = frames
