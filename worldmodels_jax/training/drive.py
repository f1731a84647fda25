"""The chunks of a run one after another, with their metrics and checkpoints: any loop's."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from worldmodels_jax.training import metrics as metrics_lib
from worldmodels_jax.training.checkpoint import Checkpoints
from worldmodels_jax.training.parallel import any_process, is_main_process

State = TypeVar("State")
Report = Callable[[int, Mapping[str, float]], None]  # (steps done, metrics of the chunk)


class Pace(NamedTuple):
    """How a run goes on.

    Attributes:
      steps: of the whole run.
      per_iteration: steps of one iteration of the loop.
      chunk: iterations of a compiled call.
      checkpoint_every: steps.
      exact: whether the last chunk is cut short so that there are just as many steps; else it is
        whole.
    """

    steps: int
    per_iteration: int
    chunk: int
    checkpoint_every: int
    exact: bool = False


def drive(
    directory: Path,
    state: State,
    run: Callable[[State, int], tuple[State, Any]],
    checkpoints: Checkpoints,
    done: int,
    pace: Pace,
    *,
    num_seeds: int = 1,
    extra: Callable[[], dict[str, Any]] = dict,
    report: Report = lambda step, metrics: None,
    measured: Callable[[], dict[str, float]] = dict,
    after: Callable[[int, State, bool], None] = lambda step, state, was_saved: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> State:
    """Go on from a step to the end.

    Args:
      directory: of the run.
      state: after ``done`` steps; a NamedTuple with the field ``train``.
      run: ``(state, iterations) -> state, metrics (K,)``, or ``(S, K)`` with several seeds.
      checkpoints: of the run.
      done: steps so far.
      pace: of the run.
      num_seeds: S.
      extra: what else a checkpoint keeps, JSON values.
      report: called after every chunk, of several hosts on the first alone.
      measured: further metrics of a chunk.
      after: called after every chunk with its state, and whether that was saved; of several hosts
        on the first alone.
      should_stop: asked between chunks; when it says so a checkpoint is saved and the run ends.

    Returns:
      The last state.

    Raises:
      CheckpointError: if a checkpoint cannot be written.
      OSError: if the disk is full for the metrics.
      NonFiniteLossError: if a metric is NaN or infinite; the last checkpoint stays.
    """
    last_saved, main = done, is_main_process()
    with (
        metrics_lib.open_writer(directory, step=done)
        if main
        else contextlib.nullcontext() as writer
    ):
        stopped = any_process(should_stop())
        while done < pace.steps and not stopped:
            started = time.monotonic()
            checkpoints.check()
            first = done // pace.per_iteration
            # A chunk that was cut short is completed first, so that all later ones are as if it
            # had not been.
            iterations = pace.chunk - first % pace.chunk
            if pace.exact:
                iterations = min(iterations, pace.steps // pace.per_iteration - first)
            state, history = run(state, iterations)
            history = {name: np.asarray(value) for name, value in jax.device_get(history).items()}
            if num_seeds > 1:  # (S, K) -> (K, S)
                history = {name: value.T for name, value in history.items()}
            bad = metrics_lib.first_nonfinite(history, first)
            if bad is not None:
                name, iteration = bad
                raise metrics_lib.NonFiniteLossError(
                    metrics_lib.nonfinite_message(name, iteration * pace.per_iteration)
                )
            steps = len(next(iter(history.values()))) * pace.per_iteration
            done += steps
            summary = summarise(history) | measured()
            summary["steps_per_second"] = steps / (time.monotonic() - started)
            if writer:
                writer.write(done, summary)
            stopped = any_process(should_stop())
            is_due = done // pace.checkpoint_every > last_saved // pace.checkpoint_every
            is_due |= stopped or done >= pace.steps
            if is_due:
                checkpoints.save(done, state, extra())
                last_saved = done
            if main:
                after(done, state, is_due)
                report(done, summary)
    return state


def summarise(history: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One chunk's metrics as scalars.

    Args:
      history: ``(K,)`` per iteration, or ``(K, S)`` with several seeds.

    Returns:
      Means over the iterations that made an update (and over seeds); where there are episodes, the
      mean return and length of those that ended, where any did, and ``seed_<i>/episode/return`` for
      several seeds; of what is no episode's, ``seed_<i>/<part>/loss`` for several seeds.
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
    return out | (_episodes(history) if "episode/count" in history else _losses(history))


def _episodes(history: Mapping[str, np.ndarray]) -> dict[str, float]:
    out: dict[str, float] = {}
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


def _losses(history: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The losses of each seed, where there are several."""
    return {
        f"seed_{i}/{name}": float(seed.mean())
        for name, value in history.items()
        if name.endswith("/loss") and value.ndim == 2
        for i, seed in enumerate(value[history[f"{name.split('/')[0]}/updates"].any(1)].T)
        if len(seed)
    }
