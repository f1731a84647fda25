"""The host-stepped online loop: an emulator in Python between the compiled halves of the body."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.envs import AtariVector
from worldmodels_jax.training.online import Halves, LoopState
from worldmodels_jax.types import Metrics, TimeStep


class HostLoop(NamedTuple):
    """The loop around a host environment; the same updates as the compiled one.

    Attributes:
      init: ``(key) -> LoopState``; resets the environments.
      run: ``(state) -> state, metrics``: one chunk; consumes (donates) the state it is given.
    """

    init: Callable[[jax.Array], LoopState]
    run: Callable[[LoopState], tuple[LoopState, Metrics]]


def make_host_loop(env: AtariVector, halves: Halves, *, chunk: int) -> HostLoop:
    """Build the loop.

    Args:
      env: E environments with auto-reset.
      halves: the pieces of the body.
      chunk: iterations per call of ``run``.
    """

    def to_device(time_step: TimeStep) -> TimeStep:
        return TimeStep(*(jnp.asarray(field) for field in time_step))

    decide = jax.jit(halves.decide, donate_argnums=0)
    learn = jax.jit(halves.learn, donate_argnums=0)
    arrive = jax.jit(lambda state, step: halves.arrive(state, (), step), donate_argnums=0)

    def init(key: jax.Array) -> LoopState:
        return jax.jit(lambda k, step: halves.init(k, (), step))(key, to_device(env.reset()))

    def run(state: LoopState) -> tuple[LoopState, Metrics]:
        history: list[dict[str, Any]] = []
        for _ in range(chunk):
            state, action = decide(state)
            executed = np.asarray(action)  # waits for the action only
            # The updates are queued first, so the device learns while the emulator steps.
            state, metrics = learn(state)
            time_step = to_device(env.step(executed))
            state, episodes = arrive(state, time_step)
            history.append({**metrics, **episodes})
        return state, jax.tree.map(lambda *values: jnp.stack(values), *history)

    return HostLoop(init, run)
