"""Train every world model on the same environments with the same budget; compare their agents.

  python -m experiments.compare --environments=Catch-bsuite --seeds=5 --steps=8000

Seeds of a system are trained in one program, into a run directory of its own below ``--out``; what
is there already is kept, and a stopped comparison goes on. Every run is evaluated by whole episodes
and the table is written to ``comparison.md`` and ``comparison.json``: the mean over seeds with its
95 % bootstrap interval, the seeds' own means, parameters, updates and minutes. ``experiments.report
OUT`` has rliable's statistics of the same runs.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, evaluate
from experiments.benchmark import machine
from worldmodels_jax.evaluation import cost
from worldmodels_jax.evaluation.scores import bootstrap_interval
from worldmodels_jax.files import replacing
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.load import read_config, saved_steps
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import train
from worldmodels_jax.types import PyTree

# System -> preset of the small environments, and what of it is changed.
SYSTEMS: dict[str, tuple[str, dict[str, str]]] = {
    "GIT-STORM": ("", {}),
    "STORM": ("", {"model.prior": "mlp"}),
    "DreamerV3": ("dreamer_v3_", {}),
    "IRIS": ("iris_", {}),
    "Delta-IRIS": ("delta_iris_", {}),
}
# Environment -> name of its presets, by itself and after a system's prefix.
ENVIRONMENTS = {
    "Catch-bsuite": ("catch", "catch"),
    "Breakout-MinAtar": ("minatar_breakout", "breakout"),
}


def configuration(system: str, environment: str, steps: int) -> Config:
    """What a system is trained with.

    Raises:
      ValueError: for an unknown system or environment.
    """
    for flag, name, known in (
        ("systems", system, SYSTEMS),
        ("environments", environment, ENVIRONMENTS),
    ):
        if name not in known:
            raise ValueError(f"unknown --{flag}={name}: choose among {', '.join(known)}.")
    prefix, changes = SYSTEMS[system]
    alone, after_prefix = ENVIRONMENTS[environment]
    config = common.make_config(prefix + after_prefix if prefix else alone, changes)
    training = dataclasses.replace(config.training, steps=steps, checkpoint_every=steps)
    return dataclasses.replace(config, training=training)


def count_parameters(variables: PyTree) -> int:
    """Trained numbers of a model or an agent."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))


class StoppedError(Exception):
    """A signal has ended the comparison; a checkpoint was saved."""


def run(config: Config, directory: Path, seeds: int) -> dict[str, Any]:
    """Train and evaluate, or read what was.

    Args:
      config: of the run.
      directory: of the run.
      seeds: S, from 0.

    Returns:
      A row of the table.

    Raises:
      StoppedError: by a signal, with a checkpoint saved.
    """
    path = directory / "evaluation.json"
    # Another config, or other seeds, are for ``train`` to refuse, or to go on with.
    same = path.exists() and read_config(directory)[:3] == (config, 0, seeds)
    if not same or saved_steps(directory)[-1:] != [config.training.steps]:
        with common.stop_signals() as should_stop:
            train(config, directory, num_seeds=seeds, should_stop=should_stop)
        if should_stop():
            raise StoppedError
        evaluate.write(directory, evaluate.evaluate_run(directory))
    result = json.loads(path.read_text())
    means = [result["per_seed"][str(seed)] for seed in range(seeds)]
    rows = read_metrics(directory / "metrics.jsonl")
    before = [0, *(row["step"] for row in rows)]
    seconds = sum(
        (row["step"] - start) / row["steps_per_second"]
        for row, start in zip(rows, before, strict=False)
    )
    parts = build(config)
    key = jax.random.key(0)
    return {
        "mean": float(np.mean(means)),
        "interval_95": bootstrap_interval(np.array(means), lambda x: float(np.mean(x)), seed=0),
        "seeds": means,
        "random": result["random_mean"],
        "episodes_per_seed": result["episodes"] // seeds,
        "minutes": seconds / 60,
        "world_model_parameters": count_parameters(jax.eval_shape(parts.world_model.init, key)),
        "agent_parameters": count_parameters(jax.eval_shape(parts.agent.init, key)),
        "updates": {
            name.removesuffix("/updates"): int(sum(row[name] for row in rows if name in row))
            for name in rows[-1]
            if name.endswith("/updates")
        },
        "preset": config.preset,
    }


def compare(
    systems: Sequence[str], environments: Sequence[str], seeds: int, steps: int, out: Path
) -> dict[str, dict[str, Any]]:
    """Environment -> system -> row, see ``run``."""
    configs = {
        (environment, system): configuration(system, environment, steps)
        for environment in environments
        for system in systems
    }
    table: dict[str, dict[str, Any]] = {environment: {} for environment in environments}
    for (environment, system), config in configs.items():
        directory = out / f"{environment}_{system}"
        print(f"{system} on {environment}: {directory}", flush=True)
        table[environment][system] = run(config, directory, seeds)
    return table


def describe(table: dict[str, dict[str, Any]], steps: int) -> str:
    """The tables in Markdown, one an environment."""
    lines = []
    for environment, rows in table.items():
        first = next(iter(rows.values()))
        lines += [
            f"{environment}, {steps:,} agent steps, {len(first['seeds'])} seeds, "
            f"{first['episodes_per_seed']} episodes a seed; random policy {first['random']:.2f}.",
            "",
            "| system | mean [95 % interval] | seeds | parameters: model, agent | updates "
            "| minutes, all seeds |",
            "|---|---|---|---|---|---|",
        ]
        for system, row in rows.items():
            low, high = row["interval_95"]
            cells = [
                system,
                f"{row['mean']:.2f} [{low:.2f}, {high:.2f}]",
                ", ".join(f"{mean:.2f}" for mean in row["seeds"]),
                f"{row['world_model_parameters']:,}, {row['agent_parameters']:,}",
                ", ".join(f"{count:,} {part}" for part, count in row["updates"].items()),
                f"{row['minutes']:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(overrides: dict[str, str]) -> None:
    """Compare, print, write."""
    if overrides:
        raise ValueError(
            f"--config.{next(iter(overrides))} would change every system: the comparison takes "
            "its presets as they are; use experiments.train for a single run."
        )
    given = flags.FLAGS
    out = Path(given.out)
    try:
        table = compare(given.systems, given.environments, given.seeds, given.steps, out)
    except StoppedError:
        print("Stopped: the same command goes on.")
        return
    text = describe(table, given.steps)
    print(text)
    command = (
        f"python -m experiments.compare --systems={','.join(given.systems)} "
        f"--environments={','.join(given.environments)} --seeds={given.seeds} "
        f"--steps={given.steps} --out={given.out}"
    )
    saved = {
        "command": command,
        "machine": machine(cost.matmul_ceiling()),
        "steps": given.steps,
        "table": table,
    }
    for name, content in (("md", text + "\n"), ("json", json.dumps(saved, indent=2) + "\n")):
        with replacing(out / f"comparison.{name}") as temporary:
            temporary.write_text(content)
    print(f"Wrote {out / 'comparison.md'} and {out / 'comparison.json'}")


if __name__ == "__main__":
    flags.DEFINE_list("systems", list(SYSTEMS), "What is compared.")
    flags.DEFINE_list("environments", ["Catch-bsuite"], f"Among {', '.join(ENVIRONMENTS)}.")
    flags.DEFINE_integer("seeds", 5, "Seeds, from 0.", lower_bound=1)
    flags.DEFINE_integer("steps", 8_000, "Agent steps of every run.", lower_bound=1)
    flags.DEFINE_string("out", "runs/compare", "Where runs and tables are written.")
    common.run_app(main)
