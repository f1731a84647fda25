"""The benchmark on the debug preset: rows that are consistent with themselves."""

import json
from pathlib import Path

import pytest

from experiments import benchmark
from worldmodels_jax.viz.bars import plot_benchmark


def test_parts_are_measured(tmp_path: Path) -> None:
    lines = []
    result = benchmark.benchmark(
        ["debug"],
        overrides={"model.prior": "mlp"},
        only=["act", "prefill", "environment"],
        repeats=2,
        report=lambda preset, name, row: lines.append(benchmark.table_row(preset, name, row, row)),
    )
    names = {"prefill", "act", "environment step x 100", "actor-critic loss and gradient"}
    assert set(result["rows"]) == {f"debug: {name}" for name in names}
    for row in result["rows"].values():
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["median"])
        assert row["memory"] > 0
        assert row["compile_cold"] > 0
    assert result["rows"]["debug: environment step x 100"]["flops"] == 0
    act = result["rows"]["debug: act"]
    assert act["steps_per_second"] == pytest.approx(2 / act["median"])
    assert all(line.endswith("x1.00") for line in lines)  # as fast as itself
    json.dumps(result)
    plot_benchmark(tmp_path / "bars.png", result)


def test_whole_steps_are_measured_fused_seeded_and_stepped_by_the_host() -> None:
    result = benchmark.benchmark(
        ["debug"],
        overrides={"model.prior": "mlp"},
        only=["training step"],
        seeds=(2,),
        repeats=2,
    )
    names = ("2 seeds", "host-stepped")
    rows = {name: result["rows"][f"debug: training step, {name}"] for name in names}
    assert len(result["rows"]) == len(names)
    assert rows["2 seeds"]["flops"] == 2 * rows["host-stepped"]["flops"] > 0
    for name, row in rows.items():
        agents = 2 * (2 if name == "2 seeds" else 1)  # environments times seeds
        assert row["steps_per_second"] == pytest.approx(agents / row["median"])
