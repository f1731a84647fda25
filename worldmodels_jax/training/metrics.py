"""Metric writers, the search for the first non-finite loss, and the console line. Host side only.

A run's history is ``metrics.jsonl``, one JSON object per write, and the same numbers as TensorBoard
events. A resumed run continues both from its checkpoint's step and leaves no second history.
"""

import contextlib
import errno
import json
import math
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from io import SEEK_END, FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from worldmodels_jax.files import replacing

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"
_RESERVED = ("step", "time")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NonFiniteLossError(FloatingPointError):
    """A loss term became NaN or infinite; raised with the message of ``nonfinite_message``."""


class MetricWriter(NamedTuple):
    """An open metric history. A context manager, too: leaving it closes it.

    ``write(step, metrics)`` appends one row of scalars, which has left the process when it returns.
    A non-finite value is null in the file and no event. ValueError is raised for a value that is
    not a scalar, for the names "step" and "time", and after ``close()``; OSError, which names the
    file and the remedy, where the disk is full: the earlier rows stay.
    """

    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_writer(directory: Path, *, step: int = 0, tensorboard: bool = True) -> MetricWriter:
    """Opens a run's metric history, to be continued after ``step``.

    A run that died after its last checkpoint has written rows that the resumed run will write
    again: rows with a step beyond ``step`` are dropped first, and so is a last line that the crash
    tore. All other lines stay as they are, and the file is replaced as a whole or not at all. In
    TensorBoard the same events are purged.

    Args:
      directory: where ``metrics.jsonl`` and ``tensorboard/`` are; made if missing.
      step: the step of the checkpoint resumed from, 0 for a new run.
      tensorboard: whether to write TensorBoard events as well.

    Raises:
      ValueError: a line of ``metrics.jsonl`` before the last is not a row of metrics.
      OSError: a file cannot be written.
    """
    path, events_path = directory / METRICS_FILE, directory / TENSORBOARD_DIRECTORY
    with contextlib.ExitStack() as opened:
        with writing(path):
            directory.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _truncate(path, step)
            file = opened.enter_context(path.open("ab", buffering=0))
        events = None
        if tensorboard:
            with writing(events_path):
                events = opened.enter_context(_open_events(events_path, step))
        close = opened.pop_all().close

    def write(at: int, metrics: Mapping[str, float]) -> None:
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        now = time.time()
        row = {"step": int(at), "time": now} | dict.fromkeys(values) | finite
        line = json.dumps(row, allow_nan=False) + "\n"
        with writing(path):
            _append(file, line.encode("ascii"))
        if events is not None:
            with writing(events_path):
                scalars = [scalar(name, value) for name, value in finite.items()]
                _append(events, *(_record(step=int(at), summary=summary) for summary in scalars))

    return MetricWriter(write, close)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Adds the path and the remedy to an OSError of a full disk, which may have neither.

    Args:
      path: what is being written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: {path} cannot be written. What it held before is whole: make room, "
            "and the same command goes on from the last checkpoint",
        ) from error


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a ``metrics.jsonl`` in their order; a torn last line is left out.

    Each row has "step" (int), "time" (seconds since 1970) and the metrics written in that call.
    Non-finite values, null in the file, are NaN here: an infinity does not come back as one.

    Raises:
      ValueError: a line before the last is not a row of metrics.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _rows(path)
    ]


def first_nonfinite(history: Mapping[str, np.ndarray], first_step: int) -> tuple[str, int] | None:
    """Finds the earliest NaN or infinity in the metrics of consecutive loop iterations.

    Args:
      history: name -> (K,) or (K, S) or (K, ...), one entry per iteration. Give it only terms that
        must be finite: a return is rightly NaN where no episode has ended.
      first_step: the step of the K entries' first.

    Returns:
      The term's name and step, of several at one step the first in the mapping's order; None if
      everything is finite.
    """
    earliest: tuple[str, int] | None = None
    for name, values in history.items():
        finite = np.isfinite(values)
        bad = np.flatnonzero(~finite.all(axis=tuple(range(1, finite.ndim))))
        if bad.size and (earliest is None or first_step + bad[0] < earliest[1]):
            earliest = name, first_step + int(bad[0])
    return earliest


def nonfinite_message(term: str, step: int) -> str:
    """Returns the message of a ``NonFiniteLossError``: which term, where, and what to do."""
    return (
        f"{term!r} became NaN or infinite at step {step}. The last good checkpoint is untouched: "
        "resume from it with a lower learning rate, stricter gradient clipping, or float32 compute."
    )


def console_line(step: int, total: int, metrics: Mapping[str, float | None]) -> str:
    """Returns one compact line, ``"step   1,200/10,000  return 0.85  steps/s 2,310"``.

    Args:
      step: the steps done; padded to the width of ``total``, so that lines align.
      total: the steps to do.
      metrics: label -> value, in the order to be shown; None and NaN (nothing measured yet) are
        shown as "-".
    """
    goal = f"{total:,}"
    parts = [f"step {step:>{len(goal)},}/{goal}"]
    parts += [f"{label} {_compact(value)}" for label, value in metrics.items()]
    return "  ".join(parts)


def _compact(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"


def _scalar(name: str, value: Any) -> float:
    if name in _RESERVED:
        raise ValueError(f"a metric cannot be called {name!r}, every row has one; rename it")
    if np.ndim(value):
        raise ValueError(
            f"metric {name!r} has shape {np.shape(value)}; write scalars, for instance its mean"
        )
    return float(value)


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields every line of the file, without its newline, and the row it holds."""
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("a row has a step")
        except ValueError as error:
            # A write cut short by a crash, or one that another process is about to finish.
            if number == len(lines):
                return
            raise ValueError(
                f"{path}, line {number} is not a row of metrics: {line[:80]!r}; "
                "correct or remove that line, or move the file away"
            ) from error
        yield line, row


def _truncate(path: Path, step: int) -> None:
    kept = b"".join(line + b"\n" for line, row in _rows(path) if row["step"] <= step)
    if kept == path.read_bytes():
        return
    with replacing(path) as temporary:
        temporary.write_bytes(kept)


def _append(file: FileIO, *parts: bytes) -> None:
    """Writes all of it or nothing."""
    end = file.seek(0, SEEK_END)
    try:
        rest = memoryview(b"".join(parts))
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(end)
        raise


def _record(**fields: Any) -> bytes:
    """An event as TensorBoard reads it: length, its checksum, the event, its checksum."""
    event = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(event))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
    return length + checksums[0] + event + checksums[1]


def _open_events(directory: Path, step: int) -> FileIO:
    """Opens a file of events.

    tensorboardX's own writer has a thread, which a full disk ends; after a few more events a run
    would wait for it for ever.
    """
    directory.mkdir(exist_ok=True)
    earlier = len(list(directory.glob("events.*")))
    # A file is named by the second it was opened in: two in one second would be one.
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{earlier:04d}"
    file = (directory / name).open("wb", buffering=0)
    head = [_record(file_version="brain.Event:2")]
    if earlier:
        # TensorBoard drops what is at or after this step, and a row at `step` itself is kept.
        head.append(_record(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
    try:
        _append(file, *head)
    except OSError:
        file.close()
        raise
    return file
