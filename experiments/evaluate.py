"""Evaluate a run's newest checkpoint: episodes, mean, interquartile mean, random policy beside it.

Of a run of ``experiments.fit``, which has no agent: the tables of its system.

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

from experiments import common, evaluate_fit
from worldmodels_jax.agents.acting import Memory
from worldmodels_jax.envs.craftax import ACHIEVEMENT
from worldmodels_jax.evaluation.crafter import crafter_score
from worldmodels_jax.evaluation.episodes import run_episodes, run_host_episodes
from worldmodels_jax.evaluation.scores import summary
from worldmodels_jax.files import replacing
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.directory import is_fit
from worldmodels_jax.training.env_config import AtariConfig, EnvConfig
from worldmodels_jax.training.learner import TrainState
from worldmodels_jax.training.parts import EnvSource
from worldmodels_jax.training.run import LoadedRun, load, read_config

_EPISODES = flags.DEFINE_integer(
    "episodes", None, "Episodes per seed; by default training.evaluation_episodes.", lower_bound=1
)
_GREEDY = flags.DEFINE_bool("greedy", False, "Take the policy's mode instead of sampling.")
_EVALUATION_SEED = flags.DEFINE_integer("evaluation_seed", 1_000_000, "Seed of the evaluation.")
_STEP = flags.DEFINE_integer("step", None, "Agent steps of the checkpoint; by default the newest.")
_HOST_ENVS = 4  # host environments stepped together, where training steps fewer


def evaluate_run(
    directory: Path,
    *,
    episodes: int | None = None,
    greedy: bool = False,
    seed: int = 1_000_000,
    step: int | None = None,
    env: EnvSource | None = None,
) -> dict[str, Any]:
    """Play whole episodes with a checkpoint of every seed of a run.

    Args:
      directory: of the run.
      episodes: per seed; None takes the config's.
      greedy: take the policy's mode.
      seed: of the evaluation's environments and samples.
      step: agent steps of the checkpoint; None takes the newest.
      env: the environment of the caller's own that the run was trained with, if it was.

    Returns:
      What ``evaluation.json`` holds: ``episodes``, ``mean``, ``iqm``, ``random_mean``,
      ``protocol``, ``seeds``, and the mean and returns of each seed; where the environment has
      outcomes, the mean of each over all episodes as ``outcomes``, and where these are Crafter's
      achievements, the mean of the seeds' ``crafter_score``.
    """
    config, first, count, _ = read_config(directory)
    episodes = episodes or config.training.evaluation_episodes
    seeds = list(range(first, first + count))
    run = load(directory, step=step, env=env)

    def policy(train: TrainState, memory: Memory, key: jax.Array) -> tuple[Memory, jax.Array]:
        return dataclasses.replace(run, train=train).choose(memory, key, greedy=greedy)

    def act_random(train: TrainState, memory: Memory, key: jax.Array) -> tuple[Memory, jax.Array]:
        del train
        return run.parts.actor.act_random(memory, key)

    play = _player(run, policy, episodes, seed)
    returns, lengths, outcomes = [], [], []
    for number in seeds:
        other = run if number == first else load(directory, seed=number, step=step, env=env)
        train = other.train
        played = play(train, jax.random.fold_in(jax.random.key(seed), number))
        returns.append(np.asarray(played[0]))
        lengths.append(np.asarray(played[1]))
        outcomes.append({k: float(np.asarray(x, np.float64).mean()) for k, x in played[2].items()})
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
        **outcomes_of_seeds(outcomes),
        "step": run.step,
        "preset": config.preset,
        "protocol": {
            **_protocol(config),
            "environment": run.parts.spec.name,
            "actions": "mode" if greedy else "sampled",
            "episodes_per_seed": int(returns[0].size),
            "episodes_per_environment": (
                1 if run.parts.env is not None else -(-episodes // _host_envs(config, episodes))
            ),
            "whole_episodes": True,
            "acting_latent": getattr(config.model, "acting_latent", "posterior"),
            "max_episode_steps": run.parts.spec.max_episode_steps,
            "evaluation_seed": seed,
        },
    }


def outcomes_of_seeds(seeds: list[dict[str, float]]) -> dict[str, Any]:
    """What ``evaluation.json`` holds of outcomes.

    Args:
      seeds: the mean of each outcome over the episodes of a seed, by name; for every seed.

    Returns:
      Nothing where there are no outcomes; else ``outcomes``, their means over the seeds, and, if
      all of them are achievements, ``crafter_score``, the mean of the seeds' scores in percent.
    """
    names = list(seeds[0])
    if not names:
        return {}
    means = {name: float(np.mean([seed[name] for seed in seeds])) for name in names}
    if not all(name.startswith(ACHIEVEMENT) for name in names):
        return {"outcomes": means}
    scores = [crafter_score([100 * rate for rate in seed.values()]) for seed in seeds]
    return {"outcomes": means, "crafter_score": float(np.mean(scores))}


def _protocol(config: Config) -> dict[str, Any]:
    """What of the environment's settings a score depends on."""
    if isinstance(config.env, EnvConfig):
        return {"action_repeat": 1}
    fields = dataclasses.asdict(config.env)
    for name in ("game", "task", "id", "num_envs", "workers", "max_episode_steps", "life_loss"):
        fields.pop(name, None)
    if isinstance(config.env, AtariConfig):
        return {"action_repeat": 4, **fields, "life_loss": "training only"}
    return {"action_repeat": 1, **fields}


def _host_envs(config: Config, episodes: int) -> int:
    """Host environments stepped together; each plays the same number of episodes."""
    return min(max(_HOST_ENVS, config.env.num_envs), episodes)


def _player(
    run: LoadedRun,
    act: Callable[[TrainState, Memory, jax.Array], tuple[Memory, jax.Array]],
    episodes: int,
    seed: int,
) -> Callable[[TrainState, jax.Array], tuple[Any, Any, Any]]:
    """``(train, key) -> returns, lengths, outcomes``; the learned is an argument: compiled once."""
    env, open_host, actor = run.parts.env, run.parts.open_host, run.parts.actor
    if open_host is None:
        assert env is not None
        return jax.jit(
            lambda train, key: run_episodes(
                env, actor, functools.partial(act, train), key, episodes=episodes
            )
        )
    compiled = jax.jit(act)

    def play(
        train: TrainState, key: jax.Array
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        host = open_host(_host_envs(run.config, episodes), seed, True)
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
    crafter = result.get("crafter_score")
    score = "" if crafter is None else f"  Crafter score: {crafter:.2f} %\n"
    return (
        f"Evaluation of {result['preset']} at step {result['step']}, seeds {result['seeds']}:\n"
        f"  {result['episodes']} episodes: mean {result['mean']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}), interquartile mean {result['iqm']:.3f}\n"
        f"  random policy: mean {result['random_mean']:.3f}\n"
        f"  per seed: {', '.join(f'{n}: {m:.3f}' for n, m in result['per_seed'].items())}\n"
        f"{score}"
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
    if is_fit(directory):
        refuse_playing()
        written = evaluate_fit.evaluate(directory, step=_STEP.value)
        print("Wrote\n" + "\n".join(f"  {path}" for path in written))
        return
    evaluate_fit.refuse_flags("an agent's run")
    result = evaluate_run(
        directory,
        episodes=_EPISODES.value,
        greedy=_GREEDY.value,
        seed=_EVALUATION_SEED.value,
        step=_STEP.value,
    )
    print(describe(result))
    print(f"Wrote {write(directory, result)}")


def refuse_playing() -> None:
    """Refuse flags of agents for a run that has none."""
    for flag in (_EPISODES, _GREEDY, _EVALUATION_SEED):
        if flag.present:
            raise ValueError(f"--{flag.name} is for agents, this run has none: leave it out.")


if __name__ == "__main__":
    flags.adopt_module_key_flags(evaluate_fit)  # --help shows them
    flags.DEFINE_string("run", None, "Directory of the run.", required=True)
    common.run_app(main)
