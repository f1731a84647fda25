"""One step along a gradient, for what learns of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from worldmodels_jax.ops.collectives import pmean
from worldmodels_jax.types import Metrics, PyTree

State = TypeVar("State")


class Learner(NamedTuple):
    """Something that learns: its variables and the state of its optimiser (by part, if several)."""

    variables: PyTree
    optimiser: PyTree


class TrainState(NamedTuple):
    """Everything that gradient steps change."""

    world_model: Learner
    agent: Learner


def gradient_step(
    loss: Callable[..., tuple[jax.Array, tuple[PyTree, Metrics]]],
    learner: Learner,
    optimiser: Any,
    axis_name: str | None,
    part: str | None = None,
    pieces: PyTree = None,
) -> tuple[Learner, Metrics]:
    """One optimiser step on ``variables["params"]``.

    Args:
      loss: ``(variables) -> loss, (new values of the other collections, metrics)``; with ``pieces``
        of ``(variables, piece)``.
      learner: before the step.
      optimiser: an optax gradient transformation.
      axis_name: mapped axis over which loss, gradients and metrics are averaged.
      part: trains this subtree of the parameters alone, with the optimiser state of that name.
      pieces: a tree with a leading axis of pieces of the batch, whose gradients and metrics are
        averaged; one after the other, so that only one of them needs memory at a time.

    Returns:
      The learner after the step, and metrics with the gradient's global norm before clipping.
    """
    params = learner.variables["params"]
    own = params if part is None else params[part]

    def differentiate(state: PyTree, *piece: PyTree) -> tuple[PyTree, tuple[PyTree, Metrics]]:
        def of_own(own: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            whole = own if part is None else {**params, part: own}
            return loss({**learner.variables, **state, "params": whole}, *piece)

        return jax.grad(of_own, has_aux=True)(own)

    if pieces is None:
        gradient, (state, metrics) = differentiate({})
    else:

        def body(carry: PyTree, piece: PyTree) -> tuple[PyTree, Metrics]:
            state, total = carry
            gradient, (new, metrics) = differentiate(state, piece)
            return ({**state, **new}, jax.tree.map(jnp.add, total, gradient)), metrics

        before = {name: x for name, x in learner.variables.items() if name != "params"}
        zeros = jax.tree.map(jnp.zeros_like, own)
        (state, total), history = jax.lax.scan(body, (before, zeros), pieces)
        count = len(jax.tree.leaves(pieces)[0])
        gradient = jax.tree.map(lambda x: x / count, total)
        metrics = jax.tree.map(lambda x: x.mean(0), history)
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


def repeat(
    step: Callable[[State, jax.Array], tuple[State, Metrics]],
    state: State,
    key: jax.Array,
    due: jax.Array,
    most: int,
) -> tuple[State, Metrics]:
    """Takes a step as often as it is due.

    Args:
      step: ``(state, key) -> state, metrics``.
      state: before.
      key: PRNG key; a step that may be due once takes it as it is.
      due: () int, how often.
      most: the largest it can be.

    Returns:
      The state, and means of the metrics over the steps, 0 if there was none.
    """
    if most == 0:
        return state, {}
    shapes = jax.eval_shape(step, state, key)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if most == 1:
        return jax.lax.cond(due > 0, step, lambda state, key: (state, zeros), state, key)

    def body(index: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, total = carry
        state, metrics = step(state, jax.random.fold_in(key, index))
        return state, jax.tree.map(jnp.add, total, metrics)

    state, total = jax.lax.fori_loop(0, due, body, (state, zeros))
    return state, jax.tree.map(lambda x: x / jnp.maximum(due, 1), total)
