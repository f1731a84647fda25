"""What the benchmark of ``fit`` measures, on a system of seconds."""

import pytest

from experiments import benchmark_fit, common

OVERRIDES = {
    "data.count": "60",
    "model.widths": "(8,)",
    "training.chunk": "3",
    "training.batch_size": "8",
    "parts.model.start": "5",
}


def test_a_row_tells_speed_and_waiting() -> None:
    config = common.make_fit_config("beta_vae_sprites16", OVERRIDES)
    row = benchmark_fit.measure(config, steps=6, num_seeds=2)
    assert (row["chunks"], row["batch_size"], row["seeds"]) == (2, 8, 2)  # the first is not counted
    for name in ("steps_per_second", "gathered_per_second"):
        low, median, high = row[name]
        assert 0 < low <= median <= high
    assert 0 <= row["waited"] <= 1
    told = benchmark_fit.describe("tiny", row)
    assert told.startswith(f"tiny: {row['steps_per_second'][1]:,.1f} steps/s")
    assert "2 chunks, B = 8, 2 seeds" in told


def test_steps_are_whole_chunks() -> None:
    config = common.make_fit_config("beta_vae_sprites16", OVERRIDES)
    with pytest.raises(ValueError, match=r"--steps=7 .* of beta_vae_sprites16: .*chunk=3"):
        benchmark_fit.measure(config, steps=7, num_seeds=1)
