"""A run: a directory that holds a config, checkpoints, metrics and results, and can be resumed."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldmodels_jax import envs
from worldmodels_jax.config import diff, to_dict
from worldmodels_jax.files import replacing
from worldmodels_jax.training import metrics as metrics_lib
from worldmodels_jax.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    abstract,
    open_checkpoints,
)
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.host import make_host_loop, restarted
from worldmodels_jax.training.learner import TrainState
from worldmodels_jax.training.load import (
    CHECKPOINTS,
    CONFIG_FILE,
    LoadedRun,
    load,
    read_config,
    select_seed,
)
from worldmodels_jax.training.online import Halves, LoopState, make_loop, over_seeds
from worldmodels_jax.training.parallel import (
    EACH_ENV,
    DeviceMapping,
    How,
    any_process,
    barrier,
    is_main_process,
    make_mapping,
    with_seeds,
)
from worldmodels_jax.training.parts import EnvSource, build
from worldmodels_jax.types import Environment, HostVector

__all__ = ["LoadedRun", "Report", "load", "read_config", "select_seed", "summarise", "train"]

# What may change between the start of a run and its resumption: how long, how often.
_RESUMABLE = {
    "training.steps",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.evaluation_episodes",
}

Report = Callable[[int, Mapping[str, float]], None]  # (agent steps done, metrics of the chunk)


def train(
    config: Config,
    directory: Path,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    env: EnvSource | None = None,
    num_devices: int | None = None,
    parallel: How = "shard_map",
    report: Report = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train, or go on training, the run in a directory.

    Args:
      config: the run's config; of an existing run it must be the same but for its length.
      directory: made if missing; holds ``config.json``, ``checkpoints/``, ``metrics.jsonl`` and
        ``tensorboard/``.
      seed: of the first seed.
      num_seeds: S; seeds ``seed .. seed + S - 1`` are trained at once, mapped over a leading axis.
      env: an environment of the caller's own, in place of the one that ``config.env`` names: pure
        functions, or ``(num_envs, seed, evaluation) -> HostVector``.
      num_devices: over which environments, batches and dreams are split; one by default, or with
        several hosts all of theirs. A run may go on with another number, but not to the same bits.
      parallel: how the devices are mapped over.
      report: called after every chunk, of several hosts on the first alone.
      should_stop: asked between iterations of a host-stepped loop, between chunks of a compiled
        one; when it says so a checkpoint is saved and training ends early.

    Returns:
      The final train state; with S > 1 its leaves have a leading seed axis.

    Raises:
      ValueError: for a config that is wrong in itself.
      CheckpointError: if the directory holds another run, or a damaged checkpoint, or a checkpoint
        cannot be written.
      OSError: if the disk is full for the config or the metrics.
      NonFiniteLossError: if a metric is NaN or infinite; the last checkpoint stays.
    """
    mapping = make_mapping(num_devices, parallel)
    parts = build(config, env, num_devices=mapping.num_devices, axis_name=mapping.axis_name)
    if num_seeds > 1 and parts.env is None:
        raise ValueError(
            f"--seeds={num_seeds} trains seeds in one compiled program, which "
            f"{parts.spec.name!r}, stepped by the host, cannot join: start one run per seed."
        )
    _claim(directory, config, seed, num_seeds, None if env is None else parts.spec.name)
    with contextlib.ExitStack() as stack:  # whatever fails, what was opened is closed
        host = None
        if parts.open_host is not None:
            share = config.env.num_envs // jax.process_count()
            host = parts.open_host(share, seed + jax.process_index() * share, False)
            stack.callback(host.close)
            host_loop = make_host_loop(
                host, parts.halves, mapping, should_stop=lambda: any_process(should_stop())
            )
            state, run = host_loop.init(seed), host_loop.run
        else:
            assert parts.env is not None
            state, run = _compiled(config, parts.env, parts.halves, mapping, seed, num_seeds)

        checkpoints = open_checkpoints(
            directory / CHECKPOINTS, keep=config.training.keep_checkpoints
        )
        stack.callback(checkpoints.close)
        done = checkpoints.steps()[-1] if checkpoints.steps() else 0
        if done:
            state, extra = checkpoints.restore(done, abstract(state))
            if host and extra["host_env"] is not None:
                host.load_state(extra["host_env"].encode())
            elif host:
                state = restarted(state, host.reset(), mapping)
        state = _loop(
            config, directory, state, run, checkpoints, done, host, num_seeds, report, should_stop
        )
    return state.train


def _compiled(
    config: Config,
    env: Environment,
    halves: Halves,
    mapping: DeviceMapping,
    seed: int,
    num_seeds: int,
) -> tuple[LoopState, Callable[[LoopState, int], tuple[LoopState, Any]]]:
    """The first state of a compiled loop, and the loop as ``(state, iterations) -> ...``."""
    batched = envs.batch(envs.auto_reset(env), config.env.num_envs // mapping.num_devices)
    loop = make_loop(config, batched, halves, axis_name=mapping.axis_name)
    layout = EACH_ENV
    if num_seeds > 1:
        loop, layout = over_seeds(loop), with_seeds(EACH_ENV)

    def init(seeds: jax.Array) -> LoopState:
        return loop.init(
            jax.vmap(jax.random.key)(seeds) if num_seeds > 1 else jax.random.key(seeds[0])
        )

    compiled = mapping.compile(loop.run, (layout,), (layout, None), donate=True)

    def run(state: LoopState, iterations: int) -> tuple[LoopState, Any]:
        assert iterations == config.training.chunk
        return compiled(state)

    seeds = (seed + np.arange(num_seeds)).astype(np.uint32)
    return mapping.compile(init, (None,), layout)(seeds), run


def _loop(
    config: Config,
    directory: Path,
    state: LoopState,
    run: Callable[[LoopState, int], tuple[LoopState, Any]],
    checkpoints: Checkpoints,
    done: int,
    host: HostVector | None,
    num_seeds: int,
    report: Report,
    should_stop: Callable[[], bool],
) -> LoopState:
    """Chunks, metrics and checkpoints from step ``done`` to the end."""
    chunk, num_envs = config.training.chunk, config.env.num_envs
    checkpoint_every = config.training.checkpoint_every
    saved = done
    main = is_main_process()
    with (
        metrics_lib.open_writer(directory, step=done)
        if main
        else contextlib.nullcontext() as writer
    ):
        stopped = any_process(should_stop())
        while done < config.training.steps and not stopped:
            started = time.monotonic()
            checkpoints.check()
            # A chunk that was cut short is completed first, so that all later ones are as if it
            # had not been.
            state, history = run(state, chunk - done // num_envs % chunk)
            history = {name: np.asarray(value) for name, value in jax.device_get(history).items()}
            if num_seeds > 1:  # (S, K) -> (K, S)
                history = {name: value.T for name, value in history.items()}
            bad = metrics_lib.first_nonfinite(history, done // num_envs)
            if bad is not None:
                name, iteration = bad
                raise metrics_lib.NonFiniteLossError(
                    metrics_lib.nonfinite_message(name, iteration * num_envs)
                )
            steps = len(history["episode/count"]) * num_envs
            done += steps
            summary = summarise(history)
            summary["steps_per_second"] = steps / (time.monotonic() - started)
            if writer:
                writer.write(done, summary)
            stopped = any_process(should_stop())
            due = done // checkpoint_every > saved // checkpoint_every
            if due or stopped or done >= config.training.steps:
                checkpoints.save(done, state, _host_state(host))
                saved = done
            if main:
                report(done, summary)
    return state


def _host_state(host: HostVector | None) -> dict[str, Any]:
    """What a checkpoint keeps of host environments: JSON, nothing for JAX-native ones."""
    if host is None:
        return {}
    # JSON is written by the first host alone, which does not know the others' environments.
    state = host.save_state() if jax.process_count() == 1 else None
    return {"host_env": None if state is None else state.decode()}


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


def _claim(
    directory: Path, config: Config, seed: int, num_seeds: int, own_environment: str | None
) -> None:
    """Write the run's config, or check that the directory holds this very run."""
    path = directory / CONFIG_FILE
    wanted = {"config": to_dict(config), "seed": seed, "num_seeds": num_seeds}
    if own_environment is not None:
        wanted["own_environment"] = own_environment
    if path.exists():
        _check_same(directory, config, seed, num_seeds, own_environment)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(
            f"{directory} exists and holds no run of this library (no {CONFIG_FILE}): nothing "
            "was written; choose another --run directory."
        )
    barrier("all hosts have looked at the run directory")
    if is_main_process():
        _write_config(path, wanted)


def _check_same(
    directory: Path, config: Config, seed: int, num_seeds: int, own_environment: str | None
) -> None:
    found = read_config(directory)
    changed = {
        name: values
        for name, values in diff(found.config, config).items()
        if name not in _RESUMABLE
    }
    for name, old, new in (
        ("seed", found.seed, seed),
        ("seeds", found.num_seeds, num_seeds),
        ("own environment", found.own_environment, own_environment),
    ):
        if old != new:
            changed[name] = (old, new)
    if changed:
        lines = "; ".join(
            f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in changed.items()
        )
        raise CheckpointError(
            f"{directory} holds a run with another config ({lines}). Nothing was changed: choose "
            "another --run directory, or ask for the config it was started with."
        )


def _write_config(path: Path, saved: Mapping[str, Any]) -> None:
    text = json.dumps(saved, indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        return
    with metrics_lib.writing(path), replacing(path) as temporary:
        temporary.write_text(text)
