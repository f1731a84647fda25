"""One step along a gradient, for what learns of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from worldmodels_jax.ops.collectives import pmean
from worldmodels_jax.types import Metrics, PyTree


class Learner(NamedTuple):
    """Something that learns: its variables and the state of its optimiser (by part, if several)."""

    variables: PyTree
    optimiser: PyTree


class TrainState(NamedTuple):
    """Everything that gradient steps change."""

    world_model: Learner
    agent: Learner


def gradient_step(
    loss: Callable[[PyTree], tuple[jax.Array, tuple[PyTree, Metrics]]],
    learner: Learner,
    optimiser: Any,
    axis_name: str | None,
    part: str | None = None,
) -> tuple[Learner, Metrics]:
    """One optimiser step on ``variables["params"]``.

    Args:
      loss: ``(variables) -> loss, (new values of the other collections, metrics)``.
      learner: before the step.
      optimiser: an optax gradient transformation.
      axis_name: mapped axis over which loss, gradients and metrics are averaged.
      part: trains this subtree of the parameters alone, with the optimiser state of that name.

    Returns:
      The learner after the step, and metrics with the gradient's global norm before clipping.
    """
    params = learner.variables["params"]
    own = params if part is None else params[part]

    def whole(own: PyTree) -> PyTree:
        return own if part is None else {**params, part: own}

    gradient, (state, metrics) = jax.grad(
        lambda p: loss({**learner.variables, "params": whole(p)}), has_aux=True
    )(own)
    gradient, metrics = jax.tree.map(lambda x: pmean(x, axis_name), (gradient, metrics))
    return descend(learner, gradient, state, optimiser, part), metrics | norm(gradient)


def descend(
    learner: Learner, gradient: PyTree, state: PyTree, optimiser: Any, part: str | None = None
) -> Learner:
    """The learner after a step along a gradient, with new values of its other collections."""
    params, before = learner.variables["params"], learner.optimiser
    if part is None:
        updates, after = optimiser.update(gradient, before, params)
        params = optax.apply_updates(params, updates)
    else:
        updates, own = optimiser.update(gradient, before[part], params[part])
        params = {**params, part: optax.apply_updates(params[part], updates)}
        after = {**before, part: own}
    return Learner({**learner.variables, **state, "params": params}, after)


def norm(gradient: PyTree) -> Metrics:
    """The metric of a gradient: its global norm."""
    return {"gradient_norm": optax.tree.norm(gradient)}
