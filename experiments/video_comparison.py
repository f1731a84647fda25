"""What every world model dreams after equal training on the same replay.

  python -m experiments.video_comparison --environment=Breakout-MinAtar --seeds=3 --updates=1000

The models of ``experiments.compare`` are trained on the same random experience, with the same
number of updates (of its tokenizer and of its transformer, where a model has two), and shown the
first frames of the same held-out episodes; they then predict the others from the actions alone.
Reported are PSNR and SSIM of the predicted frames, averaged over the steps that an episode lasts,
beside a prediction that repeats the last frame shown. Writes a JSON file and a contact sheet: a row
of real frames, then one of each model's.
"""

import functools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, compare, offline
from experiments.benchmark import machine
from worldmodels_jax.evaluation import cost, video
from worldmodels_jax.evaluation.scores import bootstrap_interval
from worldmodels_jax.files import replacing
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.parts import build
from worldmodels_jax.types import Record
from worldmodels_jax.viz.dream import to_rgb, write_contact_sheet

LAST_FRAME = "the last frame again"
_HELD_OUT_SEED = 10_000


def episodes_of(records: Record, length: int, count: int) -> Record:
    """The first records ``(E, length, ...)`` of the first E episodes; a row may outlast its own.

    Raises:
      ValueError: if there are not so many.
    """
    total = records.reward.shape[0]
    begins = np.flatnonzero(np.asarray(records.is_first))
    begins = begins[begins + length <= total][:count]
    if len(begins) < count:
        raise ValueError(
            f"{total} records hold the beginnings of {len(begins)} episodes, not of {count}: raise "
            "--steps, or lower --held_out."
        )
    rows = begins[:, None] + np.arange(length)
    return jax.tree.map(lambda x: np.asarray(x)[rows], records)


def errors(real: Record, frames: np.ndarray, context: int) -> dict[str, float]:
    """Means over the predicted frames that belong to the episode.

    Args:
      real: ``(E, C + L, ...)``.
      frames: ``(E, C + L, H, W, K)`` uint8.
      context: C.
    """
    length = real.reward.shape[1]
    lasts = np.arange(length) < video.episode_lengths(real)[:, None]
    lasts[:, :context] = False
    found = video.frame_errors(np.asarray(real.observation), frames)
    return {"psnr": float(found.psnr[lasts].mean()), "ssim": float(found.ssim[lasts].mean())}


def evaluate_models(
    systems: Sequence[str],
    environment: str,
    *,
    seeds: int,
    updates: int,
    steps: int,
    episodes: int,
    context: int,
    horizon: int,
) -> tuple[dict[str, list[dict[str, float]]], np.ndarray]:
    """Train and predict.

    Args:
      systems: names of ``compare.SYSTEMS``.
      environment: name in ``compare.ENVIRONMENTS``.
      seeds: S, from 0, of experience and networks.
      updates: of each kind.
      steps: of random experience.
      episodes: E, held out.
      context: C, frames shown.
      horizon: L, frames predicted.

    Returns:
      Errors and ``minutes`` of every seed, by system, and frames ``(1 + systems, C + L, H, W, 3)``
      of one episode of the first seed, the real ones first.
    """
    length = context + horizon
    rows: dict[str, list[dict[str, float]]] = {LAST_FRAME: []}
    shown: list[np.ndarray] = []
    for system in systems:
        config = compare.configuration(system, environment, steps)
        parts = build(config)
        steps_of = make_updates(config.training, parts.world_model, parts.agent)
        samplers = tuple(steps_of.parts) if config.training.sampling == "episodes" else ()
        collect = jax.jit(functools.partial(offline.experience, config, steps=steps))

        fit = jax.jit(lambda replay, key, of=steps_of: offline.train(of, replay, key, updates)[0])
        for seed in range(seeds):
            started = time.monotonic()
            replay = offline.as_replay(collect(jax.random.key(seed)), samplers)
            variables = fit(replay, jax.random.key(seed)).world_model.variables
            held_out = collect(jax.random.key(_HELD_OUT_SEED + seed))
            real = episodes_of(held_out, length, episodes)
            predicted = video.predict(
                parts.world_model, variables, real, jax.random.key(seed), context=context
            ).frames
            minutes = (time.monotonic() - started) / 60
            row = {**errors(real, predicted, context), "minutes": minutes}
            rows.setdefault(system, []).append(row)
            print(f"{system}, seed {seed}: {row}", flush=True)
            frames = np.asarray(real.observation)
            if system == systems[0]:
                last = np.repeat(frames[:, context - 1 : context], length, axis=1)
                rows[LAST_FRAME].append(errors(real, last, context))
            if seed == 0:
                longest = int(video.episode_lengths(real).argmax())
                shown += [frames[longest]] if not shown else []
                shown.append(predicted[longest])
    return rows, np.stack([to_rgb(frames) for frames in shown])


def summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means over the seeds with 95 % bootstrap intervals."""
    table: dict[str, Any] = {}
    for system, values in rows.items():
        table[system] = {"seeds": values}
        for name in ("psnr", "ssim"):
            scores = np.array([value[name] for value in values])
            interval = bootstrap_interval(scores, lambda x: float(np.mean(x)), seed=0)
            table[system][name] = {"mean": float(scores.mean()), "interval_95": interval}
        if "minutes" in values[0]:
            table[system]["minutes"] = sum(value["minutes"] for value in values)
    return table


def describe(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = ["| model | PSNR in dB | SSIM | minutes, all seeds |", "|---|---|---|---|"]
    for system, row in table.items():
        cells = [
            f"{row[name]['mean']:.{digits}f} [{row[name]['interval_95'][0]:.{digits}f}, "
            f"{row[name]['interval_95'][1]:.{digits}f}]"
            for name, digits in (("psnr", 2), ("ssim", 3))
        ]
        minutes = f"{row['minutes']:.1f}" if "minutes" in row else "-"
        lines.append("| " + " | ".join([system, *cells, minutes]) + " |")
    return "\n".join(lines)


def main(overrides: dict[str, str]) -> None:
    """Compare, print, write."""
    del overrides
    given = flags.FLAGS
    rows, frames = evaluate_models(
        given.systems,
        given.environment,
        seeds=given.seeds,
        updates=given.updates,
        steps=given.steps,
        episodes=given.held_out,
        context=given.context,
        horizon=given.horizon,
    )
    table = summary(rows)
    print(describe(table))
    result = {
        "command": shlex.join(["python", "-m", "experiments.video_comparison", *sys.argv[1:]]),
        "machine": machine(cost.matmul_ceiling()),
        "environment": given.environment,
        "table": table,
    }
    path = Path(given.out)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    scale = max(1, 48 // frames.shape[2])
    large = frames.repeat(scale, axis=2).repeat(scale, axis=3)
    sheet = path.with_suffix(".png")
    write_contact_sheet(sheet, large.reshape(-1, *large.shape[2:]), columns=large.shape[1])
    print(f"Wrote {path} and {sheet}; its rows: real, {', '.join(given.systems)}")


if __name__ == "__main__":
    flags.DEFINE_list("systems", list(compare.SYSTEMS), "What is compared.")
    flags.DEFINE_string("environment", "Breakout-MinAtar", "Where.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=1)
    flags.DEFINE_integer("updates", 1_000, "Updates of each kind.", lower_bound=1)
    flags.DEFINE_integer("steps", 10_000, "Random steps of experience.", lower_bound=100)
    flags.DEFINE_integer("held_out", 64, "Episodes of a seed that are predicted.", lower_bound=1)
    flags.DEFINE_integer("context", 4, "Frames shown.", lower_bound=1)
    flags.DEFINE_integer("horizon", 8, "Frames predicted.", lower_bound=1)
    flags.DEFINE_string("out", "results/video_comparison.json", "Where the table is written.")
    common.run_app(main)
