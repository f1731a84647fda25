"""What may happen to a run: it goes on to the bit, or ends with one message and nothing torn."""

import contextlib
import dataclasses
import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer

from experiments.common import quiet_saves
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.checkpoint import CheckpointError, open_checkpoints
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.load import CHECKPOINTS, load, saved_steps
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.run import train
from worldmodels_jax.types import PyTree

ROOT = Path(__file__).parents[2]
WITHOUT_UPDATES = {
    "model.prior": "mlp",
    "training.world_model_ratio": "0",
    "training.agent_ratio": "0",
    "training.checkpoint_every": "40",
}


def _with(config: Config, **training: Any) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


@pytest.fixture(scope="module")
def quick(config: Config) -> Config:
    """Nothing learns: what is tested is what surrounds it. A checkpoint after every chunk."""
    return apply_overrides(config, WITHOUT_UPDATES)


@pytest.fixture(scope="module")
def whole(quick: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of four chunks, all its checkpoints kept; only to be read."""
    directory = tmp_path_factory.mktemp("faults") / "whole"
    train(_with(quick, keep_checkpoints=4), directory)
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small tmpfs cannot be mounted here: {error}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def _fill(disk: Path, free: int) -> Path:
    """Leave so many bytes free, by a file to be removed."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    return ballast


@contextlib.contextmanager
def _file_size_limit(count: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a failure that free space does not foretell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _rows(directory: Path) -> list[dict[str, float]]:
    skip = ("time", "steps_per_second")
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in skip} for row in rows]


def _after(calls: int) -> Callable[[], bool]:
    """False so many times, then true."""
    left = iter([False] * calls)
    return lambda: next(left, True)


def _died_after(step: int, whole: Path, directory: Path) -> Path:
    """Copies a run and takes away all checkpoints after a step; the metrics go further."""
    shutil.copytree(whole, directory)
    for path in (directory / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return directory


def _saved(directory: Path, step: int) -> dict[str, PyTree]:
    """All that a checkpoint holds, without knowing the run's config."""
    checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
    restore = ocp.args.StandardRestore()
    items = {"train": restore, "loop": restore, "extra": ocp.args.JsonRestore()}
    try:
        return dict(checkpoints.manager.restore(step, args=ocp.args.Composite(**items)).items())
    finally:
        checkpoints.close()


@pytest.fixture
def assert_as_undisturbed(
    whole: Path, assert_identical: Callable[[PyTree, PyTree], None]
) -> Callable[[Path], None]:
    """The newest checkpoint and all rows are those of ``whole``, to the bit."""

    def check(directory: Path) -> None:
        assert saved_steps(directory)[-1] == 160
        assert_identical(_saved(directory, 160), _saved(whole, 160))
        assert _rows(directory) == _rows(whole)

    return check


def test_a_stop_saves_and_the_same_command_goes_on(
    quick: Config, tmp_path: Path, assert_as_undisturbed: Callable[[Path], None]
) -> None:
    """Asked in the second chunk, of which no checkpoint was due."""
    config = _with(quick, checkpoint_every=160)
    reported: list[int] = []
    train(
        config,
        tmp_path / "run",
        report=lambda step, _: reported.append(step),
        should_stop=_after(2),
    )
    assert reported == [40, 80] == [row["step"] for row in _rows(tmp_path / "run")]
    assert saved_steps(tmp_path / "run") == [80]
    train(config, tmp_path / "run")
    assert_as_undisturbed(tmp_path / "run")


def test_a_stop_while_a_save_is_in_flight_finishes_both(
    quick: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_identical: Callable[[PyTree, PyTree], None],
) -> None:
    """The first save is held back until some time after the stop was asked for."""
    steps, go = tmp_path / "run/checkpoints", threading.Event()
    commit = async_checkpointer._background_wait_for_commit_futures

    def held(*args: Any, **kwargs: Any) -> None:
        assert go.wait(60)
        commit(*args, **kwargs)

    monkeypatch.setattr(async_checkpointer, "_background_wait_for_commit_futures", held)
    stop = _after(2)

    def ask() -> bool:
        asked = stop()
        assert not (steps / "40").exists()
        if asked:
            threading.Timer(0.5, go.set).start()
        return asked

    train(quick, tmp_path / "run", should_stop=ask)
    assert {path.name for path in steps.iterdir()} == {"40", "80"}
    for step in (40, 80):
        assert_identical(_saved(tmp_path / "run", step), _saved(whole, step))


def test_a_stop_before_anything_new_saves_nothing(
    quick: Config, whole: Path, tmp_path: Path, assert_as_undisturbed: Callable[[Path], None]
) -> None:
    train(quick, tmp_path / "new", should_stop=lambda: True)
    assert saved_steps(tmp_path / "new") == []
    assert _rows(tmp_path / "new") == []
    run = _died_after(120, whole, tmp_path / "run")
    train(quick, run, should_stop=lambda: True)
    assert saved_steps(run) == [40, 80, 120]
    assert [row["step"] for row in _rows(run)] == [40, 80, 120]
    train(quick, run)
    assert_as_undisturbed(run)


def test_sigterm_ends_the_command_with_a_checkpoint(
    quick: Config, tmp_path: Path, assert_identical: Callable[[PyTree, PyTree], None]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    overrides = WITHOUT_UPDATES | {"training.steps": "1000000", "training.checkpoint_every": "4000"}
    command = [sys.executable, "-m", "experiments.train", "--config=debug", f"--run={run}"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert any(line.startswith("step ") for line in process.stdout)  # a first chunk is done
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "\nSIGTERM: saving a checkpoint, then stopping\n" in err
    assert "Traceback" not in err
    step = saved_steps(run)[-1]
    goes_on = f"the same command with --run={run} goes on"
    assert out.splitlines()[-1] == f"Stopped, saved at step {step}: {goes_on}"
    assert 40 <= step == _rows(run)[-1]["step"] < 1_000_000
    for directory in (run, other):
        train(_with(quick, steps=step + 40, checkpoint_every=4000), directory)
    assert_identical(_saved(run, step + 40), _saved(other, step + 40))
    assert _rows(run) == _rows(other)


def test_a_full_disk_keeps_the_checkpoint_before_and_room_lets_the_run_go_on(
    quick: Config,
    whole: Path,
    small_disk: Path,
    assert_as_undisturbed: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = _died_after(40, whole, small_disk / "run")
    ballast = _fill(small_disk, free=100_000)
    capfd.readouterr()
    with pytest.raises(CheckpointError) as caught:
        train(quick, run)
    assert re.fullmatch(
        rf"cannot write the checkpoint at step 80 to {run}/checkpoints \(it takes up to "
        r"0\.\d MB; 0\.1 MB are free there\)\. The checkpoint at step 40 is whole: the same "
        r"command goes on from it, once there is room\.",
        str(caught.value),
    )
    gc.collect()
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["40"]
    assert load(run).step == 40
    assert [row["step"] for row in _rows(run)] == [40, 80]
    ballast.unlink()
    train(quick, run)
    assert_as_undisturbed(run)


def test_a_disk_too_full_to_begin_names_the_file(
    quick: Config, whole: Path, small_disk: Path
) -> None:
    ballast, run = _fill(small_disk, free=0), small_disk / "run"
    with pytest.raises(OSError, match=rf"No space left on device.*{run}"):
        train(quick, run)
    ballast.unlink()
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    _fill(small_disk, free=0)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match=r"No space left on device: .*/tensorboard cannot be written"):
        train(_with(quick, keep_checkpoints=4), run)
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(OSError, match=r"No space left on device: .*/config.json cannot be written"):
        train(_with(quick, steps=200), run)
    assert before == {path: path.read_bytes() for path in before}


# What orbax had not begun when the write failed is never awaited, and says so when collected.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_half_way_is_one_error(
    quick: Config,
    whole: Path,
    tmp_path: Path,
    assert_as_undisturbed: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As with a quota, of which the free space of the disk says nothing."""
    run = _died_after(80, whole, tmp_path / "run")
    limit = contextlib.ExitStack()

    def report(step: int, metrics: Any) -> None:
        del metrics
        if step == 120:  # that checkpoint is just being written
            limit.enter_context(_file_size_limit(30_000))

    capfd.readouterr()
    with limit, quiet_saves():
        with pytest.raises(CheckpointError) as caught:
            train(_with(quick, steps=1000), run, report=report)
        message = str(caught.value)
        del caught  # and all that its traceback holds, while that is quiet
    assert re.fullmatch(
        rf"cannot write .* to {run}/checkpoints \(.*File too large.*; .* MB are free there\)\. "
        r"The checkpoint at step \d+ is whole: the same command goes on from it, once there is "
        r"room\.",
        message,
    )
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    kept = saved_steps(run)
    assert f"at step {kept[-1]} is whole" in message
    assert load(run).step == kept[-1] < 160
    train(quick, run)
    assert_as_undisturbed(run)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == set(map(str, saved_steps(run)))  # nothing half is left


def test_over_a_damaged_newest_checkpoint_the_one_before_loads_and_trains(
    quick: Config,
    whole: Path,
    tmp_path: Path,
    assert_as_undisturbed: Callable[[Path], None],
    assert_identical: Callable[[PyTree, PyTree], None],
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    newest = run / "checkpoints/160"
    for path in newest.rglob("d/*"):
        path.write_bytes(path.read_bytes()[::-1])
    message = r"cannot read the checkpoint .*/160: it is damaged .* the checkpoint at step 120\."
    for use in (load, lambda directory: train(quick, directory)):
        with pytest.raises(CheckpointError, match=message):
            use(run)
    before = load(run, step=120)
    assert before.step == 120
    assert_identical(before.train, load(whole, step=120).train)
    with pytest.raises(CheckpointError, match="at steps 40, 80, 120, 160, not at 100"):
        load(run, step=100)
    newest.rename(tmp_path / "damaged")
    train(quick, run)
    assert_as_undisturbed(run)
