"""Do IRIS's and Delta-IRIS's tokens do what is claimed? On ScrollGrid, part by part.

  python -m experiments.token_experiments --part=tokenizers --seeds=3 --out=results/delta_iris

* tokenizers: what four tokens given the frame before lose, beside 16 and 4 that are not given it;
* i_tokens: how well rewards are predicted with an embedding of every frame, and without;
* speed: how fast models of 4, 16 and 64 tokens a frame imagine;
* disentangle: what random tokens change in a dream.

Each part writes a JSON file of its name. Training is offline, on random experience.
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, disentangle, tokenizer_errors
from experiments.benchmark import machine
from experiments.benchmark_parts import random_records
from experiments.token_training import (
    STEPS,
    Budget,
    configuration,
    experience,
    parts_of,
    train_tokenizer,
    train_transformer,
)
from worldmodels_jax.envs.scroll_grid import make_scroll_grid
from worldmodels_jax.evaluation import cost
from worldmodels_jax.files import replacing
from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.models.iris import make_iris
from worldmodels_jax.models.iris_config import delta_iris_tiny16, iris_tiny16
from worldmodels_jax.models.world_model import Loss, WorldModel
from worldmodels_jax.ops import twohot
from worldmodels_jax.types import EnvSpec, PyTree, Record

# Four types of tile, the last of them rewarded: where it lies, only frames tell.
REWARDED: dict[str, Any] = {"probabilities": (0.5, 0.15, 0.15, 0.2), "reward_tile": 3}
SPEED_BATCH, SPEED_STEPS = 16, 15


# Rewards with and without I-tokens


def held_out_metrics(
    loss: Loss, variables: PyTree, records: Record, batch: int = 64
) -> dict[str, float]:
    """Means of a loss's metrics over all windows that do not overlap, of 12 transitions each."""
    episodes, total = records.reward.shape
    count = total // (STEPS + 1)

    def cut(x: jax.Array) -> jax.Array:
        return x[:, : count * (STEPS + 1)].reshape(episodes * count, STEPS + 1, *x.shape[2:])

    windows, measure = jax.tree.map(cut, records), jax.jit(loss)
    rows, weights = [], []
    for start in range(0, episodes * count, batch):
        some = jax.tree.map(lambda x, s=start: x[s : s + batch], windows)
        rows.append(measure(variables, some, jax.random.key(0))[1][1])
        weights.append(some.reward.shape[0])
    return {
        name: float(np.average([float(row[name]) for row in rows], weights=weights))
        for name in rows[0]
    }


def reward_references(rewards: np.ndarray, num_bins: int) -> dict[str, float]:
    """The reward loss of who knows all rewards, and of who knows only how frequent they are.

    The former is not 0: a reward of 1 lies between two bins and is spread over both.
    """
    bins = twohot.symlog_bins(num_bins)
    target = np.asarray(twohot.two_hot(twohot.symlog(jnp.asarray(rewards).ravel()), bins))

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)

    return {"known": float(entropy(target).mean()), "base_rate": float(entropy(target.mean(0)))}


def compare_i_tokens(seed: int, budget: Budget) -> dict[str, Any]:
    """Train a transformer with and one without I-tokens on the tokens of one frozen tokenizer.

    Args:
      seed: of the experience and of the networks.
      budget: how much to train.

    Returns:
      Held-out losses ``with`` and ``without``, and what they are to be compared with.
    """
    env, base = make_scroll_grid(**REWARDED), configuration("delta", 4)
    key_train, key_test, key_fit, key_dynamics = jax.random.split(jax.random.key(seed), 4)
    records, _ = experience(env, key_train, budget.episodes)
    held_out, _ = experience(env, key_test, budget.held_out)
    variables, metrics = train_tokenizer(base, env.spec, records, key_fit, budget)
    row: dict[str, Any] = {
        "tokenizer_l2": metrics["reconstruction_l2"],
        "reward_references": reward_references(
            np.asarray(held_out.reward[:, 1:]), base.world_model.num_bins
        ),
    }
    for name, i_tokens in (("with", True), ("without", False)):
        config, started = configuration("delta", 4, i_tokens=i_tokens), time.process_time()
        trained, _ = train_transformer(config, env.spec, variables, records, key_dynamics, budget)
        seconds = time.process_time() - started
        loss = parts_of(config, env.spec)["dynamics"]
        row[name] = {**held_out_metrics(loss, trained, held_out), "cpu_seconds": seconds}
        print(f"seed {seed}, {name} I-tokens: {row[name]}", flush=True)
    return row


def conclude_i_tokens(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and ``passed``, which is of every seed."""
    return {
        "means": {
            name: {
                kind: float(np.mean([row[name][kind] for row in rows]))
                for kind in ("reward_loss", "token_loss")
            }
            for name in ("with", "without")
        },
        "passed": {
            "reward loss: with < 0.5 without": all(
                row["with"]["reward_loss"] < 0.5 * row["without"]["reward_loss"] for row in rows
            )
        },
    }


# Speed


def imagining(
    model: WorldModel, spec: EnvSpec, batch: int, steps: int
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """A function that imagines from one real frame, and its arguments.

    Args:
      model: the world model.
      spec: of the environment.
      batch: B.
      steps: L.

    Returns:
      ``(variables, carry, actions (L, B), key) -> features (L, B, F)``, and these four.
    """
    key = jax.random.key(0)
    context = random_records(spec, (batch, 1))
    actions = jax.random.randint(key, (steps, batch), 0, spec.num_actions)
    variables = jax.jit(model.init)(key)
    carry, _ = jax.jit(model.observe, static_argnums=3)(variables, context, key, steps)

    def imagine(variables: PyTree, carry: Any, actions: jax.Array, key: jax.Array) -> jax.Array:
        def step(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            carry, prediction = model.imagine(variables, carry, *inputs)
            return carry, prediction.features

        return jax.lax.scan(step, carry, (actions, jax.random.split(key, steps)))[1]

    return imagine, (variables, carry, actions, key)


def measure_speed(
    repeats: int = 9, batch: int = SPEED_BATCH, steps: int = SPEED_STEPS
) -> dict[str, Any]:
    """Time imagination with transformers of equal width and depth.

    Args:
      repeats: timed calls of each, at least.
      batch: B.
      steps: L.

    Returns:
      By model, seconds of a call and what follows from them.
    """
    spec = make_scroll_grid().spec
    models = {
        "delta-4": make_delta_iris(delta_iris_tiny16(), spec),
        "iris-16": make_iris(iris_tiny16(16), spec),
        "iris-64": make_iris(iris_tiny16(64), spec),
    }
    row = {}
    for name, model in models.items():
        function, args = imagining(model, spec, batch, steps)
        compiled = cost.compile_function(function, *args)
        timing = cost.time_call(compiled.call, *args, repeats=repeats)
        row[name] = {
            **timing._asdict(),
            "batch": batch,
            "steps": steps,
            "milliseconds_per_step": 1e3 * timing.median / steps,
            "milliseconds_per_step_quartiles": [
                1e3 * value / steps for value in (timing.low, timing.high)
            ],
            "steps_per_second": steps / timing.median,
            "gigaflops_per_step": cost.matmul_flops(function, *args) / steps / 1e9,
            "compilation_seconds": compiled.seconds,
        }
        print(f"{name}: {row[name]}", flush=True)
    return row


def conclude_speed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """``passed``: Delta-4 is faster than IRIS-16, and that than IRIS-64, in the median."""
    (row,) = rows
    rate = [row[name]["steps_per_second"] for name in ("delta-4", "iris-16", "iris-64")]
    return {"passed": {"speed: delta-4 > iris-16 > iris-64": rate[0] > rate[1] > rate[2]}}


# The program


class Part(NamedTuple):
    """An experiment.

    Attributes:
      measure: ``(seed, budget, out, images) -> row``; the directories are None but for seed 0.
      conclude: what follows from the rows of all seeds.
    """

    measure: Callable[[int, Budget, Path | None, Path | None], dict[str, Any]]
    conclude: Callable[[list[dict[str, Any]]], dict[str, Any]]


PARTS = {
    "tokenizers": Part(
        lambda seed, budget, out, images: tokenizer_errors.measure_seed(
            seed, budget, images and images / "delta_iris_reconstructions.png"
        ),
        tokenizer_errors.conclude,
    ),
    "i_tokens": Part(
        lambda seed, budget, out, images: compare_i_tokens(seed, budget), conclude_i_tokens
    ),
    "speed": Part(lambda seed, budget, out, images: measure_speed(), conclude_speed),
    "disentangle": Part(
        lambda seed, budget, out, images: disentangle.measure_seed(seed, budget, out),
        disentangle.conclude,
    ),
}


def run_part(name: str, seeds: int, budget: Budget, out: Path, images: Path) -> dict[str, Any]:
    """Run a part and write its file, anew after every seed.

    Args:
      name: in ``PARTS``.
      seeds: S, from 0; speed has one.
      budget: how much to train.
      out: directory of the JSON file and the dreams.
      images: directory of the figure of reconstructions.

    Returns:
      What the file holds.
    """
    path, part = out / f"{name}.json", PARTS[name]
    about = machine(cost.matmul_ceiling())
    started, cpu = time.monotonic(), time.process_time()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for seed in range(1 if name == "speed" else seeds):
        rows.append(part.measure(seed, budget, *((out, images) if seed == 0 else (None, None))))
        result = {
            "rows": rows,
            **part.conclude(rows),
            "seeds": list(range(len(rows))),
            "budget": dataclasses.asdict(budget),
            "minutes": (time.monotonic() - started) / 60,
            "cpu_minutes": (time.process_time() - cpu) / 60,
            "machine": about,
            "command": "python -m experiments.token_experiments " + shlex.join(sys.argv[1:]),
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {path} ({result['minutes']:.1f} minutes); passed: {result.get('passed')}")
    return result


def main(overrides: dict[str, str]) -> None:
    """Run the parts asked for."""
    del overrides
    given = flags.FLAGS
    for name in PARTS if given.part == "all" else (given.part,):
        run_part(name, given.seeds, Budget(), Path(given.out), Path(given.images))


if __name__ == "__main__":
    flags.DEFINE_enum("part", "all", [*PARTS, "all"], "Which experiment.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=1)
    flags.DEFINE_string("out", "results/delta_iris", "Directory of the JSON files and the dreams.")
    flags.DEFINE_string("images", "docs/images", "Directory of the figure of reconstructions.")
    common.run_app(main)
