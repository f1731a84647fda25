"""Wrappers of JAX-native environments: resetting one record later, and a batch axis."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.types import Environment, Metrics, PyTree, TimeStep


class AutoResetState(NamedTuple):
    """The wrapped state and whether the time step it belongs to was the last of its episode."""

    env_state: PyTree
    is_last: jax.Array  # () bool


def auto_reset(env: Environment) -> Environment:
    """Makes the step after a last time step a reset.

    A terminal observation is returned as a time step of its own; the next ``step`` ignores the
    action it is given and returns ``env.reset(key)``. So an episode of n transitions is n + 1
    records and nothing that the environment showed is lost. (The semantics are those of dm_env.)

    Args:
      env: an environment whose ``step`` never resets.

    Returns:
      An environment with the same spec and outcomes whose state is an `AutoResetState`. The
      outcomes are those of the episode that the time step belongs to. A reset is computed only
      when it is due, under ``vmap`` when it is due in any environment of the batch.
    """

    Advanced = tuple[PyTree, TimeStep]

    @jax.custom_batching.custom_vmap
    def advance(state: AutoResetState, action: jax.Array, key: jax.Array) -> Advanced:
        return jax.lax.cond(
            state.is_last,
            lambda: env.reset(key),
            lambda: env.step(state.env_state, action, key),
        )

    # vmap would turn the branch into a selection, and so generate E new worlds in every step.
    @advance.def_vmap
    def advance_all(
        axis_size: int, in_batched: Any, state: AutoResetState, action: jax.Array, key: jax.Array
    ) -> tuple[Advanced, Any]:
        args = jax.tree.map(
            lambda x, batched: x if batched else jnp.broadcast_to(x, (axis_size, *x.shape)),
            (state, action, key),
            tuple(in_batched),
        )
        state, action, key = args
        stepped = jax.vmap(env.step)(state.env_state, action, key)

        def with_resets() -> Advanced:
            def choose(fresh: jax.Array, other: jax.Array) -> jax.Array:
                due = state.is_last.reshape(-1, *[1] * (fresh.ndim - 1))
                return jnp.where(due, fresh, other)

            return jax.tree.map(choose, jax.vmap(env.reset)(key), stepped)

        out = jax.lax.cond(state.is_last.any(), with_resets, lambda: stepped)
        return out, jax.tree.map(lambda _: True, out)

    def reset(key: jax.Array) -> tuple[AutoResetState, TimeStep]:
        env_state, time_step = env.reset(key)
        return AutoResetState(env_state, time_step.is_last), time_step

    def step(
        state: AutoResetState, action: jax.Array, key: jax.Array
    ) -> tuple[AutoResetState, TimeStep]:
        env_state, time_step = advance(state, action, key)
        return AutoResetState(env_state, time_step.is_last), time_step

    def outcomes(state: AutoResetState) -> Metrics:
        return env.outcomes(state.env_state)

    return Environment(env.spec, reset, step, outcomes)


def batch(env: Environment, num_envs: int) -> Environment:
    """Runs E independent copies of an environment behind one key.

    Args:
      env: the environment of one copy; wrap it in `auto_reset` first if it shall go on for ever.
      num_envs: E, the number of copies, at least 1.

    Returns:
      An environment with the spec of *one* copy. ``reset(key)`` and
      ``step(state, action, key)`` take one key, split it E ways, and carry a leading axis E on
      the state, on ``action`` ((E,) or (E, A)), on every field of the time step and on the
      outcomes.

    Raises:
      ValueError: if ``num_envs`` is below 1.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs} is not a number of environments; give at least 1.")

    def reset(key: jax.Array) -> tuple[PyTree, TimeStep]:
        return jax.vmap(env.reset)(jax.random.split(key, num_envs))

    def step(state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, TimeStep]:
        return jax.vmap(env.step)(state, action, jax.random.split(key, num_envs))

    return Environment(env.spec, reset, step, jax.vmap(env.outcomes))
