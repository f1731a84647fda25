"""The host-stepped online loop: an emulator in Python between the compiled halves of the body."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.training.online import Halves, LoopState
from worldmodels_jax.training.parallel import EACH_ENV, DeviceMapping, make_mapping
from worldmodels_jax.types import HostVector, Metrics, TimeStep


class HostLoop(NamedTuple):
    """The loop around a host environment; the same updates as the compiled one.

    Attributes:
      init: ``(seed) -> LoopState``; resets the environments.
      run: ``(state, iterations) -> state, metrics``: so many iterations, or fewer (at least one)
        if it is told to stop; every metric has a leading axis of them. Consumes (donates) the
        state it is given.
    """

    init: Callable[[int], LoopState]
    run: Callable[[LoopState, int], tuple[LoopState, Metrics]]


def make_host_loop(
    env: HostVector,
    halves: Halves,
    mapping: DeviceMapping | None = None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> HostLoop:
    """Build the loop.

    The updates of an iteration run on the device while the environments take its step; acting for
    all E of them is one call.

    Args:
      env: E environments with auto-reset; of several hosts, this one's share of them.
      halves: the pieces of the body.
      mapping: over devices; a single one by default.
      should_stop: asked after every iteration.
    """

    mapping = mapping or make_mapping(1)
    decide = mapping.compile(halves.decide, (EACH_ENV,), (EACH_ENV, 0), donate=True)
    learn = mapping.compile(halves.learn, (EACH_ENV,), (EACH_ENV, None), donate=True)
    arrive = mapping.compile(
        lambda state, step: halves.arrive(state, (), step),
        (EACH_ENV, 0),
        (EACH_ENV, None),
        donate=True,
    )
    begin = mapping.compile(
        lambda seed, step: halves.init(jax.random.key(seed), (), step), (None, 0), EACH_ENV
    )

    def init(seed: int) -> LoopState:
        return begin(np.uint32(seed), mapping.place(env.reset(), 0))

    def run(state: LoopState, iterations: int) -> tuple[LoopState, Metrics]:
        history: list[dict[str, Any]] = []
        for _ in range(iterations):
            state, action = decide(state)
            executed = mapping.fetch(action)  # waits for the action only
            # The updates are queued first, so the device learns while the emulator steps.
            state, metrics = learn(state)
            time_step = mapping.place(env.step(executed), 0)
            state, episodes = arrive(state, time_step)
            history.append({**metrics, **episodes})
            if should_stop():
                break
        return state, jax.tree.map(lambda *values: jnp.stack(values), *history)

    return HostLoop(init, run)


def restarted(state: LoopState, time_step: TimeStep, mapping: DeviceMapping) -> LoopState:
    """A saved state whose environments could not be saved: they start new episodes.

    Args:
      state: as saved.
      time_step: first ones ``(E, ...)``. What is remembered of the episodes that were cut off stays
        in the replay; the transition into a first record is in no loss.
      mapping: over devices.
    """
    return state._replace(
        time_step=mapping.place(time_step, 0),
        episode_return=jnp.zeros_like(state.episode_return),
        episode_length=jnp.zeros_like(state.episode_length),
    )
