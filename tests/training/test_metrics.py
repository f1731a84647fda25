"""Metric histories across crashes and resumes, and the search for non-finite losses."""

import json
import math
import re
import resource
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from worldmodels_jax.training import metrics as metrics_lib


def _events(directory: Path) -> list[list[Any]]:
    """The events of each file in the order of names, in which TensorBoard reads them.

    A record is a length of eight bytes, its checksum of four, the event, its checksum of four.
    """
    files = []
    for path in sorted(directory.glob("events.*")):
        data, events = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        files.append(events)
    return files


def _scalars(events: list[Any]) -> list[tuple[int, str, float]]:
    return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]


def test_rows_and_events_hold_what_was_written(tmp_path: Path) -> None:
    with metrics_lib.open_writer(tmp_path / "new" / "run") as writer:
        writer.write(0, {"loss/reward": 0.5})
        writer.write(np.int64(10), {"loss/reward": jnp.float32(0.25), "bad": math.nan, "n": 3})
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    times = [row.pop("time") for row in rows]
    assert rows == [
        {"step": 0, "loss/reward": 0.5},
        {"step": 10, "loss/reward": 0.25, "bad": None, "n": 3.0},
    ]
    assert 1.7e9 < times[0] <= times[1]
    (events,) = _events(tmp_path / "new" / "run" / "tensorboard")
    assert _scalars(events) == [(0, "loss/reward", 0.5), (10, "loss/reward", 0.25), (10, "n", 3.0)]
    assert not any(event.HasField("session_log") for event in events)  # nothing earlier to purge


def test_a_row_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    writer = metrics_lib.open_writer(tmp_path, tensorboard=False)
    writer.write(1, {"x": 2.0})
    (row,) = metrics_lib.read_metrics(tmp_path / "metrics.jsonl")
    writer.close()
    assert row["step"] == 1
    assert row["x"] == 2.0
    assert not (tmp_path / "tensorboard").exists()


def test_event_files_are_framed_as_tensorboardx_frames_them(tmp_path: Path) -> None:
    with metrics_lib.open_writer(tmp_path) as writer:
        writer.write(3, {"x": 2.0, "y": 0.1})
    (path,) = (tmp_path / "tensorboard").iterdir()
    (events,) = _events(path.parent)
    assert events[0].file_version == "brain.Event:2"
    assert [value[:2] for value in _scalars(events)] == [(3, "x"), (3, "y")]
    theirs = RecordWriter(str(tmp_path / "theirs"))
    for event in events:
        theirs.write(event.SerializeToString())
    theirs.close()
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(("tensorboard", "full"), [(False, "metrics.jsonl"), (True, "tensorboard")])
def test_a_full_disk_is_named_and_the_rows_before_it_stay(
    tmp_path: Path, tensorboard: bool, full: str
) -> None:
    """A limit on the size of files stands for the disk. Events take more room than rows."""
    message = rf"File too large: {tmp_path}/{full} cannot be written.* make room, and the same"
    limits, errors = resource.getrlimit(resource.RLIMIT_FSIZE), []
    with metrics_lib.open_writer(tmp_path, tensorboard=tensorboard) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            for step in range(40):  # many failures, too: a thread's full queue would hang
                try:
                    writer.write(step, {"loss": 0.5, "return": 0.5})
                except OSError as error:
                    errors.append((step, str(error)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    first = errors[0][0]
    assert [step for step, _ in errors] == list(range(first, 40))
    assert 5 < first < 30
    assert re.search(message, errors[0][1])
    rows = metrics_lib.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows[:first]] == list(range(first))
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")  # no half row either
    if tensorboard:
        (events,) = _events(tmp_path / "tensorboard")
        assert _scalars(events)[-1] == (first - 1, "return", 0.5)
    with metrics_lib.open_writer(tmp_path, step=3, tensorboard=tensorboard) as writer:
        writer.write(4, {"loss": 0.25})
    rows = metrics_lib.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]


def test_read_metrics_turns_null_into_nan(tmp_path: Path) -> None:
    with metrics_lib.open_writer(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"a": math.inf, "b": -math.inf, "c": math.nan, "d": 1.5})
    (row,) = metrics_lib.read_metrics(tmp_path / "metrics.jsonl")
    assert list(row) == ["step", "time", "a", "b", "c", "d"]
    assert [math.isnan(row[name]) for name in "abcd"] == [True, True, True, False]


@pytest.mark.parametrize("torn", [b"", b'{"step": 40, "ti', b'{"step": 1, "x": 1.', b"\x00\x00\n"])
def test_resume_drops_later_rows_and_a_torn_line_only(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    # Unusual spacing and an unknown type: kept lines must be the very same bytes.
    kept = b'{"step":10,"time":1,  "x":1.0}\n{"step":20,"time":2,"note":"a"}\n'
    path.write_bytes(kept + b'{"step": 21, "time": 3, "x": 7.0}\n' + torn)
    with metrics_lib.open_writer(tmp_path, step=20, tensorboard=False):
        assert path.read_bytes() == kept
    with metrics_lib.open_writer(tmp_path, step=20, tensorboard=False) as writer:
        writer.write(21, {"x": 8.0})
    assert [(r["step"], r.get("x")) for r in metrics_lib.read_metrics(path)] == [
        (10, 1.0),
        (20, None),
        (21, 8.0),
    ]
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays


def test_a_complete_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    with metrics_lib.open_writer(tmp_path, step=2, tensorboard=False) as writer:
        writer.write(3, {})
    assert [row["step"] for row in metrics_lib.read_metrics(path)] == [1, 2, 3]


def test_truncation_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(before)

    def power_cut(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b'{"step": 1}\n'  # complete before it takes the place
        raise OSError("power cut")

    monkeypatch.setattr("os.replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        metrics_lib.open_writer(tmp_path, step=1, tensorboard=False)
    assert path.read_bytes() == before


def test_reading_leaves_a_torn_line_out_and_in_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x"')
    assert metrics_lib.read_metrics(path) == [{"step": 1}]
    assert path.read_bytes().endswith(b'"x"')


@pytest.mark.parametrize("line", [b"{torn", b"3", b'{"time": 1}'])
def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + line + b'\n{"step": 2}\n'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a row of metrics"):
        metrics_lib.read_metrics(path)
    with pytest.raises(ValueError, match="correct or remove that line"):
        metrics_lib.open_writer(tmp_path, step=1)
    assert path.read_bytes() == content


def test_resume_purges_tensorboard_after_the_step(tmp_path: Path) -> None:
    """The first file's name differs from the second's though both are of the same second."""
    with metrics_lib.open_writer(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"x": step})
    with metrics_lib.open_writer(tmp_path, step=20) as writer:
        writer.write(30, {"x": -30})
    first, second = _events(tmp_path / "tensorboard")
    assert _scalars(first) == [(10, "x", 10.0), (20, "x", 20.0), (30, "x", 30.0)]
    assert _scalars(second) == [(30, "x", -30.0)]
    (start,) = [event for event in second if event.HasField("session_log")]
    assert start.session_log.status == event_pb2.SessionLog.START
    assert start.step == 21  # TensorBoard hides events at or after it; 20 is in the checkpoint


def test_writer_errors(tmp_path: Path) -> None:
    with metrics_lib.open_writer(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match=r"metric 'x' has shape \(2,\); write scalars"):
            writer.write(0, {"x": np.zeros(2)})
        for name in ("step", "time"):
            with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
                writer.write(0, {name: 1.0})
    assert metrics_lib.read_metrics(tmp_path / "metrics.jsonl") == []  # no half row
    with pytest.raises(ValueError, match="closed"):
        writer.write(0, {"x": 1.0})
    writer.close()  # a second time is harmless


def test_the_writer_closes_after_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        metrics_lib.open_writer(tmp_path, tensorboard=False) as writer,
    ):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="closed"):
        writer.write(0, {})


def test_first_nonfinite_finds_the_earliest() -> None:
    history = {
        "late": np.array([0.0, 1.0, 2.0, np.nan]),
        "early": np.array([[0.0, 0.0], [0.0, 0.0], [0.0, -np.inf], [np.nan, 0.0]]),
        "tie": np.array([0.0, 0.0, np.inf, 0.0]),
        "count": np.arange(4),
    }
    assert metrics_lib.first_nonfinite(history, 100) == ("early", 102)
    del history["early"]
    assert metrics_lib.first_nonfinite(history, 100) == ("tie", 102)
    del history["tie"]
    assert metrics_lib.first_nonfinite(history, 0) == ("late", 3)
    del history["late"]
    assert metrics_lib.first_nonfinite(history, 0) is None


def test_first_nonfinite_of_bfloat16_and_of_nothing() -> None:
    half = np.asarray(jnp.array([1.0, jnp.nan], jnp.bfloat16))
    assert metrics_lib.first_nonfinite({"x": half}, 7) == ("x", 8)
    assert metrics_lib.first_nonfinite({"x": np.zeros((0,)), "y": np.zeros((0, 3))}, 7) is None
    assert metrics_lib.first_nonfinite({}, 7) is None


def test_nonfinite_message_names_term_step_and_remedy() -> None:
    error = metrics_lib.NonFiniteLossError(metrics_lib.nonfinite_message("loss/kl", 1234))
    assert isinstance(error, FloatingPointError)
    for part in ("'loss/kl'", "step 1234", "checkpoint", "learning rate", "clipping", "float32"):
        assert part in str(error)


def test_console_line_is_the_literal() -> None:
    values = {
        "return": 0.851234,
        "world model": 12.0,
        "entropy": math.nan,
        "grad": None,
        "lr": 1e-4,
        "steps/s": 12345.6,
        "big": 3e9,
        "low": -1500.0,
    }
    assert metrics_lib.console_line(1200, 100_000, values) == (
        "step   1,200/100,000  return 0.8512  world model 12  entropy -  grad -  lr 0.0001  "
        "steps/s 12,346  big 3e+09  low -1,500"
    )
    assert metrics_lib.console_line(0, 0, {}) == "step 0/0"
