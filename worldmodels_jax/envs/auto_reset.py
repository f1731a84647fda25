"""Wrappers of JAX-native environments: resetting one record later, and a batch axis."""

from typing import NamedTuple

import jax

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
      outcomes are those of the episode that the time step belongs to. Under ``vmap`` both
      branches are computed and selected from; unbatched, only the needed one runs.
    """

    def reset(key: jax.Array) -> tuple[AutoResetState, TimeStep]:
        env_state, time_step = env.reset(key)
        return AutoResetState(env_state, time_step.is_last), time_step

    def step(
        state: AutoResetState, action: jax.Array, key: jax.Array
    ) -> tuple[AutoResetState, TimeStep]:
        env_state, time_step = jax.lax.cond(
            state.is_last,
            lambda: env.reset(key),
            lambda: env.step(state.env_state, action, key),
        )
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
