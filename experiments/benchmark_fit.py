"""Measure ``fit``: updates per second, and how long the device waits for its batches.

  python -m experiments.benchmark_fit --presets=alpha_tcvae_sprites16,nowcasting_gpt --steps=1000

Each preset trains in a temporary directory, as ``experiments.fit`` would, without accounts of the
first chunk, which compiles. A chunk's waiting is the time in which the host had no batches ready;
how many batches a second it gathers when it does nothing else is measured before.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import common
from experiments.benchmark import machine
from worldmodels_jax.data.dataset import Arrays
from worldmodels_jax.evaluation import cost
from worldmodels_jax.files import replacing
from worldmodels_jax.training.data_config import load_data
from worldmodels_jax.training.fit import fit
from worldmodels_jax.training.fit_config import FitConfig
from worldmodels_jax.training.input import gather
from worldmodels_jax.training.metrics import read_metrics

_GATHERED = 5  # chunks


def measure(config: FitConfig, steps: int, num_seeds: int) -> dict[str, Any]:
    """One row of the table.

    Args:
      config: of the run; its parts' first and last steps are left out, so that all are trained.
      steps: updates after the first chunk.
      num_seeds: trained at once.

    Returns:
      Quartiles over chunks of the steps per second and of the batches per second that the host
      gathers, all seeds' batches of a step being one, and the share of the time spent waiting.

    Raises:
      ValueError: unless the steps are whole chunks.
    """
    chunk = config.training.chunk
    if steps % chunk:
        raise ValueError(
            f"--steps={steps} is no whole number of chunks of {config.preset}: give a multiple of "
            f"training.chunk={chunk}."
        )
    training = dataclasses.replace(
        config.training, steps=chunk + steps, epochs=0, checkpoint_every=10**9
    )
    always = {
        field.name: dataclasses.replace(getattr(config.parts, field.name), start=0, stop=0)
        for field in dataclasses.fields(config.parts)
    }
    parts = dataclasses.replace(config.parts, **always)
    config = dataclasses.replace(config, training=training, parts=parts)
    data = load_data(config.data, None)
    gathered = [
        chunk / _gathering(data.train, training.batch_size, num_seeds, i * chunk, chunk)
        for i in range(_GATHERED)
    ]
    with tempfile.TemporaryDirectory() as directory:
        fit(config, Path(directory), num_seeds=num_seeds, dataset=data)
        rows = read_metrics(Path(directory) / "metrics.jsonl")[1:]
    speeds = [row["steps_per_second"] for row in rows]
    seconds = sum(chunk / speed for speed in speeds)
    return {
        "steps_per_second": np.quantile(speeds, [0.25, 0.5, 0.75]).tolist(),
        "gathered_per_second": np.quantile(gathered, [0.25, 0.5, 0.75]).tolist(),
        "waited": sum(row["input_wait_seconds"] for row in rows) / seconds,
        "chunks": len(rows),
        "batch_size": training.batch_size,
        "seeds": num_seeds,
    }


def _gathering(
    arrays: Arrays, batch_size: int, num_seeds: int, first_step: int, num_steps: int
) -> float:
    """Seconds to gather a chunk."""
    started = time.monotonic()
    gather(arrays, batch_size, range(num_seeds), first_step, num_steps)
    return time.monotonic() - started


def describe(preset: str, row: dict[str, Any]) -> str:
    """A line for a terminal."""
    low, median, high = row["steps_per_second"]
    return (
        f"{preset}: {median:,.1f} steps/s ({low:,.1f} to {high:,.1f}; quartiles of {row['chunks']} "
        f"chunks, B = {row['batch_size']}, {row['seeds']} seeds), {row['waited']:.2%} of the time "
        f"waiting for batches, which alone are gathered at {row['gathered_per_second'][1]:,.0f}/s"
    )


def main(overrides: dict[str, str]) -> None:
    """Measure, print, write."""
    del overrides
    given = flags.FLAGS
    rows = {}
    for preset in given.presets:
        config = common.make_fit_config(preset, {})
        rows[preset] = measure(config, given.steps, given.seeds)
        print(describe(preset, rows[preset]), flush=True)
    if given.out:
        with replacing(Path(given.out)) as temporary:
            result = {"machine": machine(cost.matmul_ceiling()), "presets": rows}
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("presets", ["alpha_tcvae_sprites16"], "Presets of experiments.fit.")
    flags.DEFINE_integer("steps", 1_000, "Updates that are measured.", lower_bound=1)
    flags.DEFINE_integer("seeds", 1, "Seeds trained at once.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write.")
    common.run_app(main)
