"""The benchmark on the debug preset: rows that are consistent with themselves."""

import json
import time
from pathlib import Path

import pytest

from experiments import benchmark, common
from experiments.benchmark_loops import Loop, measure_training
from worldmodels_jax.training.parts import build
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
        seeds=(1, 2),
        repeats=2,
    )
    names = ("1 seed", "2 seeds", "host-stepped")
    rows = {name: result["rows"][f"debug: training step, {name}"] for name in names}
    assert len(result["rows"]) == len(names)
    assert rows["2 seeds"]["flops"] == 2 * rows["host-stepped"]["flops"] > 0
    for name, row in rows.items():
        agents = 2 * (2 if name == "2 seeds" else 1)  # environments times seeds
        assert row["steps_per_second"] == pytest.approx(agents / row["median"])
    low, median, high = rows["host-stepped"]["of_fused"]
    assert 0 < low <= median <= high
    line = benchmark.table_row("debug", "host-stepped", rows["host-stepped"], None)
    assert line.endswith(f"{median:.1f} [{low:.1f}, {high:.1f}] of the fused")
    assert "of_fused" not in rows["1 seed"]
    assert "of_fused" not in rows["2 seeds"]


def test_loops_take_turns() -> None:
    calls = []

    def loop(name: str, iterations: int) -> Loop:
        def run(state: int) -> tuple[int, None]:
            calls.append((name, state))
            time.sleep(0.01 * iterations * (3 if name == "slow" else 1))
            return state + 1, None

        return Loop(run, 0, iterations)

    config = common.make_config("debug", {})
    loops = [loop("fast", 2), loop("slow", 1)]
    fast, slow = measure_training(config, build(config), loops, 1e9, 3)
    assert calls == [(name, i) for i in range(3) for name in ("fast", "slow")]
    assert fast["median"] >= 0.01  # seconds an iteration, not a call
    assert slow["median"] >= 0.03
    low, median, high = slow["of_fused"]
    assert low <= median <= high
