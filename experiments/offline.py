"""World models trained on fixed experience: what programs that compare models share."""

import jax
import jax.numpy as jnp

from worldmodels_jax import envs
from worldmodels_jax.data.replay import Replay
from worldmodels_jax.evaluation.episodes import record_steps
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.learner import TrainState, Updates
from worldmodels_jax.training.parts import build
from worldmodels_jax.types import Metrics, Record


def experience(config: Config, key: jax.Array, steps: int) -> Record:
    """Random experience ``(T, ...)``."""
    parts = build(config)
    env = envs.make(config.env.name)
    records = record_steps(env, parts.actor, parts.actor.act_random, key, steps=steps)
    return jax.tree.map(lambda x: x[0], records)


def as_replay(records: Record, samplers: tuple[str, ...] = ()) -> Replay:
    """Records ``(T, ...)`` as a replay of one environment, full to the brim."""
    steps = records.reward.shape[0]
    storage = jax.tree.map(lambda x: x[None], records)
    draws = {name: jnp.zeros((1, steps), jnp.int32) for name in samplers}
    return Replay(storage, jnp.int32(steps), draws)


def train(
    updates: Updates, replay: Replay, key: jax.Array, count: int
) -> tuple[TrainState, Metrics]:
    """All updates but the agent's on fixed experience, ``count`` of each kind, one kind at a time.

    Returns:
      The state, and the metrics of the last kind, the world model's: means over the last tenth.
    """
    state = updates.init(key)
    metrics: Metrics = {}
    for number, (name, update) in enumerate(updates.parts.items(), start=1):
        if name == "agent":
            continue
        draws = replay.draws.get(name, ())

        def step(carry, step_key, update=update):  # type: ignore[no-untyped-def]  # draws: a pytree
            state, draws = carry
            key_sample, key_update = jax.random.split(step_key)
            draws, batch = update.sample(replay, draws, key_sample)
            state, metrics = update.step(state, batch, key_update)
            return (state, draws), metrics

        keys = jax.random.split(jax.random.fold_in(key, number), count)
        (state, _), metrics = jax.lax.scan(step, (state, draws), keys)
    return state, jax.tree.map(lambda x: x[-max(1, count // 10) :].mean(), metrics)
