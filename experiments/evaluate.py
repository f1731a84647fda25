"""Evaluate a run's newest checkpoint: episodes, mean, interquartile mean, random policy beside it.

python -m experiments.evaluate --run=runs/catch --episodes=100
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common
from worldmodels_jax.evaluation.episodes import run_episodes, run_host_episodes
from worldmodels_jax.evaluation.scores import summary
from worldmodels_jax.files import replacing
from worldmodels_jax.training.learner import TrainState
from worldmodels_jax.training.run import LoadedRun, host_env, load, read_config
from worldmodels_jax.types import Record

_EPISODES = flags.DEFINE_integer(
    "episodes", None, "Episodes per seed; by default training.evaluation_episodes.", lower_bound=1
)
_GREEDY = flags.DEFINE_bool("greedy", False, "Take the policy's mode instead of sampling.")
_EVALUATION_SEED = flags.DEFINE_integer("evaluation_seed", 1_000_000, "Seed of the evaluation.")
_HOST_ENVS = 4  # emulators stepped together; each plays the same number of episodes


def evaluate_run(
    directory: Path, *, episodes: int | None = None, greedy: bool = False, seed: int = 1_000_000
) -> dict[str, Any]:
    """Play whole episodes with the newest checkpoint of every seed of a run.

    Args:
      directory: of the run.
      episodes: per seed; None takes the config's.
      greedy: take the policy's mode.
      seed: of the evaluation's environments and samples.

    Returns:
      What ``evaluation.json`` holds: ``episodes``, ``mean``, ``iqm``, ``random_mean``,
      ``protocol``, ``seeds``, and the mean and returns of each seed.
    """
    config, first, count = read_config(directory)
    episodes = episodes or config.training.evaluation_episodes
    seeds = list(range(first, first + count))
    run = load(directory)

    def policy(train: TrainState, memory: Record, key: jax.Array) -> jax.Array:
        return dataclasses.replace(run, train=train).choose(memory, key, greedy=greedy)

    def act_random(train: TrainState, memory: Record, key: jax.Array) -> jax.Array:
        del train
        return run.parts.actor.act_random(memory.reward.shape[0], key)

    play = _player(run, policy, episodes, seed)
    returns, lengths = [], []
    for number in seeds:
        train = run.train if number == first else load(directory, seed=number).train
        played = play(train, jax.random.fold_in(jax.random.key(seed), number))
        returns.append(np.asarray(played[0]))
        lengths.append(np.asarray(played[1]))
    play_random = _player(run, act_random, episodes, seed + 1)
    random = play_random(run.train, jax.random.key(seed + 1))[0]
    scores = summary(np.stack(returns))
    return {
        "episodes": int(np.stack(returns).size),
        "mean": scores["mean"],
        "iqm": scores["iqm"],
        "std": scores["std"],
        "interval_95": list(scores["ci"]),
        "random_mean": float(np.mean(np.asarray(random))),
        "seeds": seeds,
        "per_seed": {str(n): float(r.mean()) for n, r in zip(seeds, returns, strict=True)},
        "returns": [r.tolist() for r in returns],
        "mean_length": float(np.mean(np.stack(lengths))),
        "step": run.step,
        "preset": config.preset,
        "protocol": {
            "env": config.env.name,
            "actions": "mode" if greedy else "sampled",
            "episodes_per_seed": int(returns[0].size),
            "whole_episodes": True,
            "acting_latent": config.model.acting_latent,
            "max_episode_steps": run.parts.spec.max_episode_steps,
            "evaluation_seed": seed,
            **(
                {"sticky_actions": config.env.sticky_actions, "max_noops": config.env.max_noops}
                if run.parts.env is None
                else {}
            ),
        },
    }


def _player(
    run: LoadedRun,
    act: Callable[[TrainState, Record, jax.Array], jax.Array],
    episodes: int,
    seed: int,
) -> Callable[[TrainState, jax.Array], tuple[Any, Any]]:
    """``(train, key) -> returns, lengths``; what was learned is an argument: compiled once."""
    env, actor = run.parts.env, run.parts.actor
    if env is not None:
        return jax.jit(
            lambda train, key: run_episodes(
                env, actor, functools.partial(act, train), key, episodes=episodes
            )
        )
    compiled = jax.jit(act)

    def play(train: TrainState, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        num_envs = min(_HOST_ENVS, episodes)
        host = host_env(run.config, num_envs=num_envs, seed=seed, evaluation=True)
        try:
            choose = functools.partial(compiled, train)
            return run_host_episodes(host, actor, choose, key, episodes=episodes)
        finally:
            host.close()

    return play


def describe(result: dict[str, Any]) -> str:
    """The result as a few lines for a terminal."""
    protocol = ", ".join(f"{name}={value}" for name, value in result["protocol"].items())
    low, high = result["interval_95"]
    return (
        f"Evaluation of {result['preset']} at step {result['step']}, seeds {result['seeds']}:\n"
        f"  {result['episodes']} episodes: mean {result['mean']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}), interquartile mean {result['iqm']:.3f}\n"
        f"  random policy: mean {result['random_mean']:.3f}\n"
        f"  per seed: {', '.join(f'{n}: {m:.3f}' for n, m in result['per_seed'].items())}\n"
        f"  protocol: {protocol}"
    )


def write(directory: Path, result: dict[str, Any]) -> Path:
    """Write ``evaluation.json``, replacing an earlier one at once or not at all."""
    path = directory / "evaluation.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    return path


def main(overrides: dict[str, str]) -> None:
    """Evaluate, print, write."""
    del overrides
    directory = Path(flags.FLAGS.run)
    result = evaluate_run(
        directory,
        episodes=_EPISODES.value,
        greedy=_GREEDY.value,
        seed=_EVALUATION_SEED.value,
    )
    print(describe(result))
    print(f"Wrote {write(directory, result)}")


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Directory of the run.", required=True)
    common.run_app(main)
