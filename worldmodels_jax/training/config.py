"""The configuration of a run, and what of it must fit together."""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.training.env_config import AnyEnvConfig, EnvConfig
from worldmodels_jax.training.model_config import AnyModelConfig, max_length

_LONGEST_CYCLE = 10_000  # iterations after which a ratio's pattern of updates repeats


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop; the defaults are GIT-STORM's on Atari 100k.

    Attributes:
      steps: agent steps over all environments.
      warmup: random-action agent steps before the first update.
      replay_capacity: records kept, over all environments.
      batch_size: B, sequences per world-model update.
      batch_length: T, records per sequence.
      dream_batch: B2, dreams per agent update.
      dream_context: C, real frames encoded before each dream.
      dream_starts: dreams that begin at consecutive frames of one sampled sequence, whose frames
        are encoded once for all of them; 1 draws every dream's context by itself.
      horizon: L, dreamed steps.
      acting_context: frames of the running episode the agent sees when it acts.
      world_model_ratio: world-model updates per agent step, may be below 1.
      agent_ratio: agent updates per agent step, may be below 1.
      optimiser: adam, or laprop (DreamerV3), of world model and agent.
      optimiser_warmup: updates over which the learning rates rise from 0.
      world_model_lr: learning rate.
      world_model_clip: bound on the gradient: on its global norm (adam), or on the norm of each
        tensor's as a share of that of its parameters (laprop).
      agent_lr: learning rate of actor and critic.
      agent_eps: Adam's epsilon for actor and critic.
      agent_clip: as world_model_clip, for actor and critic.
      chunk: loop iterations per compiled call; metrics are written once per chunk.
      checkpoint_every: agent steps between checkpoints.
      keep_checkpoints: newest checkpoints kept.
      evaluation_episodes: episodes of the final evaluation, per seed.
    """

    steps: int = 100_000
    warmup: int = 1024
    replay_capacity: int = 100_000
    batch_size: int = 16
    batch_length: int = 64
    dream_batch: int = 1024
    dream_context: int = 8
    dream_starts: int = 1
    horizon: int = 16
    acting_context: int = 16
    world_model_ratio: float = 1.0
    agent_ratio: float = 1.0
    optimiser: Literal["adam", "laprop"] = "adam"
    optimiser_warmup: int = 0
    world_model_lr: float = 1e-4
    world_model_clip: float = 1000.0
    agent_lr: float = 3e-5
    agent_eps: float = 1e-5
    agent_clip: float = 100.0
    chunk: int = 200
    checkpoint_every: int = 10_000
    keep_checkpoints: int = 2
    evaluation_episodes: int = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
      preset: name of the preset it was made from; printed next to every score.
      env: the environment.
      model: the world model.
      agent: the behaviour learner.
      training: the loop.
      precision: of the computation. bf16 is made for GPU and TPU (a CPU gains nothing by it);
        parameters, losses, softmax and statistics are float32 in either.
    """

    preset: str = "custom"
    env: AnyEnvConfig = EnvConfig()
    model: AnyModelConfig = GitStormConfig()
    agent: ActorCriticConfig = ActorCriticConfig()
    training: TrainingConfig = TrainingConfig()
    precision: Literal["float32", "bf16"] = "float32"


def updates_per_iteration(ratio: float, num_envs: int) -> Fraction:
    """Updates per loop iteration (E agent steps): the nearest fraction of at most 10,000ths."""
    return Fraction(ratio).limit_denominator(_LONGEST_CYCLE) * num_envs


def warmup_iterations(config: Config) -> int:
    """Loop iterations before the first update."""
    return math.ceil(config.training.warmup / config.env.num_envs)


def validate(config: Config) -> None:
    """Check what no single part can check.

    Raises:
      ValueError: naming the fields, their values and the remedy.
    """
    t, rows, num_envs = config.training, max_length(config.model), config.env.num_envs
    if num_envs < 1:
        raise ValueError(f"env.num_envs={num_envs} must be at least 1.")
    if not isinstance(config.env, EnvConfig) and config.env.workers < 0:
        raise ValueError(f"env.workers={config.env.workers} must be 0 (no processes) or more.")
    for name, value in dataclasses.asdict(t).items():
        if not isinstance(value, int | float):
            continue
        may_be_zero = name in ("warmup", "world_model_ratio", "agent_ratio", "optimiser_warmup")
        if value < 0 or (value == 0 and not may_be_zero):
            least = "not be negative" if may_be_zero else "be greater than 0"
            raise ValueError(f"training.{name}={value} must {least}.")
    for name in ("world_model_ratio", "agent_ratio"):
        if (ratio := getattr(t, name)) and not 1 / _LONGEST_CYCLE <= ratio < math.inf:
            raise ValueError(
                f"training.{name}={ratio} is no number of updates per agent step: give at least "
                f"{1 / _LONGEST_CYCLE}, or 0 for none."
            )
    if t.batch_length < 2:
        raise ValueError(
            f"training.batch_length={t.batch_length} holds no transition: use at least 2."
        )
    spans = {
        "training.batch_length": t.batch_length,
        "training.acting_context": t.acting_context,
        "training.dream_context + training.horizon": t.dream_context + t.horizon,
    }
    for name, length in spans.items():
        if rows is not None and length > rows:
            raise ValueError(
                f"{name} = {length} is longer than the position table: raise "
                f"model.max_length={rows} to at least {length}, or shorten it."
            )
    if t.dream_batch % t.dream_starts:
        raise ValueError(
            f"training.dream_batch={t.dream_batch} dreams cannot begin {t.dream_starts} to a "
            "sequence (training.dream_starts): make the former a multiple of the latter."
        )
    longest = max(t.batch_length, t.dream_context + t.dream_starts - 1)
    if longest > t.replay_capacity // num_envs:
        raise ValueError(
            f"sequences of {longest} records (training.batch_length, training.dream_context, "
            f"training.dream_starts) do not fit a replay of training.replay_capacity="
            f"{t.replay_capacity} records split over env.num_envs={num_envs} environments: raise "
            "the capacity or shorten the sequences."
        )
    if longest > warmup_iterations(config):
        raise ValueError(
            f"training.warmup={t.warmup} steps give each of env.num_envs={num_envs} environments "
            f"{warmup_iterations(config)} records, fewer than the {longest} of one sequence: raise "
            f"training.warmup to at least {longest * num_envs}."
        )
