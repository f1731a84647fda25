"""Whole episodes: the same number from each environment, whatever their length."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax import envs
from worldmodels_jax.agents.acting import Actor, Memory, newest
from worldmodels_jax.types import Environment, Metrics, PyTree, Record, TimeStep

# (memory, key) -> memory, action (E, ...), recorded in it; the newest record is the time step
ActFn = Callable[[Memory, jax.Array], tuple[Memory, jax.Array]]


class HostEnvironment(Protocol):
    """What evaluation needs of an environment that is stepped from Python."""

    num_envs: int

    def reset(self) -> TimeStep:
        """Start over; the first time step (E, ...)."""

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step all; the step after a last one is a reset."""


class _Progress(NamedTuple):
    env_state: PyTree
    time_step: TimeStep
    memory: Memory
    total: jax.Array  # (E,)
    length: jax.Array  # (E,)
    outcomes: Metrics  # (E,) each
    finished: jax.Array  # (E,) bool
    key: jax.Array


def run_episodes(
    env: Environment, actor: Actor, act: ActFn, key: jax.Array, *, episodes: int
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Play one episode in each of E parallel environments, inside one compiled call.

    Args:
      env: a single environment without auto-reset.
      actor: keeps the memory.
      act: chooses actions.
      key: a PRNG key.
      episodes: E.

    Returns:
      Undiscounted returns ``(E,)`` float32, lengths ``(E,)`` int32 in agent steps, and what the
      environment's ``outcomes`` are at the end of each episode, ``(E,)`` by name.
    """
    batched = envs.batch(envs.auto_reset(env), episodes)
    key_reset, key_run = jax.random.split(key)
    env_state, time_step = batched.reset(key_reset)

    def step(p: _Progress) -> _Progress:
        key, key_act, key_env = jax.random.split(p.key, 3)
        memory, action = act(actor.push(p.memory, p.time_step), key_act)
        env_state, time_step = batched.step(p.env_state, action, key_env)
        alive = ~p.finished
        outcomes = batched.outcomes(env_state)
        return _Progress(
            env_state=env_state,
            time_step=time_step,
            memory=memory,
            total=p.total + jnp.where(alive, time_step.reward, 0.0),
            length=p.length + alive,
            outcomes=jax.tree.map(
                lambda new, old: jnp.where(alive, new, old), outcomes, p.outcomes
            ),
            finished=p.finished | time_step.is_last,
            key=key,
        )

    start = _Progress(
        env_state,
        time_step,
        actor.init(episodes),
        jnp.zeros(episodes),
        jnp.zeros(episodes, jnp.int32),
        batched.outcomes(env_state),
        jnp.zeros(episodes, bool),
        key_run,
    )
    end = jax.lax.while_loop(lambda p: ~p.finished.all(), step, start)
    return end.total, end.length, end.outcomes


def run_host_episodes(
    env: HostEnvironment, actor: Actor, act: ActFn, key: jax.Array, *, episodes: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The same for an environment stepped by the host: each plays the same number of episodes.

    Args:
      env: E environments; terminations must be those of whole games.
      actor: keeps the memory.
      act: chooses actions; jit it.
      key: a PRNG key.
      episodes: in all; rounded up to a multiple of E.

    Returns:
      Returns and lengths of the episodes, ``(episodes,)`` each, and no outcomes: environments
      stepped by the host have none.
    """
    per_env = -(-episodes // env.num_envs)
    returns: list[list[float]] = [[] for _ in range(env.num_envs)]
    lengths: list[list[int]] = [[] for _ in range(env.num_envs)]
    total, length = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    memory, time_step = actor.init(env.num_envs), env.reset()
    push = jax.jit(actor.push)
    while min(len(r) for r in returns) < per_env:
        key, key_act = jax.random.split(key)
        memory, action = act(push(memory, time_step), key_act)
        time_step = env.step(np.asarray(action))
        first = np.asarray(time_step.is_first)
        total = np.where(first, 0.0, total + time_step.reward)
        length = np.where(first, 0, length + 1)
        for i in np.flatnonzero(np.asarray(time_step.is_last)):
            if len(returns[i]) < per_env:
                returns[i].append(float(total[i]))
                lengths[i].append(int(length[i]))
    return np.array(returns).reshape(-1), np.array(lengths).reshape(-1), {}


def record_steps(
    env: Environment, actor: Actor, act: ActFn, key: jax.Array, *, steps: int, num_envs: int = 1
) -> Record:
    """Records of consecutive steps, from the start of an episode and across resets.

    Args:
      env: a single environment without auto-reset.
      actor: keeps the memory.
      act: chooses actions.
      key: a PRNG key.
      steps: T.
      num_envs: E, copies of the environment.

    Returns:
      Records ``(E, T, ...)``.
    """
    batched = envs.batch(envs.auto_reset(env), num_envs)
    key_reset, key_run = jax.random.split(key)

    def step(state, step_key):  # type: ignore[no-untyped-def]  # state is the environment's pytree
        env_state, time_step, memory = state
        key_act, key_env = jax.random.split(step_key)
        memory, action = act(actor.push(memory, time_step), key_act)
        env_state, time_step = batched.step(env_state, action, key_env)
        return (env_state, time_step, memory), newest(memory)

    start = (*batched.reset(key_reset), actor.init(num_envs))
    records = jax.lax.scan(step, start, jax.random.split(key_run, steps))[1]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), records)


def record_host_steps(
    env: HostEnvironment, actor: Actor, act: ActFn, key: jax.Array, *, steps: int
) -> Record:
    """The same for E environments stepped by the host, from a reset on.

    Args:
      env: the environments.
      actor: keeps the memory.
      act: chooses actions; jit it.
      key: a PRNG key.
      steps: T.

    Returns:
      Records ``(E, T, ...)``, NumPy arrays.
    """
    push = jax.jit(actor.push)
    memory, time_step, rows = actor.init(env.num_envs), env.reset(), []
    for step_key in jax.random.split(key, steps):
        memory, action = act(push(memory, time_step), step_key)
        rows.append(jax.tree.map(np.asarray, newest(memory)))
        time_step = env.step(np.asarray(action))
    return jax.tree.map(lambda *values: np.stack(values, axis=1), *rows)
