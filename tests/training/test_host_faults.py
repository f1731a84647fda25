"""Runs in environments of the caller's own: workers that die, states that cannot be saved."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.evaluate import evaluate_run
from worldmodels_jax import envs
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.envs.host_vector import EnvVector, make_host_vector
from worldmodels_jax.training.checkpoint import CheckpointError, abstract, open_checkpoints
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.load import CHECKPOINTS, load, saved_steps
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.online import LoopState
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import train
from worldmodels_jax.types import PyTree


@pytest.fixture(scope="module")
def quick(config: Config) -> Config:
    """Nothing learns. Two environments of 20 iterations a chunk, saved after every chunk."""
    overrides = {
        "model.prior": "mlp",
        "training.world_model_ratio": "0",
        "training.agent_ratio": "0",
        "training.checkpoint_every": "40",
        "training.steps": "120",
    }
    return apply_overrides(config, overrides)


class OpenWalks:
    """The toy's walks as an environment of the caller's own; remembers what it opened."""

    def __init__(self, workers: int, **options: Any) -> None:
        make_walk = importlib.import_module("toy_host_env").MakeWalk
        self.make_env = make_walk(**{"num_actions": 3, "discrete": False, "limit": 6, **options})
        self.workers = workers
        self.vectors: list[EnvVector] = []

    def __call__(self, num_envs: int, seed: int, evaluation: bool) -> EnvVector:
        del evaluation
        vector = make_host_vector(self.make_env, num_envs=num_envs, seed=seed, workers=self.workers)
        self.vectors.append(vector)
        return vector


@pytest.fixture
def open_walks(monkeypatch: pytest.MonkeyPatch) -> type[OpenWalks]:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1] / "envs")])
    return OpenWalks


def _saved(
    config: Config, env: OpenWalks, directory: Path, step: int
) -> tuple[LoopState, dict[str, Any]]:
    halves = build(config, env).halves
    vector = env(config.env.num_envs, 0, False)
    first = jax.tree.map(jax.numpy.asarray, vector.reset())
    vector.close()
    like = jax.eval_shape(lambda key: halves.init(key, (), first), jax.random.key(0))
    checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
    try:
        return checkpoints.restore(step, abstract(like))
    finally:
        checkpoints.close()


def _rows(directory: Path) -> dict[float, dict[str, float]]:
    skip = ("time", "steps_per_second")
    rows = read_metrics(directory / "metrics.jsonl")
    return {row["step"]: {k: v for k, v in row.items() if k not in skip} for row in rows}


def test_a_stop_within_a_chunk_changes_no_later_one(
    quick: Config,
    open_walks: type[OpenWalks],
    tmp_path: Path,
    assert_identical: Callable[[PyTree, PyTree], None],
) -> None:
    """Asked before the run, after each iteration and after each chunk; 26 iterations are done."""
    env = open_walks(workers=0)
    train(quick, tmp_path / "whole", env=env)
    answers = iter([False] * (1 + 20 + 1 + 5))
    train(quick, tmp_path / "run", env=env, should_stop=lambda: next(answers, True))
    assert saved_steps(tmp_path / "run") == [40, 52]
    train(quick, tmp_path / "run", env=env)
    (mine, my_env), (its, its_env) = (
        _saved(quick, env, tmp_path / name, 120) for name in ("run", "whole")
    )
    assert_identical(mine, its)
    assert my_env == its_env
    assert my_env["host_env"]
    rows, whole = _rows(tmp_path / "run"), _rows(tmp_path / "whole")
    assert list(rows) == [40, 52, 80, 120]
    assert list(whole) == [40, 80, 120]
    assert [rows[step] for step in (40, 120)] == [whole[step] for step in (40, 120)]


def test_a_run_survives_the_loss_of_a_worker(
    quick: Config,
    open_walks: type[OpenWalks],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = open_walks(workers=2, shows_pid=True, limit=3)

    def report(step: int, metrics: Any) -> None:
        del metrics
        if step == 40:
            os.kill(env.vectors[-1]._groups[0]._process.pid, signal.SIGKILL)

    train(quick, tmp_path / "run", seed=5, env=env, report=report)
    assert saved_steps(tmp_path / "run")[-1] == 120
    assert list(_rows(tmp_path / "run")) == [40, 80, 120]
    (message,) = (r.getMessage() for r in caplog.records if r.name.startswith("worldmodels_jax"))
    assert "toy/Walk, environments [0] (seed 5), was killed by SIGKILL" in message

    records = _saved(quick, env, tmp_path / "run", 120)[0].replay.storage
    pids = np.asarray(records.observation[:, :60, 3])
    (lost,) = np.flatnonzero(np.diff(pids[0]))
    assert not records.is_last[0, lost]  # it was no reset that was due
    assert records.is_first[0, lost + 1]
    assert not np.diff(pids[1]).any()
    # No other record follows another episode's without being a first one.
    count = np.asarray(records.observation[:, :60, 1])
    goes_on = count[:, 1:] == count[:, :-1] + 1
    np.testing.assert_array_equal(goes_on, ~np.asarray(records.is_first[:, 1:60]))


def test_an_own_environment_that_cannot_be_saved_starts_anew_and_must_be_handed_in(
    quick: Config, open_walks: type[OpenWalks], tmp_path: Path
) -> None:
    run, env = tmp_path / "run", open_walks(workers=0, can_save=False)
    shorter = apply_overrides(quick, {"training.steps": "80"})
    train(shorter, run, env=env)
    before, extra = _saved(quick, env, run, 80)
    assert extra == {"host_env": None}
    assert not before.time_step.is_first.any()
    train(quick, run, env=env)
    records = _saved(quick, env, run, 120)[0].replay.storage
    assert records.is_first[:, 40].all()
    assert not records.is_last[:, 39].any()
    assert all(row["episode/length"] <= 6 for row in _rows(run).values())

    assert json.loads((run / "config.json").read_text())["own_environment"] == "toy/Walk"
    message = (
        r"was trained in an environment of your own, 'toy/Walk', .*load\(directory, env=\.\.\.\)"
    )
    for use in (load, evaluate_run):
        with pytest.raises(CheckpointError, match=message):
            use(run)
    assert load(run, env=env).parts.spec == env.vectors[0].spec
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for other, name in ((None, "None"), (envs.make("Catch-bsuite"), "'Catch-bsuite'")):
        with pytest.raises(
            CheckpointError, match=f"own environment: 'toy/Walk' there, {name} asked"
        ):
            train(quick, run, env=other)
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
