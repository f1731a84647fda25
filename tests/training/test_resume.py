"""A run directory: resumed to the bit, protected, and clear about what is wrong with it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from worldmodels_jax.training.checkpoint import CheckpointError
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.metrics import NonFiniteLossError, read_metrics
from worldmodels_jax.training.run import load, read_config, train


def with_training(config: Config, **values: Any) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **values))


def test_a_stopped_run_resumes_to_the_bit(
    config: Config, trained: Path, tmp_path: Path, saved_state: Any, assert_identical: Any
) -> None:
    train(with_training(config, steps=80), tmp_path / "stopped")
    assert max(int(p.name) for p in (tmp_path / "stopped/checkpoints").iterdir()) == 80
    train(config, tmp_path / "stopped")
    assert_identical(saved_state(tmp_path / "stopped", 160), saved_state(trained, 160))
    rows = [read_metrics(d / "metrics.jsonl") for d in (tmp_path / "stopped", trained)]
    skip = ("time", "steps_per_second")
    stopped, whole = ([{k: v for k, v in row.items() if k not in skip} for row in r] for r in rows)
    assert stopped == whole
    assert [row["step"] for row in whole] == [40, 80, 120, 160]


def test_a_finished_run_is_left_alone(config: Config, trained: Path) -> None:
    before = {
        p: p.read_bytes() for p in trained.rglob("*") if p.is_file() and "events" not in p.name
    }
    train(config, trained)
    after = {p: p.read_bytes() for p in before}
    assert before == after


def test_another_config_is_refused_by_name_and_nothing_changes(
    config: Config, trained: Path
) -> None:
    before = (trained / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"training\.batch_size: 2 there, 3 asked"):
        train(with_training(config, batch_size=3), trained)
    with pytest.raises(CheckpointError, match="seed: 0 there, 1 asked"):
        train(config, trained, seed=1)
    assert (trained / "config.json").read_bytes() == before


def test_a_foreign_directory_is_refused_and_untouched(config: Config, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(CheckpointError, match="holds no run of this library"):
        train(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_named_with_the_remedy(trained: Path) -> None:
    newest = trained / "checkpoints/160/train"
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"checkpoints/160.*damaged.*step 80"):
        load(trained)
    shutil.rmtree(trained / "checkpoints/160")
    assert load(trained).step == 80


def test_a_half_written_checkpoint_does_not_count(trained: Path) -> None:
    (trained / "checkpoints/200.orbax-checkpoint-tmp").mkdir()
    assert load(trained).step == 160


def test_what_can_not_be_loaded_says_why(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds seeds 0\.\.0, not seed 3"):
        load(trained, seed=3)
    shutil.rmtree(trained / "checkpoints")
    (trained / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        load(trained)
    saved = json.loads((trained / "config.json").read_text())
    saved["config"]["model"]["no_such_field"] = 1
    (trained / "config.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="no_such_field"):
        read_config(trained)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    diverging = with_training(config, world_model_lr=1e30, warmup=100, checkpoint_every=40)
    with pytest.raises(
        NonFiniteLossError, match=r"'\w+/\w+' became NaN or infinite at step (98|1\d\d)"
    ):
        train(diverging, tmp_path / "run")
    assert load(tmp_path / "run").step == 80
