"""A run: a directory that holds a config, checkpoints, metrics and results, and can be resumed."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldmodels_jax import envs
from worldmodels_jax.training.checkpoint import abstract, open_checkpoints
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.directory import CHECKPOINTS, claim
from worldmodels_jax.training.drive import Pace, Report, drive
from worldmodels_jax.training.host import make_host_loop, restarted
from worldmodels_jax.training.learner import TrainState
from worldmodels_jax.training.load import LoadedRun, load, read_config, select_seed
from worldmodels_jax.training.online import Halves, LoopState, make_loop, over_seeds
from worldmodels_jax.training.parallel import (
    EACH_ENV,
    DeviceMapping,
    How,
    any_process,
    make_mapping,
    with_seeds,
)
from worldmodels_jax.training.parts import EnvSource, build
from worldmodels_jax.types import Environment, HostVector

__all__ = ["LoadedRun", "Report", "load", "read_config", "select_seed", "train"]

# What may change between the start of a run and its resumption: how long, how often, how compiled.
_RESUMABLE = {
    "training.steps",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.evaluation_episodes",
    "training.small_products",
}


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
    mapping = make_mapping(num_devices, parallel, small_products=config.training.small_products)
    parts = build(config, env, num_devices=mapping.num_devices, axis_name=mapping.axis_name)
    if num_seeds > 1 and parts.env is None:
        raise ValueError(
            f"--seeds={num_seeds} trains seeds in one compiled program, which "
            f"{parts.spec.name!r}, stepped by the host, cannot join: start one run per seed."
        )
    started_with = {
        "seed": seed,
        "num_seeds": num_seeds,
        "own_environment": None if env is None else parts.spec.name,
    }
    claim(directory, config, started_with, _RESUMABLE)
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
        t = config.training
        state = drive(
            directory,
            state,
            run,
            checkpoints,
            done,
            Pace(t.steps, config.env.num_envs, t.chunk, t.checkpoint_every),
            num_seeds=num_seeds,
            extra=lambda: _host_state(host),
            report=report,
            should_stop=should_stop,
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


def _host_state(host: HostVector | None) -> dict[str, Any]:
    """What a checkpoint keeps of host environments: JSON, nothing for JAX-native ones."""
    if host is None:
        return {}
    # JSON is written by the first host alone, which does not know the others' environments.
    state = host.save_state() if jax.process_count() == 1 else None
    return {"host_env": None if state is None else state.decode()}
