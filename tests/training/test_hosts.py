"""Two processes with two virtual devices each are one program; one that is lost ends the other."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.parallel import join_hosts
from worldmodels_jax.training.run import load

ROOT = Path(__file__).parents[2]
CONFIG = [
    "--config=debug",
    "--config.env.num_envs=4",
    "--config.model.prior=mlp",
    "--config.training.batch_size=4",
    "--config.training.chunk=12",
    "--config.training.steps=96",
    "--config.training.checkpoint_every=48",
    "--config.training.world_model_ratio=0.25",
    "--config.training.agent_ratio=0.25",
]


def start(run: Path, *flags: str, devices: int) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *CONFIG, f"--run={run}", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(run: Path, *flags: str) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            run,
            f"--coordinator=127.0.0.1:{port}",
            f"--process_id={i}",
            "--num_processes=2",
            *flags,
            devices=2,
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    run = tmp_path_factory.mktemp("hosts") / "run"
    processes = start_two(run)
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return run, outputs


def test_two_hosts_agree_with_one(together: tuple[Path, list[str]], tmp_path: Path) -> None:
    run, _ = together
    single = start(tmp_path / "single", "--devices=4", devices=4)
    output = single.communicate(timeout=600)[0]
    assert single.returncode == 0, output
    rows, expected = (read_metrics(path / "metrics.jsonl") for path in (run, tmp_path / "single"))
    assert [row["step"] for row in rows] == [48, 96]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"time", "steps_per_second"}:
            np.testing.assert_allclose(row[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)
    # A checkpoint that two hosts wrote is read by one.
    for x, y in zip(
        jax.tree.leaves(load(run).train),
        jax.tree.leaves(load(tmp_path / "single").train),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-3, atol=1e-4)


def test_one_host_speaks_for_all(together: tuple[Path, list[str]]) -> None:
    run, (first, second) = together
    assert f"debug: Catch-bsuite, 96 steps, prior=mlp -> {run}" in first
    assert f"python -m experiments.evaluate --run={run}" in first
    assert "step" not in second
    assert (run / "checkpoints/96").exists()


def test_a_lost_host_ends_the_other_and_the_run_goes_on(
    together: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, _ = together
    processes = start_two(
        run, "--config.training.steps=100000", "--config.training.checkpoint_every=960"
    )
    try:
        deadline = time.monotonic() + 300
        while not (run / "checkpoints/960").exists():
            assert time.monotonic() < deadline
            assert processes[0].poll() is None, processes[0].communicate()[0]
            time.sleep(0.2)
        processes[1].kill()
        output = processes[0].communicate(timeout=120)[0]
        processes[1].communicate()
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode != 0
    assert re.search("(?i)distributed service|coordination|gloo|connection", output), output
    assert load(run).step >= 960


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
