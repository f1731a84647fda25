"""The updates of an offline run: pure functions of one device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.models.offline import Batch, OfflineSystem, PartLoss
from worldmodels_jax.ops.collectives import per_device
from worldmodels_jax.training.fit_config import FitConfig, PartTraining, trained_parts
from worldmodels_jax.training.gradient import Learner, gradient_step, repeat
from worldmodels_jax.training.optimisers import scheduled_adam
from worldmodels_jax.types import Metrics, PyTree


class FitTrain(NamedTuple):
    """Everything that is learned."""

    learner: Learner
    average: PyTree  # moving average of the parameters; () where there is none


class FitState(NamedTuple):
    """Everything a run is: saved, it resumes bit-identically."""

    train: FitTrain
    key: jax.Array
    step: jax.Array  # () int32, updates made


class FitLoop(NamedTuple):
    """The compiled loop.

    Attributes:
      init: ``(key) -> FitState``.
      run: ``(state, batches (K, B, ...)) -> state, metrics (K,)``. Pure.
    """

    init: Callable[[jax.Array], FitState]
    run: Callable[[FitState, Batch], tuple[FitState, Metrics]]


def make_fit_loop(
    config: FitConfig, system: OfflineSystem, steps: int, axis_name: str | None = None
) -> FitLoop:
    """The loop of one device.

    Args:
      config: of the run.
      system: what is trained, made with the same ``axis_name``.
      steps: of the whole run.
      axis_name: the mapped axis that batches are split over, or None.

    Raises:
      ValueError: if the config's parts do not fit the system's.
    """
    parts = trained_parts(config.parts, list(system.losses), steps)
    optimisers = {name: _optimiser(part) for name, part in parts.items()}
    single = next(iter(parts)) if len(parts) == 1 else None
    pieces, ema = config.training.accumulation, config.training.ema

    def init(key: jax.Array) -> FitState:
        key_init, key_loop = jax.random.split(key)
        variables = system.init(key_init)
        params = variables["params"]
        states = {
            name: optimiser.init(params if single else params[name])
            for name, optimiser in optimisers.items()
        }
        learner = Learner(variables, states[single] if single else states)
        average = jax.tree.map(jnp.copy, params) if ema else ()
        return FitState(FitTrain(learner, average), key_loop, jnp.zeros((), jnp.int32))

    def update(
        name: str, learner: Learner, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Learner, Metrics]:
        loss: PartLoss = system.losses[name]
        part = None if single else name
        if pieces == 1:
            return gradient_step(
                lambda variables: loss(variables, batch, key, step),
                learner,
                optimisers[name],
                axis_name,
                part,
            )
        cut = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), batch)
        return gradient_step(
            lambda variables, piece: loss(variables, piece[0], piece[1], step),
            learner,
            optimisers[name],
            axis_name,
            part,
            (cut, jax.random.split(key, pieces)),
        )

    def body(state: FitState, batch: Batch) -> tuple[FitState, Metrics]:
        key, *keys = jax.random.split(state.key, 1 + len(parts))
        learner, average, step = *state.train, state.step
        metrics: Metrics = {}
        for (name, part), key_part in zip(parts.items(), keys, strict=True):

            def take(learner: Learner, key: jax.Array, name: str = name) -> tuple[Learner, Metrics]:
                return update(name, learner, batch, key, step)

            due = ((step >= part.start) & (step < part.stop)).astype(jnp.int32)
            key_part = per_device(key_part, axis_name)
            if (part.start, part.stop) == (0, steps):
                learner, values = take(learner, key_part)
            else:
                learner, values = repeat(take, learner, key_part, due, 1)
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
            metrics[f"{name}/updates"] = due.astype(jnp.float32)
        if ema:
            # Young averages forget faster: the first parameters are drawn, not learned.
            decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
            average = optax.incremental_update(learner.variables["params"], average, 1.0 - decay)
        return FitState(FitTrain(learner, average), key, step + 1), metrics

    def run(state: FitState, batches: Batch) -> tuple[FitState, Metrics]:
        return jax.lax.scan(body, state, batches)

    return FitLoop(init, run)


def _optimiser(part: PartTraining) -> Any:
    return scheduled_adam(
        part.lr,
        part.stop - part.start,
        warmup=part.warmup,
        schedule=part.schedule,
        b1=part.b1,
        b2=part.b2,
        eps=part.eps,
        clip=part.clip,
        decay=part.decay,
    )


def make_system(config: FitConfig, data: Dataset, axis_name: str | None = None) -> OfflineSystem:
    """The system of a run.

    Args:
      config: of the run.
      data: the set that it learns from.
      axis_name: the mapped axis that batches are split over, or None.

    Raises:
      ValueError: if loss or data do not fit it.
    """
    dtype = jnp.bfloat16 if config.precision == "bf16" else jnp.float32
    return config.model.make(config.loss, data.spec, axis_name, dtype)


def evaluated(train: FitTrain) -> PyTree:
    """The variables to evaluate with: the averaged parameters, where there is an average."""
    variables = train.learner.variables
    return variables if isinstance(train.average, tuple) else {**variables, "params": train.average}
