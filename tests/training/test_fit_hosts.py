"""Two processes with two virtual devices each fit one system."""

from pathlib import Path

import jax
import numpy as np
import pytest
from two_hosts import finish, overriding, start_two

from experiments import common
from worldmodels_jax.training.fit import fit, load_fit
from worldmodels_jax.training.metrics import read_metrics

PRESET = "beta_vae_sprites16"
OVERRIDES = {
    "data.count": "64",
    "training.batch_size": "8",
    "training.accumulation": "2",
    "training.chunk": "3",
    "training.steps": "6",
    "training.checkpoint_every": "3",
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    run = tmp_path_factory.mktemp("fit_hosts") / "run"
    flags = (f"--config={PRESET}", f"--run={run}", "--seeds=2", *overriding(OVERRIDES))
    return run, finish(start_two("experiments.fit", *flags))


def test_two_hosts_learn_what_one_learns(together: tuple[Path, list[str]], tmp_path: Path) -> None:
    run, alone = together[0], tmp_path / "run"
    fit(common.make_fit_config(PRESET, OVERRIDES), alone, num_seeds=2, num_devices=4)
    rows, expected = (read_metrics(path / "metrics.jsonl") for path in (run, alone))
    assert [row["step"] for row in rows] == [3, 6]
    for row, same in zip(rows, expected, strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - {"time", "steps_per_second", "input_wait_seconds"}:
            np.testing.assert_allclose(row[name], same[name], rtol=1e-4, err_msg=name)
    for seed in (0, 1):
        trained, same = (
            jax.tree.leaves(load_fit(path, seed=seed).variables) for path in (run, alone)
        )
        for x, y in zip(trained, same, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_one_host_speaks_and_draws_for_both(together: tuple[Path, list[str]]) -> None:
    run, (first, second) = together
    assert f"experiments.evaluate --run={run}" in first
    assert "step" not in second
    assert sorted({path.name.split("_")[-1] for path in (run / "samples").iterdir()}) == [
        "00000003.png",
        "00000006.png",
    ]
