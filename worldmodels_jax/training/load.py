"""Loading a run: to act, evaluate, dream, or go on from it."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from worldmodels_jax import envs
from worldmodels_jax.agents.acting import Memory
from worldmodels_jax.training.checkpoint import CheckpointError, abstract, open_checkpoints
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.directory import (
    CHECKPOINTS,
    choose_step,
    is_fit,
    read_saved,
    saved_steps,
    seed_index,
)
from worldmodels_jax.training.learner import TrainState, make_updates
from worldmodels_jax.training.online import SEED_AXES
from worldmodels_jax.training.parts import EnvSource, Parts, build
from worldmodels_jax.types import Environment, TimeStep

__all__ = ["CHECKPOINTS", "LoadedRun", "SavedConfig", "load", "read_config", "saved_steps"]


class SavedConfig(NamedTuple):
    """What ``config.json`` of a run says.

    Attributes:
      config: of the run.
      seed: its first seed.
      num_seeds: S.
      own_environment: name of the environment that was handed to ``train``, if one was.
    """

    config: Config
    seed: int
    num_seeds: int
    own_environment: str | None = None


def read_config(directory: Path) -> SavedConfig:
    """The config of a run, its first seed and the number of seeds.

    Raises:
      CheckpointError: if the directory holds no run, or not of this kind.
    """
    if is_fit(directory):
        raise CheckpointError(
            f"{directory} holds a run of experiments.fit, which has no agent: look at it with "
            f"python -m experiments.evaluate --run={directory}."
        )
    return SavedConfig(**read_saved(directory, Config))


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained run: its parts and what it learned. See ``load``."""

    directory: Path
    config: Config
    seed: int
    step: int
    parts: Parts
    train: TrainState

    @property
    def env(self) -> Environment:
        """E=1 environment with auto-reset: ``reset(key)``, ``step(state, action, key)``.

        Raises:
          ValueError: for environments that are stepped by the host.
        """
        if self.parts.env is None:
            raise ValueError(
                f"{self.parts.spec.name} is stepped by the host: open it with "
                "run.parts.open_host(num_envs, seed, evaluation)."
            )
        return envs.batch(envs.auto_reset(self.parts.env), 1)

    def memory(self, num_envs: int = 1) -> Memory:
        """An empty memory, to be handed to ``act``."""
        return self.parts.actor.init(num_envs)

    def act(self, memory: Memory, time_step: TimeStep, key: jax.Array) -> tuple[Memory, jax.Array]:
        """Choose actions ``(E, ...)`` at time steps ``(E, ...)``; pure, fit for jit and scan."""
        return self.choose(self.parts.actor.push(memory, time_step), key)

    def choose(
        self, memory: Memory, key: jax.Array, *, greedy: bool = False
    ) -> tuple[Memory, jax.Array]:
        """Actions for a memory whose newest record is the current time step, recorded in it."""
        act = self.parts.actor.act_greedy if greedy else self.parts.actor.act
        return act(self.train.world_model.variables, self.train.agent.variables, memory, key)


def load(
    directory: str | Path,
    *,
    seed: int | None = None,
    step: int | None = None,
    env: EnvSource | None = None,
) -> LoadedRun:
    """Load a checkpoint of a run, to act, evaluate or dream with it.

    Args:
      directory: of the run.
      seed: which of its seeds; by default the first.
      step: which of its checkpoints, in agent steps; by default the newest.
      env: the environment of the caller's own that it was trained with, if it was.

    Raises:
      CheckpointError: if there is no run, no checkpoint, no such seed or step, or a damaged one.
    """
    directory = Path(directory)
    config, first, count, own_environment = read_config(directory)
    if own_environment is not None and env is None:
        raise CheckpointError(
            f"{directory} was trained in an environment of your own, {own_environment!r}, which a "
            "command cannot make again: call worldmodels_jax.training.run.load(directory, env=...)."
        )
    index = seed_index(directory, seed, first, count)
    parts = build(config, env)
    checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
    try:
        step = choose_step(checkpoints, step, config.training.checkpoint_every)
        updates = make_updates(config.training, parts.world_model, parts.agent)
        like = jax.eval_shape(updates.init, jax.random.key(0))
        if count > 1:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), like)
        state = checkpoints.restore_train(step, abstract(like))
    finally:
        checkpoints.close()
    if count > 1:
        state = select_seed(state, index)
    return LoadedRun(directory, config, first + index, step, parts, state)


def select_seed(train: TrainState, index: int) -> TrainState:
    """One seed of a train state with a leading seed axis."""
    assert SEED_AXES.train == 0
    return jax.tree.map(lambda x: x[index], train)
