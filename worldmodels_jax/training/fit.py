"""The offline loop: a system trained on a data set, by the same steps and into the same directory.

Batches are gathered on the host, a chunk ahead of the device; a chunk of updates is one
``lax.scan``. Checkpoints, metrics, seeds and devices are those of the online loop.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.training.checkpoint import abstract, open_checkpoints
from worldmodels_jax.training.data_config import load_data
from worldmodels_jax.training.directory import CHECKPOINTS, claim
from worldmodels_jax.training.drive import Pace, Report, drive
from worldmodels_jax.training.fit_config import FitConfig, num_steps, validate
from worldmodels_jax.training.fit_load import LoadedFit, load_fit, read_fit_config
from worldmodels_jax.training.fit_loop import (
    FitState,
    FitTrain,
    evaluated,
    make_fit_loop,
    make_system,
)
from worldmodels_jax.training.input import open_input
from worldmodels_jax.training.parallel import How, make_mapping

__all__ = ["FitTrain", "LoadedFit", "fit", "load_fit", "read_fit_config"]

# What may change between the start of a run and its resumption.
_RESUMABLE = {"training.checkpoint_every", "training.keep_checkpoints"}
_LENGTH = {"training.steps", "training.epochs"}
_SHOWN = 8  # examples that pictures are drawn of

Show = Callable[[int, Mapping[str, np.ndarray]], None]  # (steps done, pictures by name)


# How the leaves of a FitState are mapped over seeds: "is an update due" stays one branch.
_SEED_AXES = FitState(train=0, key=0, step=None)  # type: ignore[arg-type]


def fit(
    config: FitConfig,
    directory: Path,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    data_dir: Path | None = None,
    dataset: Dataset | None = None,
    num_devices: int | None = None,
    parallel: How = "shard_map",
    report: Report = lambda step, metrics: None,
    show: Show | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitTrain:
    """Train, or go on training, the run in a directory.

    Args:
      config: the run's config; of an existing run it must be the same but for its length.
      directory: made if missing; holds ``config.json``, ``checkpoints/``, ``metrics.jsonl`` and
        ``tensorboard/``.
      seed: of the first seed.
      num_seeds: S; seeds ``seed .. seed + S - 1`` are trained at once, mapped over a leading axis.
      data_dir: where the files of the data set are, for sets that are read.
      dataset: of the caller's own, in place of the one that ``config.data`` names; or that one,
        where it is at hand (``training.data_config.load_data``).
      num_devices: over which batches are split; one by default, or with several hosts all of
        theirs. A run may go on with another number, but not to the same bits.
      parallel: how the devices are mapped over.
      report: called after every chunk, of several hosts on the first alone.
      show: called after the first chunk and after every checkpoint with the system's pictures of
        the first test examples, by the first seed.
      should_stop: asked between chunks; when it says so a checkpoint is saved and training ends.

    Returns:
      What was learned; with S > 1 its leaves have a leading seed axis.

    Raises:
      ValueError: for a config that is wrong in itself, or does not fit the data.
      CheckpointError: if the directory holds another run, or a damaged checkpoint, or a checkpoint
        cannot be written.
      OSError: if the disk is full, or a file of the data set is missing.
      NonFiniteLossError: if a metric is NaN or infinite; the last checkpoint stays.
    """
    mapping = make_mapping(num_devices, parallel)
    validate(config.training, mapping.num_devices)
    data = load_data(config.data, data_dir) if dataset is None else dataset
    system = make_system(config, data, mapping.axis_name)
    steps = num_steps(config.training, data.spec.num_train)
    loop = make_fit_loop(config, system, steps, mapping.axis_name)
    started_with = {
        "seed": seed,
        "num_seeds": num_seeds,
        "own_dataset": None if data.config == config.data else data.name,
    }
    claim(directory, config, started_with, _resumable(config))

    init, run = loop.init, loop.run
    if num_seeds > 1:
        init = jax.vmap(init, out_axes=_SEED_AXES)
        run = jax.vmap(run, in_axes=(_SEED_AXES, 0), out_axes=(_SEED_AXES, 0))
    seeds = [seed + i for i in range(num_seeds)]

    def begin(numbers: jax.Array) -> FitState:
        keys = jax.vmap(jax.random.key)(numbers)
        return init(keys if num_seeds > 1 else keys[0])

    state = mapping.compile(begin, (None,), None)(np.asarray(seeds, np.uint32))
    compiled = mapping.compile(run, (None, 2 if num_seeds > 1 else 1), (None, None), donate=True)
    draw = jax.jit(system.samples)
    shown = {name: np.asarray(x[:_SHOWN]) for name, x in data.test.items()}

    with contextlib.ExitStack() as stack:  # whatever fails, what was opened is closed
        checkpoints = open_checkpoints(
            directory / CHECKPOINTS, keep=config.training.keep_checkpoints
        )
        stack.callback(checkpoints.close)
        done = checkpoints.steps()[-1] if checkpoints.steps() else 0
        if done:
            state, _ = checkpoints.restore(done, abstract(state))
        source = open_input(
            data.train, config.training.batch_size, seeds, config.training.chunk, steps, mapping
        )
        stack.callback(source.close)

        def run_chunk(state: FitState, iterations: int) -> tuple[FitState, Any]:
            return compiled(state, source.read(int(state.step), iterations))

        def after(step: int, state: FitState, was_saved: bool) -> None:
            if show is None or not (was_saved or step <= config.training.chunk):
                return
            train = jax.tree.map(lambda x: x.addressable_data(0), state.train)
            variables = evaluated(train if num_seeds == 1 else jax.tree.map(lambda x: x[0], train))
            show(step, jax.device_get(draw(variables, shown, jax.random.key(0))))

        t = config.training
        state = drive(
            directory,
            state,
            run_chunk,
            checkpoints,
            done,
            Pace(steps, 1, t.chunk, t.checkpoint_every, exact=True),
            num_seeds=num_seeds,
            measured=lambda: {"input_wait_seconds": source.waited()},
            report=report,
            after=after,
            should_stop=should_stop,
        )
    return state.train


def _resumable(config: FitConfig) -> set[str]:
    """A longer run is the same so far, unless a rate falls towards its end."""
    parts = [getattr(config.parts, field.name) for field in dataclasses.fields(config.parts)]
    falls = any(part.schedule != "constant" and not part.stop for part in parts)
    return _RESUMABLE if falls else _RESUMABLE | _LENGTH
