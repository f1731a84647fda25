"""Two processes with two virtual devices each are one program; one that is lost ends the other."""

import shutil
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from two_hosts import finish, overriding, start_two

from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.parallel import join_hosts
from worldmodels_jax.training.run import load, train

OVERRIDES = {
    "env.num_envs": "4",
    "model.prior": "mlp",
    "training.batch_size": "4",
    "training.chunk": "12",
    "training.steps": "96",
    "training.checkpoint_every": "48",
    "training.world_model_ratio": "0.25",
    "training.agent_ratio": "0.25",
}
# Compiled in no time: for what does not depend on what is learned.
IDLE = OVERRIDES | {
    "training.world_model_ratio": "0",
    "training.agent_ratio": "0",
    "training.steps": "10000000",
    "training.checkpoint_every": "480",
}


def start_training(run: Path, overrides: dict[str, str], *flags: str) -> list[subprocess.Popen]:
    run_flag = f"--run={run}"
    return start_two(
        "experiments.train", "--config=debug", run_flag, *overriding(overrides), *flags
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """96 steps of two processes with two devices each."""
    run = tmp_path_factory.mktemp("hosts") / "run"
    outputs = finish(start_training(run, OVERRIDES))
    return run, outputs


@pytest.fixture(scope="module")
def longer(config: Config) -> Config:
    return apply_overrides(config, OVERRIDES | {"training.steps": "144"})


@pytest.fixture(scope="module")
def alone(longer: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 steps of this one process with four devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(longer, run, num_devices=4)
    return run


def assert_alike(run: Path, other: Path, step: int) -> None:
    """The same metrics up to a step, and the same parameters there but for rounding."""
    rows, expected = (
        [row for row in read_metrics(path / "metrics.jsonl") if row["step"] <= step]
        for path in (run, other)
    )
    assert [row["step"] for row in rows] == list(range(48, step + 1, 48))
    for row, same in zip(rows, expected, strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - {"time", "steps_per_second"}:
            np.testing.assert_allclose(row[name], same[name], rtol=1e-3, atol=1e-4, err_msg=name)
    for x, y in zip(
        jax.tree.leaves(load(run, step=step).train),
        jax.tree.leaves(load(other, step=step).train),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-3, atol=1e-4)


def test_two_hosts_agree_with_one(together: tuple[Path, list[str]], alone: Path) -> None:
    assert_alike(together[0], alone, 96)  # reads, on one device, what two hosts wrote


def test_what_two_hosts_wrote_goes_on_with_four_devices_of_one(
    together: tuple[Path, list[str]], alone: Path, longer: Config, tmp_path: Path
) -> None:
    run = shutil.copytree(together[0], tmp_path / "run")
    state = train(longer, run, num_devices=4)
    assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(state))
    # The last chunk's batches come from the replay, of which each host wrote a part.
    assert_alike(run, alone, 144)


def test_one_host_speaks_for_all(together: tuple[Path, list[str]]) -> None:
    run, (first, second) = together
    assert first.startswith("debug: ")
    assert f"96 steps -> {run}\n" in first
    assert f"python -m experiments.evaluate --run={run}" in first
    assert "step" not in second
    assert "error: " not in first + second
    assert (run / "checkpoints/96").exists()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_the_other_and_the_run_goes_on(
    config: Config, tmp_path: Path, lost: int
) -> None:
    run = tmp_path / "run"
    processes = start_training(run, IDLE, "--heartbeat_timeout=10")
    left = processes[1 - lost]
    try:
        deadline = time.monotonic() + 300
        while not (run / "checkpoints/480").exists():
            assert time.monotonic() < deadline
            assert left.poll() is None, left.communicate()[0]
            time.sleep(0.2)
        processes[lost].kill()
        output = left.communicate(timeout=120)[0]
        processes[lost].communicate()
    finally:
        for process in processes:
            process.kill()
    assert left.returncode != 0
    last_words = output.strip().splitlines()[-1]
    assert last_words.startswith(f"error: JAX ended process {1 - lost} of 2"), output
    assert "another host" in last_words
    assert f"{run} ends" in last_words
    step = load(run).step
    assert step >= 480
    more = apply_overrides(config, IDLE | {"training.steps": str(step + 48)})
    train(more, run, num_devices=4)
    assert load(run).step == step + 48


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "127.0.0.1:1"}, "--process_id and --num_processes missing"),
        ({"process_id": 0, "num_processes": 2}, "--coordinator missing"),
    ],
)
def test_hosts_need_all_three_flags(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_hosts(**given)


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    join_hosts()
    assert jax.process_count() == 1
