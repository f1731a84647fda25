"""Does the prior matter? Valid imagined frames on SpriteJump, prior by prior, seed by seed.

  python -m experiments.prior_comparison --seeds=3 --out=results/sprite_jump_prior.json

SpriteJump's sprite jumps each step to one of nine places, drawn uniformly: the next frame cannot be
predicted, but it holds exactly one whole sprite, so its tokens depend on one another. A prior that
samples tokens independently imagines pieces of several sprites. Every row is trained on the same
random experience, with the same number of updates; rows of one trained prior differ only in how it
is decoded.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common
from experiments.configs.small import sprite_jump
from experiments.offline import as_replay, experience, train
from worldmodels_jax.data.replay import sample
from worldmodels_jax.envs.sprite_jump import is_valid_frame
from worldmodels_jax.evaluation.open_loop import open_loop
from worldmodels_jax.files import replacing
from worldmodels_jax.models.git_storm import GitStormConfig, make_git_storm
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.parts import build
from worldmodels_jax.types import EnvSpec, PyTree, Record

# Trained prior -> decodings of it: (T_draft, T_revise, repetitions), or None for the MLP.
DECODINGS: dict[str, dict[str, tuple[int, int, int] | None]] = {
    "mlp": {"STORM, independent MLP prior": None},
    "maskgit": {
        "GIT-STORM, one round (T=1)": (1, 1, 1),
        "GIT-STORM, T_revise=2, 1 revision": (1, 2, 1),
        "GIT-STORM, T_revise=4, 1 revision": (1, 4, 1),
        "GIT-STORM, T_revise=4, 3 revisions": (1, 4, 3),
        "GIT-STORM, T_draft=8, no revision": (8, 1, 0),
    },
    "maskgit, input=current": {
        "GIT-STORM as published (masks z_t), T_revise=4, 3 revisions": (1, 4, 3),
    },
}


def model_config(base: GitStormConfig, prior: str) -> GitStormConfig:
    """The config a prior is trained with."""
    if prior == "mlp":
        return dataclasses.replace(base, prior="mlp")
    shown: Any = "current" if prior.endswith("current") else "next"
    return dataclasses.replace(base, maskgit=dataclasses.replace(base.maskgit, input=shown))


def decoded_with(config: GitStormConfig, rounds: tuple[int, int, int] | None) -> GitStormConfig:
    """The same trained model, decoded with other rounds."""
    if rounds is None:
        return config
    draft, revise, repetitions = rounds
    head = dataclasses.replace(
        config.maskgit, draft_rounds=draft, revise_rounds=revise, repetitions=repetitions
    )
    return dataclasses.replace(config, maskgit=head)


def dreamer(
    config: GitStormConfig, spec: EnvSpec, context: int
) -> Callable[[PyTree, Record, jax.Array], jax.Array]:
    """A compiled open-loop dream, ``(variables, records, key) -> frames``."""
    world_model = make_git_storm(config, spec)
    return jax.jit(
        lambda variables, records, key: open_loop(
            world_model, variables, records, key, context=context
        )
    )


def compare(seeds: int, count: int, steps: int) -> dict[str, Any]:
    """Train every prior on every seed, dream with every decoding, count valid frames."""
    base = sprite_jump()
    context, horizon = base.training.dream_context, base.training.horizon
    table: dict[str, list[float]] = {}
    minutes: dict[str, float] = {}
    perplexity: dict[str, list[float]] = {}
    reconstruction: list[float] = []
    for prior, decodings in DECODINGS.items():
        assert isinstance(base.model, GitStormConfig)
        model = model_config(base.model, prior)
        config = dataclasses.replace(base, model=model)
        parts = build(config)
        updates = make_updates(config.training, parts.world_model, parts.agent)
        started = time.monotonic()
        collect = jax.jit(lambda k, c=config: experience(c, k, steps))
        run = jax.jit(lambda replay, k, u=updates: train(u, replay, k, count))
        dreams = {
            name: dreamer(decoded_with(model, rounds), parts.spec, context)
            for name, rounds in decodings.items()
        }
        for seed in range(seeds):
            records = collect(jax.random.key(seed))
            replay = as_replay(records)
            state, metrics = run(replay, jax.random.key(seed))
            perplexity.setdefault(prior, []).append(float(metrics["token_perplexity"]))
            held_out = collect(jax.random.key(10_000 + seed))
            ring = as_replay(held_out)
            starts = sample(ring, jax.random.key(seed), 128, context + horizon)
            for name, dream in dreams.items():
                frames = dream(state.world_model.variables, starts, jax.random.key(seed))
                valid = np.asarray(is_valid_frame(frames))
                table.setdefault(name, []).append(float(valid[:, context:].mean()))
                reconstruction.append(float(valid[:, :context].mean()))
            row = {name: f"{table[name][-1]:.3f}" for name in dreams}
            print(f"{prior}, seed {seed}: {row}", flush=True)
        minutes[prior] = (time.monotonic() - started) / 60
    return {
        "valid_dreamed_frames": table,
        "valid_reconstructions": [min(reconstruction), max(reconstruction)],
        "training_token_perplexity": perplexity,
        "minutes": minutes,
        "frames_per_cell": 128 * horizon,
        "updates": count,
        "experience_steps": steps,
        "seeds": list(range(seeds)),
        "preset": base.preset,
        "hardware": f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        "command": "python -m experiments.prior_comparison "
        f"--seeds={seeds} --updates={count} --steps={steps}",
    }


def describe(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    count = len(result["seeds"])
    head = "| prior and decoding | " + " | ".join(f"seed {s}" for s in result["seeds"])
    lines = [head + " | mean |", "|---" * (count + 2) + "|"]
    for name, values in result["valid_dreamed_frames"].items():
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {cells} | {np.mean(values):.3f} |")
    low, high = result["valid_reconstructions"]
    lines.append(f"\nReconstructed context frames that are valid: {low:.3f} to {high:.3f}.")
    return "\n".join(lines)


def main(overrides: dict[str, str]) -> None:
    """Compare, print, write."""
    del overrides
    given = flags.FLAGS
    result = compare(given.seeds, given.updates, given.steps)
    print(describe(result))
    path = Path(given.out)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {path}")


if __name__ == "__main__":
    # Only here: other programs have flags of these names, and a test may import them all.
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=1)
    flags.DEFINE_integer("updates", 4000, "World-model updates of each prior.", lower_bound=1)
    flags.DEFINE_integer("steps", 10_000, "Random steps of experience.", lower_bound=100)
    flags.DEFINE_string("out", "results/sprite_jump_prior.json", "Where the table is written.")
    common.run_app(main)
