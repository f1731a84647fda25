"""Runs: what a crash leaves behind is gone on from, and what does not belong is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from worldmodels_jax.training import run as run_lib
from worldmodels_jax.training.checkpoint import CheckpointError
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.drive import summarise
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.run import load, read_config, select_seed, train


def _with(config: Config, **training: Any) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def _files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_small_products_reach_the_compiler(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReachedError(Exception):
        pass

    def make_mapping(*_: Any, small_products: bool) -> None:
        raise ReachedError(small_products)

    monkeypatch.setattr(run_lib, "make_mapping", make_mapping)
    for asked in (True, False):
        with pytest.raises(ReachedError, match=str(asked)):
            train(_with(config, small_products=asked), tmp_path)


def test_train_is_the_loop(
    trained: Path, history: Any, saved_state: Callable, assert_identical: Callable
) -> None:
    """The run's directory holds the states of ``history``, which never was on a disk.

    The checkpoint of step 80 was written while its buffers were given to the next chunk.
    """
    for step in (80, 160):
        assert_identical(saved_state(trained, step), history.states[step // 40])
    rows = read_metrics(trained / "metrics.jsonl")
    assert [row["step"] for row in rows] == [40, 80, 120, 160]
    for row, metrics in zip(rows, history.metrics, strict=True):
        assert row["world_model/updates"] == metrics["world_model/updates"].sum()
        active = metrics["agent/updates"] > 0
        assert row["agent/actor_loss"] == pytest.approx(metrics["agent/actor_loss"][active].mean())
        ended = metrics["episode/count"].sum()
        assert row["episode/return"] == pytest.approx(metrics["episode/return_sum"].sum() / ended)
        assert row["episode/length"] == 9


def test_a_crash_after_a_checkpoint_leaves_one_history(
    config: Config, trained: Path, saved_state: Callable, assert_identical: Callable
) -> None:
    """Died between the checkpoint of step 80 and that of 160, whose first half is on the disk."""
    whole = saved_state(trained, 160)
    lines = (trained / "metrics.jsonl").read_bytes().splitlines()
    (trained / "checkpoints/160").rename(trained / "checkpoints/160.orbax-checkpoint-tmp-0")
    (trained / "metrics.jsonl").write_bytes(b"\n".join(lines[:3]) + b'\n{"step": 16')
    train(config, trained)
    assert_identical(saved_state(trained, 160), whole)
    names = {path.name for path in (trained / "checkpoints").iterdir()}
    assert names == {"80", "160"}
    again = (trained / "metrics.jsonl").read_bytes().splitlines()
    assert again[:2] == lines[:2]
    assert [json.loads(line)["step"] for line in again] == [40, 80, 120, 160]


def test_what_may_change_changes_and_is_written_down(config: Config, trained: Path) -> None:
    longer = _with(config, steps=200, checkpoint_every=40, keep_checkpoints=1)
    train(longer, trained)
    assert read_config(trained) == (longer, 0, 1, None)
    assert [path.name for path in (trained / "checkpoints").iterdir()] == ["200"]
    shorter = _with(longer, steps=100)
    train(shorter, trained)
    assert load(trained).step == 200


def test_several_seeds_resume_to_the_bit(
    config: Config, tmp_path: Path, assert_identical: Callable
) -> None:
    config = _with(config, steps=80, checkpoint_every=40)
    whole = train(config, tmp_path / "run", seed=5, num_seeds=2)
    shutil.rmtree(tmp_path / "run/checkpoints/80")
    assert_identical(train(config, tmp_path / "run", seed=5, num_seeds=2), whole)
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [40, 80]
    assert {"seed_0/episode/return", "seed_1/episode/return"} <= set(rows[-1])
    first, second = (select_seed(whole, index) for index in (0, 1))
    assert_identical(load(tmp_path / "run").train, first)
    assert_identical(load(tmp_path / "run", seed=6).train, second)
    kernel = [
        x.agent.variables["params"]["actor"]["params"]["Dense_0"]["kernel"] for x in (first, second)
    ]
    assert (np.asarray(kernel[0]) != np.asarray(kernel[1])).any()
    with pytest.raises(CheckpointError, match=r"holds seeds 5\.\.6, not seed 7"):
        load(tmp_path / "run", seed=7)
    with pytest.raises(CheckpointError, match="seeds: 2 there, 1 asked"):
        train(config, tmp_path / "run", seed=5)


def test_training_over_a_damaged_checkpoint_changes_nothing(config: Config, trained: Path) -> None:
    (trained / "checkpoints/160/loop/manifest.ocdbt").write_bytes(b"")
    before = _files(trained)
    with pytest.raises(CheckpointError, match=r"checkpoints/160: it is damaged .* at step 80"):
        train(config, trained)
    assert _files(trained) == before


def test_a_file_is_no_run(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="notes exists and holds no run of this library"):
        train(config, path)
    assert path.read_text() == "mine"


def test_an_empty_directory_may_become_a_run(config: Config, tmp_path: Path) -> None:
    reported: list[int] = []
    no_updates = _with(config, steps=50, world_model_ratio=0.0, agent_ratio=0.0)
    train(no_updates, tmp_path, report=lambda step, metrics: reported.append(step))
    assert reported == [40, 80]  # whole chunks
    assert read_config(tmp_path) == (no_updates, 0, 1, None)
    assert load(tmp_path).step == 80


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}', '{"config": 3, "seed": 0}'])
def test_a_damaged_config_is_named(trained: Path, content: str) -> None:
    (trained / "config.json").write_text(content)
    message = r"config\.json is not a config this version can read .* Nothing was changed; start"
    for use in (read_config, load):
        with pytest.raises(CheckpointError, match=message):
            use(trained)
    assert (trained / "config.json").read_text() == content


def test_a_run_without_checkpoints_says_when_the_first_comes(trained: Path) -> None:
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no finished checkpoint.*checkpoint_every=80 steps"):
        load(trained)
    assert not (trained / "checkpoints").exists()


def test_a_loaded_run_acts(trained: Path) -> None:
    run = load(trained)
    assert (run.step, run.seed, run.config.preset) == (160, 0, "debug")
    state, time_step = run.env.reset(jax.random.key(0))
    memory, action = jax.jit(run.act)(run.memory(), time_step, jax.random.key(1))
    assert action.shape == (1,)
    assert memory.records.action[0, -1] == action[0]
    np.testing.assert_array_equal(memory.records.observation[:, -1], time_step.observation)
    _, time_step = run.env.step(state, action, jax.random.key(2))
    assert not time_step.is_first[0]


def test_a_chunk_is_summed_up_over_what_happened_in_it() -> None:
    """Four iterations; the model learned in two of them, and three episodes ended."""
    history = {
        "world_model/loss": np.array([0.0, 3.0, 0.0, 5.0]),
        "world_model/updates": np.array([0.0, 1.0, 0.0, 2.0]),
        "agent/actor_loss": np.zeros(4),
        "agent/updates": np.zeros(4),
        "episode/count": np.array([0.0, 1.0, 0.0, 2.0]),
        "episode/return_sum": np.array([0.0, -1.0, 0.0, 4.0]),
        "episode/length_sum": np.array([0.0, 9.0, 0.0, 6.0]),
    }
    assert summarise(history) == {
        "world_model/loss": 4.0,
        "world_model/updates": 3.0,
        "agent/updates": 0.0,
        "episode/return": 1.0,
        "episode/length": 5.0,
    }


def test_a_chunk_of_several_seeds_is_summed_up_seed_by_seed() -> None:
    """Two iterations of three seeds; the last seed finished no episode."""
    history = {
        "world_model/loss": np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 6.0]]),
        "world_model/updates": np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
        "episode/count": np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]]),
        "episode/return_sum": np.array([[1.0, 0.0, 0.0], [3.0, 8.0, 0.0]]),
        "episode/length_sum": np.array([[4.0, 0.0, 0.0], [4.0, 12.0, 0.0]]),
    }
    assert summarise(history) == {
        "world_model/loss": 3.0,
        "world_model/updates": 1.0,
        "episode/return": 3.0,
        "episode/length": 5.0,
        "seed_0/episode/return": 2.0,
        "seed_1/episode/return": 4.0,
    }
    for name in ("count", "return_sum", "length_sum"):
        history[f"episode/{name}"] = np.zeros((2, 3))
    assert not any("episode" in name for name in summarise(history))
