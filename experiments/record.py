"""Records of a trained agent at play."""

import dataclasses
import functools

import jax
import numpy as np

from worldmodels_jax.evaluation.episodes import record_host_steps, record_steps
from worldmodels_jax.training.run import LoadedRun
from worldmodels_jax.types import Record


def record(run: LoadedRun, key: jax.Array, *, steps: int, num_envs: int, seed: int) -> Record:
    """Records ``(E, T, ...)`` of the run's agent, each from the start of an episode, as NumPy.

    Args:
      run: the trained agent.
      key: of its actions, and of JAX-native environments.
      steps: T.
      num_envs: E.
      seed: of host environments.
    """
    actor = run.parts.actor
    if run.parts.open_host is None:
        env = run.parts.env
        assert env is not None
        play = jax.jit(
            lambda train, k: record_steps(
                env,
                actor,
                dataclasses.replace(run, train=train).choose,
                k,
                steps=steps,
                num_envs=num_envs,
            )
        )
        return jax.tree.map(np.asarray, play(run.train, key))
    host = run.parts.open_host(num_envs, seed, True)
    try:
        choose = jax.jit(lambda train, *now: dataclasses.replace(run, train=train).choose(*now))
        act = functools.partial(choose, run.train)
        return record_host_steps(host, actor, act, key, steps=steps)
    finally:
        host.close()
