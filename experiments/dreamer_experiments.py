"""What of DreamerV3 holds on a CPU: Catch, scales of reward, plain heads, plain KL.

  taskset -c 1 python -m experiments.dreamer_experiments --runs=x1,x100,x100_mse,x0.1,open_loop

Writes one file a run, `results/dreamer_v3/<run>.json`; the README there sets what was measured
against what was expected. Seeds of a learning run that its file has already, with the same preset
and steps, are kept and not trained again. Names of runs:

  x1, x0.1, x100  `dreamer_v3_catch` with rewards times 1, 0.1, 100; nothing else differs
  x100_mse        rewards times 100, squared errors for reward and value, returns as they are
  breakout        `dreamer_v3_breakout`; sized at more than 15 minutes on one core
  open_loop       the world model alone, on random experience of Pendulum: KL balancing against the
                  plain KL (representation_scale=1), by the error of rewards dreamed 10 steps ahead
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, offline
from experiments.configs.dreamer_v3 import dreamer_v3_breakout, dreamer_v3_catch
from worldmodels_jax import envs
from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.data.replay import Replay, sample
from worldmodels_jax.files import replacing
from worldmodels_jax.models.dreamer_v3_config import DreamerV3Config
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.env_config import EnvConfig
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.metrics import first_nonfinite
from worldmodels_jax.training.online import make_loop
from worldmodels_jax.training.parts import build
from worldmodels_jax.types import Environment, PyTree, Record

EPISODES = 100  # over which a return is averaged
SOLVED = 0.9
CONTEXT, HORIZON = 5, 10  # frames seen and steps dreamed, of `open_loop`
TRAINING_EPISODES = 50  # of 200 steps each


def scaled(env: Environment, factor: float) -> Environment:
    """The environment with its rewards times a factor."""

    def step(state: PyTree, action: jax.Array, key: jax.Array) -> Any:
        state, time_step = env.step(state, action, key)
        return state, time_step._replace(reward=factor * time_step.reward)

    return env._replace(step=step)


def plain_heads(config: Config) -> Config:
    """Without what makes DreamerV3 indifferent to the scale of rewards."""
    assert isinstance(config.model, DreamerV3Config)
    assert isinstance(config.agent, ActorCriticConfig)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, reward_head="mse"),
        agent=dataclasses.replace(config.agent, critic_head="mse", normalise_returns=False),
    )


def plain_kl(config: Config) -> Config:
    """Both sides of the KL trained alike: the gradient of the whole KL, without stop-gradients."""
    assert isinstance(config.model, DreamerV3Config)
    model = dataclasses.replace(config.model, dynamics_scale=1.0, representation_scale=1.0)
    return dataclasses.replace(config, model=model)


# Name -> the config, and the factor of its rewards.
LEARNING: dict[str, tuple[Callable[[], Config], float]] = {
    "x1": (dreamer_v3_catch, 1.0),
    "x0.1": (dreamer_v3_catch, 0.1),
    "x100": (dreamer_v3_catch, 100.0),
    "x100_mse": (lambda: plain_heads(dreamer_v3_catch()), 100.0),
    "breakout": (dreamer_v3_breakout, 1.0),
}
OPEN_LOOP = "open_loop"


def moving_return(ended: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean return of the last ``EPISODES`` episodes after each iteration.

    Args:
      ended: ``(K,)`` episodes that ended in an iteration.
      total: ``(K,)`` the sum of their returns.

    Returns:
      ``(K,)``; NaN until so many have ended. Where an iteration ends several, all of them count.
    """
    count, sums = np.cumsum(ended), np.cumsum(total)
    start = np.searchsorted(count, count - EPISODES, side="right") - 1
    before = start >= 0
    episodes = count - np.where(before, count[start], 0)
    mean = (sums - np.where(before, sums[start], 0.0)) / np.maximum(episodes, 1)
    return np.where(count >= EPISODES, mean, np.nan)


def learn(
    config: Config, factor: float, seeds: int, steps: int, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train a preset on every seed, one after the other; returns are those before scaling.

    Args:
      config: of the preset.
      factor: that rewards are multiplied by.
      seeds: S, from 0.
      steps: agent steps.
      before: an earlier result, whose seeds are kept if it was of the same preset, factor and
        steps.
    """
    about = {"preset": config.preset, "reward_factor": factor, "steps": steps}
    before = before or {}
    same = {name: before.get(name) for name in about} == about
    rows = list(before["rows"]) if same else []
    missing = sorted(set(range(seeds)) - {row["seed"] for row in rows})
    native = build(config).env
    assert native is not None
    parts = build(config, scaled(native, factor))
    assert parts.env is not None
    num_envs, chunk = config.env.num_envs, config.training.chunk
    env = envs.batch(envs.auto_reset(parts.env), num_envs)
    loop = make_loop(config, env, parts.halves)
    init, run = jax.jit(loop.init), jax.jit(loop.run, donate_argnums=0)
    for seed in missing:
        started = time.monotonic()
        state = init(jax.random.key(seed))
        chunks: list[Mapping[str, np.ndarray]] = []
        for _ in range(-(-steps // (chunk * num_envs))):
            state, metrics = run(state)
            chunks.append(jax.tree.map(np.asarray, metrics))
        history = {name: np.concatenate([part[name] for part in chunks]) for name in chunks[0]}
        mean = moving_return(history["episode/count"], history["episode/return_sum"]) / factor
        solved = np.flatnonzero(mean >= SOLVED)
        updated = history["agent/updates"] > 0
        diverged = first_nonfinite(history, 0)
        rows.append(
            {
                "seed": seed,
                "return": float(mean[-1]),
                "steps_to_solved": int(solved[0] + 1) * num_envs if len(solved) else None,
                "diverged_at": None if diverged is None else diverged[1] * num_envs,
                "curve": [
                    [int(i + 1) * num_envs, _rounded(mean[i])]
                    for i in range(chunk - 1, len(mean), chunk)
                ],
                "last_entropy": _rounded(history["agent/actor_entropy"][updated][-chunk:].mean()),
                "last_return_scale": _rounded(
                    history["agent/return_scale"][updated][-chunk:].mean()
                ),
                "updates": int(history["world_model/updates"].sum()),
                "minutes": _rounded((time.monotonic() - started) / 60),
            }
        )
        print({name: value for name, value in rows[-1].items() if name != "curve"}, flush=True)
    return about | {"rows": sorted(rows, key=lambda row: row["seed"])}


def episodes(env: Environment, key: jax.Array, count: int) -> Record:
    """Whole episodes of random actions ``(count, length + 1, ...)``, which end at their limit."""
    spec = env.spec
    assert not spec.discrete

    def one(key: jax.Array) -> Record:
        key_reset, key_actions, key_steps = jax.random.split(key, 3)
        shape = (spec.max_episode_steps + 1, spec.num_actions)
        actions = jax.random.uniform(key_actions, shape, minval=-1.0, maxval=1.0)
        state, first = env.reset(key_reset)

        def step(state: PyTree, inputs: tuple[jax.Array, jax.Array]) -> Any:
            return env.step(state, *inputs)

        keys = jax.random.split(key_steps, spec.max_episode_steps)
        _, rest = jax.lax.scan(step, state, (actions[:-1], keys))
        time_steps = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        return Record(action=actions, **time_steps._asdict())

    return jax.vmap(one)(jax.random.split(key, count))


def reward_errors(
    model: WorldModel, variables: PyTree, records: Record, key: jax.Array
) -> jax.Array:
    """Mean absolute error of the rewards dreamed under the recorded actions.

    Args:
      model: the world model.
      variables: its variables.
      records: ``(B, CONTEXT + HORIZON, ...)``, of one episode each.
      key: a PRNG key.

    Returns:
      ``(HORIZON,)``, the error 1, 2, ... steps after the last frame seen.
    """
    key_observe, key_dream = jax.random.split(key)
    seen = jax.tree.map(lambda x: x[:, :CONTEXT], records)
    carry, _ = model.observe(variables, seen, key_observe, HORIZON)

    def step(carry: PyTree, inputs: tuple[jax.Array, jax.Array]) -> tuple[PyTree, jax.Array]:
        carry, prediction = model.imagine(variables, carry, *inputs)
        return carry, prediction.reward

    actions = jnp.moveaxis(records.action[:, CONTEXT - 1 : -1], 1, 0)
    _, dreamed = jax.lax.scan(step, carry, (actions, jax.random.split(key_dream, HORIZON)))
    return jnp.abs(dreamed - records.reward[:, CONTEXT:].T).mean(1)


def open_loop(seeds: int, count: int) -> dict[str, Any]:
    """Train the world model with either KL on the same experience and compare dreamed rewards."""
    base = dreamer_v3_catch()
    training = dataclasses.replace(
        base.training, joint=False, replay_value_scale=0.0, batch_length=CONTEXT + HORIZON
    )
    base = dataclasses.replace(base, env=EnvConfig(name="Pendulum-v1"), training=training)
    rows: list[dict[str, Any]] = []
    for name, config in (("balanced", base), ("plain", plain_kl(base))):
        parts = build(config)
        assert parts.env is not None
        updates = make_updates(config.training, parts.world_model, parts.agent)
        collect = jax.jit(lambda key, env=parts.env: episodes(env, key, TRAINING_EPISODES))

        fit = jax.jit(lambda key, ring, u=updates: offline.train(u, ring, key, count))
        error = jax.jit(lambda *a, m=parts.world_model: reward_errors(m, *a))
        for seed in range(seeds):
            started = time.monotonic()
            rings = []
            for number in (seed, 10_000 + seed):  # the latter is held out
                records = collect(jax.random.key(number))
                rings.append(Replay(records, jnp.int32(records.reward.shape[1]), {}))
            state, metrics = fit(jax.random.key(seed), rings[0])
            variables = state.world_model.variables
            held_out = sample(rings[1], jax.random.key(seed), 1000, CONTEXT + HORIZON)
            errors = error(variables, held_out, jax.random.key(seed))
            ahead = held_out.reward[:, -1]
            rows.append(
                {
                    "kl": name,
                    "seed": seed,
                    "reward_error": [_rounded(x) for x in np.asarray(errors)],
                    "error_of_the_median": _rounded(jnp.abs(ahead - jnp.median(ahead)).mean()),
                    **{
                        metric: _rounded(metrics[metric])
                        for metric in ("reconstruction_loss", "reward_loss", "dynamics_kl")
                    },
                    "posterior_entropy": _rounded(metrics["posterior_entropy"]),
                    "minutes": _rounded((time.monotonic() - started) / 60),
                }
            )
            print(rows[-1], flush=True)
    return {
        "environment": "Pendulum-v1",
        "experience": f"{TRAINING_EPISODES} episodes of random actions",
        "updates": count,
        "context": CONTEXT,
        "horizon": HORIZON,
        "rows": rows,
    }


def _rounded(x: Any) -> float:
    return float(f"{float(x):.4g}")


def main(overrides: dict[str, str]) -> None:
    """Run what is asked for, each into its file."""
    del overrides
    given = flags.FLAGS
    unknown = set(given.runs) - {*LEARNING, OPEN_LOOP}
    if unknown:
        raise ValueError(
            f"--runs={','.join(sorted(unknown))} names no run: choose from "
            f"{','.join([*LEARNING, OPEN_LOOP])}."
        )
    for name in given.runs:
        path = Path(given.out) / f"{name}.json"
        flag = ""
        if name == OPEN_LOOP:
            result = open_loop(given.seeds, given.updates)
            flag = f" --updates={given.updates}"
        else:
            make, factor = LEARNING[name]
            config = make()
            steps = given.steps or config.training.steps
            before = json.loads(path.read_text()) if path.exists() else None
            result = learn(config, factor, given.seeds, steps, before)
            flag = f" --steps={steps}"
        result |= {
            "seeds": sorted({row["seed"] for row in result["rows"]}),
            "minutes": _rounded(sum(row["minutes"] for row in result["rows"])),
            "hardware": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPU cores, "
            f"{jax.devices()[0].device_kind}, shared, jax {jax.__version__}",
            "command": f"python -m experiments.dreamer_experiments --runs={name} "
            f"--seeds={given.seeds}{flag}",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        print(f"Wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    # Only here: other programs have flags of these names, and a test may import them all.
    flags.DEFINE_list("runs", ["x1"], "Runs, in this order.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=1)
    flags.DEFINE_integer("steps", 0, "Agent steps of a learning run; 0 takes the preset's.")
    flags.DEFINE_integer("updates", 1500, "World-model updates of open_loop.", lower_bound=1)
    flags.DEFINE_string("out", "results/dreamer_v3", "Directory of the files.")
    common.run_app(main)
