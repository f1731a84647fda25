"""A run: a directory that holds a config, checkpoints, metrics and results, and can be resumed."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from worldmodels_jax import envs
from worldmodels_jax.agents.acting import Actor, make_actor
from worldmodels_jax.agents.actor_critic import Agent, make_actor_critic
from worldmodels_jax.config import diff, from_dict, to_dict
from worldmodels_jax.files import replacing
from worldmodels_jax.models.git_storm import make_git_storm
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.training import metrics as metrics_lib
from worldmodels_jax.training.checkpoint import CheckpointError, abstract, open_checkpoints
from worldmodels_jax.training.config import Config, validate
from worldmodels_jax.training.host import make_host_loop
from worldmodels_jax.training.learner import TrainState, make_updates
from worldmodels_jax.training.online import (
    SEED_AXES,
    Halves,
    LoopState,
    make_halves,
    make_loop,
    over_seeds,
)
from worldmodels_jax.types import Environment, EnvSpec, Record, TimeStep

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
# What may change between the start of a run and its resumption: how long, how often.
_RESUMABLE = {
    "training.steps",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.evaluation_episodes",
}

Report = Callable[[int, Mapping[str, float]], None]  # (agent steps done, metrics of the chunk)


class Parts(NamedTuple):
    """The pure functions a config stands for."""

    spec: EnvSpec
    env: Environment | None  # one environment without auto-reset; None if stepped by the host
    world_model: WorldModel
    agent: Agent
    actor: Actor
    halves: Halves


def host_env(config: Config, *, num_envs: int, seed: int, evaluation: bool) -> envs.AtariVector:
    """The host environments of a config; evaluation counts whole games, not lives."""
    e = config.env
    limit = {} if e.max_episode_steps is None else {"full_episode_frames": 4 * e.max_episode_steps}
    return envs.make_host(
        e.name,
        num_envs,
        seed,
        sticky_actions=e.sticky_actions,
        max_noops=e.max_noops,
        life_loss_terminal=e.life_loss and not evaluation,
        **limit,
    )


def build(config: Config) -> Parts:
    """Assemble environment, world model, agent and loop.

    Raises:
      ValueError: for fields that do not fit together or an unknown environment.
    """
    validate(config)
    env = None
    if envs.is_host_env(config.env.name):
        probe = host_env(config, num_envs=1, seed=0, evaluation=False)
        spec = probe.spec
        probe.close()
    else:
        limit = config.env.max_episode_steps
        env = envs.make(config.env.name, **({} if limit is None else {"max_episode_steps": limit}))
        spec = env.spec
    world_model = make_git_storm(config.model, spec)
    agent = make_actor_critic(config.agent, world_model.feature_size, spec)
    actor = make_actor(world_model, agent, spec, config.training.acting_context)
    updates = make_updates(config.training, world_model, agent)
    return Parts(spec, env, world_model, agent, actor, make_halves(config, spec, updates, actor))


def train(
    config: Config,
    directory: Path,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    report: Report = lambda step, metrics: None,
) -> TrainState:
    """Train, or go on training, the run in a directory.

    Args:
      config: the run's config; of an existing run it must be the same but for its length.
      directory: made if missing; holds ``config.json``, ``checkpoints/``, ``metrics.jsonl`` and
        ``tensorboard/``.
      seed: of the first seed.
      num_seeds: S; seeds ``seed .. seed + S - 1`` are trained at once, mapped over a leading axis.
      report: called after every chunk.

    Returns:
      The final train state; with S > 1 its leaves have a leading seed axis.

    Raises:
      ValueError: for a config that is wrong in itself.
      CheckpointError: if the directory holds another run, or a damaged checkpoint.
      NonFiniteLossError: if a metric is NaN or infinite; the last checkpoint stays.
    """
    parts = build(config)
    if num_seeds > 1 and parts.env is None:
        raise ValueError(
            f"--seeds={num_seeds} trains seeds in one compiled program, which "
            f"{config.env.name!r}, stepped by the host, cannot join: start one run per seed."
        )
    _claim(directory, config, seed, num_seeds)
    key = jax.random.key(seed)
    host = None
    if parts.env is None:
        host = host_env(config, num_envs=config.env.num_envs, seed=seed, evaluation=False)
        host_loop = make_host_loop(host, parts.halves, chunk=config.training.chunk)
        state, run = host_loop.init(key), host_loop.run
    else:
        batched = envs.batch(envs.auto_reset(parts.env), config.env.num_envs)
        loop = make_loop(config, batched, parts.halves)
        if num_seeds > 1:
            loop = over_seeds(loop)
            key = jax.vmap(jax.random.key)(seed + np.arange(num_seeds))
        state = jax.jit(loop.init)(key)
        run = jax.jit(loop.run, donate_argnums=0)

    checkpoints = open_checkpoints(directory / CHECKPOINTS, keep=config.training.keep_checkpoints)
    with_extra = host.save_state if host else None
    try:
        done = checkpoints.steps()[-1] if checkpoints.steps() else 0
        if done:
            state, extra = checkpoints.restore(done, abstract(state))
            if host:
                host.load_state(extra["host_env"].encode())
        state = _loop(
            config, directory, state, run, checkpoints, done, with_extra, num_seeds, report
        )
    finally:
        checkpoints.close()
        if host:
            host.close()
    return state.train


def _loop(
    config: Config,
    directory: Path,
    state: LoopState,
    run: Callable[[LoopState], tuple[LoopState, Any]],
    checkpoints: Any,
    done: int,
    host_state: Callable[[], bytes] | None,
    num_seeds: int,
    report: Report,
) -> LoopState:
    """Chunks, metrics and checkpoints from step ``done`` to the end."""
    per_chunk = config.training.chunk * config.env.num_envs
    saved = done
    with metrics_lib.open_writer(directory, step=done) as writer:
        while done < config.training.steps:
            started = time.monotonic()
            state, history = run(state)
            history = {name: np.asarray(value) for name, value in jax.device_get(history).items()}
            if num_seeds > 1:  # (S, K) -> (K, S)
                history = {name: value.T for name, value in history.items()}
            bad = metrics_lib.first_nonfinite(history, done // config.env.num_envs)
            if bad is not None:
                name, iteration = bad
                raise metrics_lib.NonFiniteLossError(
                    metrics_lib.nonfinite_message(name, iteration * config.env.num_envs)
                )
            done += per_chunk
            summary = summarise(history)
            summary["steps_per_second"] = per_chunk / (time.monotonic() - started)
            writer.write(done, summary)
            last = done >= config.training.steps
            if last or done // config.training.checkpoint_every > saved // (
                config.training.checkpoint_every
            ):
                extra = {"host_env": host_state().decode()} if host_state else {}
                checkpoints.save(done, state, extra)
                saved = done
            report(done, summary)
    return state


def summarise(history: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One chunk's metrics as scalars.

    Args:
      history: ``(K,)`` per iteration, or ``(K, S)`` with several seeds.

    Returns:
      Means over the iterations that made an update (and over seeds), the mean return and length of
      the episodes that ended, where any did, and ``seed_<i>/episode/return`` for several seeds.
    """
    out: dict[str, float] = {}
    for name, value in history.items():
        part = name.split("/")[0]
        if part == "episode":
            continue
        if name.endswith("/updates"):
            out[name] = float(value.sum(0).mean())
            continue
        active = history[f"{part}/updates"] > 0
        if active.any():
            out[name] = float(value[active].mean())
    count = history["episode/count"]
    for name in ("return", "length"):
        total = history[f"episode/{name}_sum"]
        if count.sum() > 0:
            out[f"episode/{name}"] = float(total.sum() / count.sum())
        if name == "return" and count.ndim == 2:
            for i in range(count.shape[1]):
                if count[:, i].sum() > 0:
                    out[f"seed_{i}/episode/return"] = float(total[:, i].sum() / count[:, i].sum())
    return out


def _claim(directory: Path, config: Config, seed: int, num_seeds: int) -> None:
    """Write the run's config, or check that the directory holds this very run."""
    path = directory / CONFIG_FILE
    wanted = {"config": to_dict(config), "seed": seed, "num_seeds": num_seeds}
    if not path.exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise CheckpointError(
                f"{directory} exists and holds no run of this library (no {CONFIG_FILE}): nothing "
                "was written; choose another --run directory."
            )
        _write_config(path, wanted)
        return
    found, found_seed, found_seeds = read_config(directory)
    changed = {
        name: values for name, values in diff(found, config).items() if name not in _RESUMABLE
    }
    if found_seed != seed:
        changed["seed"] = (found_seed, seed)
    if found_seeds != num_seeds:
        changed["seeds"] = (found_seeds, num_seeds)
    if changed:
        lines = "; ".join(
            f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in changed.items()
        )
        raise CheckpointError(
            f"{directory} holds a run with another config ({lines}). Nothing was changed: choose "
            "another --run directory, or ask for the config it was started with."
        )
    _write_config(path, wanted)


def _write_config(path: Path, saved: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(saved, indent=2) + "\n")


def read_config(directory: Path) -> tuple[Config, int, int]:
    """The config of a run, its first seed and the number of seeds.

    Raises:
      CheckpointError: if the directory holds no run.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(
            f"{directory} holds no run (no {CONFIG_FILE}): give --run the directory that a "
            "training command printed, e.g. runs/catch."
        )
    try:
        saved = json.loads(path.read_text())
        return from_dict(Config, saved["config"]), saved["seed"], saved["num_seeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a config this version can read ({error}): it was damaged or written by "
            "another version. Nothing was changed; start a new run in another --run directory."
        ) from error


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained run: its parts and what it learned. See ``load``."""

    directory: Path
    config: Config
    seed: int
    step: int
    parts: Parts
    train: TrainState

    @property
    def env(self) -> Environment:
        """E=1 environment with auto-reset: ``reset(key)``, ``step(state, action, key)``.

        Raises:
          ValueError: for environments that are stepped by the host.
        """
        if self.parts.env is None:
            raise ValueError(
                f"{self.config.env.name} is stepped by the host: make it with "
                "worldmodels_jax.envs.make_host."
            )
        return envs.batch(envs.auto_reset(self.parts.env), 1)

    def memory(self, num_envs: int = 1) -> Record:
        """An empty memory, to be handed to ``act``."""
        return self.parts.actor.init(num_envs)

    def act(self, memory: Record, time_step: TimeStep, key: jax.Array) -> tuple[Record, jax.Array]:
        """Choose actions ``(E, ...)`` at time steps ``(E, ...)``; pure, fit for jit and scan."""
        actor = self.parts.actor
        memory = actor.push(memory, time_step)
        action = self.choose(memory, key)
        return actor.record_action(memory, action), action

    def choose(self, memory: Record, key: jax.Array, *, greedy: bool = False) -> jax.Array:
        """Actions for a memory whose newest record is the current time step."""
        act = self.parts.actor.act_greedy if greedy else self.parts.actor.act
        variables = self.train.world_model.variables, self.train.agent.variables
        return act(*variables, memory, key)


def load(directory: str | Path, *, seed: int | None = None) -> LoadedRun:
    """Load the newest checkpoint of a run, to act, evaluate or dream with it.

    Args:
      directory: of the run.
      seed: which of its seeds; by default the first.

    Raises:
      CheckpointError: if there is no run, no checkpoint, no such seed, or a damaged one.
    """
    directory = Path(directory)
    config, first, count = read_config(directory)
    index = 0 if seed is None else seed - first
    if not 0 <= index < count:
        raise CheckpointError(
            f"{directory} holds seeds {first}..{first + count - 1}, not seed {seed}."
        )
    parts = build(config)
    checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(
                f"{directory} holds no finished checkpoint yet: train for at least "
                f"training.checkpoint_every={config.training.checkpoint_every} steps."
            )
        updates = make_updates(config.training, parts.world_model, parts.agent)
        like = jax.eval_shape(updates.init, jax.random.key(0))
        if count > 1:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), like)
        state = checkpoints.restore_train(steps[-1], abstract(like))
    finally:
        checkpoints.close()
    if count > 1:
        state = select_seed(state, index)
    return LoadedRun(directory, config, first + index, steps[-1], parts, state)


def select_seed(train: TrainState, index: int) -> TrainState:
    """One seed of a train state with a leading seed axis."""
    assert SEED_AXES.train == 0
    return jax.tree.map(lambda x: x[index], train)
