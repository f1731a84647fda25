"""The configuration of a run, and what of it must fit together."""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.models.iris_config import DeltaIrisConfig, IrisConfig
from worldmodels_jax.models.world_model import ModelConfig
from worldmodels_jax.training.agent_config import AnyAgentConfig
from worldmodels_jax.training.env_config import AnyEnvConfig, EnvConfig

_LONGEST_CYCLE = 10_000  # iterations after which a ratio's pattern of updates repeats


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """Updates of a tokenizer by itself, between those of the rest of its world model.

    Attributes:
      ratio: updates per agent step; 0 trains it with the rest, in one loss.
      start: agent steps before the first update, if later than the warm-up's.
      first: updates made beside the others when the first are due.
      batch_size: sequences per update.
      batch_length: records per sequence.
      lr: learning rate.
      clip: bound on the gradient, see TrainingConfig.
      decay: weight decay of Linear layers (adam).
    """

    ratio: float = 0.0
    start: int = 0
    first: int = 0
    batch_size: int = 32
    batch_length: int = 21
    lr: float = 1e-4
    clip: float = 10.0
    decay: float = 0.0


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
      acting_context: frames of the running episode that the model encodes anew whenever the agent
        acts; 0 has the model follow the episode step by step, if it can.
      exploration: share of uniformly random actions while collecting.
      sampling: what is drawn from the replay uniformly: records, the first ones of sequences, or
        episodes, and then a sequence of one.
      sampling_power: episodes drawn n times have probability proportional to (1 + n)^-power.
      epoch: agent steps between rounds of updates, in which those that have become due are made,
        all of the tokenizer, then all of the world model, then all of the agent; 0 makes an update
        as soon as it is due.
      world_model_ratio: world-model updates per agent step, may be below 1.
      world_model_start: agent steps before its first update, if later than the warm-up's.
      world_model_first: updates made beside the others when the first are due.
      agent_ratio: agent updates per agent step, may be below 1.
      agent_start: agent steps before its first update, if later than the warm-up's.
      joint: one update of world model and agent together, of one batch and its dreams, which begin
        at all its posterior states (DreamerV3 of 2024). For models that have such states. The
        fields above must say so: as many updates of either, from the same step on, dream_context=1,
        dream_starts=T, dream_batch=B T.
      replay_value_scale: weight of the critic's loss on the replayed states themselves, whose
        gradient trains the world model too; joint updates only.
      optimiser: adam, or laprop (DreamerV3), of world model and agent.
      optimiser_warmup: updates over which the learning rates rise from 0.
      world_model_lr: learning rate.
      world_model_clip: bound on the gradient: on its global norm (adam), or on the norm of each
        tensor's as a share of that of its parameters (laprop).
      world_model_decay: weight decay of Linear layers (adam).
      agent_lr: learning rate of actor and critic.
      agent_eps: Adam's epsilon for actor and critic.
      agent_clip: as world_model_clip, for actor and critic.
      tokenizer: a tokenizer that is trained by itself.
      chunk: loop iterations per compiled call; metrics are written once per chunk.
      small_products: on a CPU, compile the loop for matrix products too small to be shared between
        threads or handed to a library. Good for the smallest models alone; nothing to GPU, TPU
        and ``parallel="pmap"``.
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
    exploration: float = 0.0
    sampling: Literal["records", "episodes"] = "records"
    sampling_power: float = 0.0
    epoch: int = 0
    world_model_ratio: float = 1.0
    world_model_start: int = 0
    world_model_first: int = 0
    agent_ratio: float = 1.0
    agent_start: int = 0
    joint: bool = False
    replay_value_scale: float = 0.0
    optimiser: Literal["adam", "laprop"] = "adam"
    optimiser_warmup: int = 0
    world_model_lr: float = 1e-4
    world_model_clip: float = 1000.0
    world_model_decay: float = 0.0
    agent_lr: float = 3e-5
    agent_eps: float = 1e-5
    agent_clip: float = 100.0
    tokenizer: TokenizerTraining = TokenizerTraining()
    chunk: int = 200
    small_products: bool = False
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
    model: ModelConfig = GitStormConfig()
    agent: AnyAgentConfig = ActorCriticConfig()
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
    t, rows, num_envs = config.training, config.model.longest, config.env.num_envs
    if num_envs < 1:
        raise ValueError(f"env.num_envs={num_envs} must be at least 1.")
    if not isinstance(config.env, EnvConfig) and config.env.workers < 0:
        raise ValueError(f"env.workers={config.env.workers} must be 0 (no processes) or more.")
    _check_numbers("training", t)
    _check_numbers("training.tokenizer", t.tokenizer)
    if t.tokenizer != TokenizerTraining() and not t.tokenizer.ratio:
        raise ValueError(
            "training.tokenizer has fields that differ from their defaults, but its ratio=0 trains "
            "the tokenizer with the rest: set training.tokenizer.ratio, or leave the fields alone."
        )
    if t.world_model_first and not t.world_model_ratio:
        raise ValueError(
            f"training.world_model_first={t.world_model_first} are updates beside others, but "
            "training.world_model_ratio=0 makes none: set the ratio, or first to 0."
        )
    if t.replay_value_scale and not t.joint:
        raise ValueError(
            f"training.replay_value_scale={t.replay_value_scale} weighs a loss of joint updates: "
            "set training.joint=True, or the scale to 0."
        )
    if t.joint:
        meant = {
            "agent_ratio": t.world_model_ratio,
            "agent_start": t.world_model_start,
            "dream_context": 1,
            "dream_starts": t.batch_length,
            "dream_batch": t.batch_size * t.batch_length,
        }
        wrong = {name: value for name, value in meant.items() if getattr(t, name) != value}
        if wrong:
            is_now = ", ".join(f"training.{name}={getattr(t, name)}" for name in wrong)
            set_to = ", ".join(f"training.{name}={value}" for name, value in wrong.items())
            raise ValueError(
                f"with training.joint=True a dream begins at every record of the batch, in the "
                f"same update, but {is_now}: set {set_to}."
            )
    if not 0 <= t.exploration <= 1:
        raise ValueError(
            f"training.exploration={t.exploration} is no share of actions: give 0 to 1."
        )
    if t.epoch % num_envs:
        raise ValueError(
            f"training.epoch={t.epoch} agent steps are no whole number of loop iterations: make it "
            f"a multiple of env.num_envs={num_envs}."
        )
    if t.sampling == "records" and t.sampling_power:
        raise ValueError(
            f"training.sampling_power={t.sampling_power} is for episodes: set "
            "training.sampling=episodes, or the power to 0."
        )
    model = config.model
    if t.tokenizer.ratio and isinstance(model, IrisConfig | DeltaIrisConfig):
        scales = (model.tokenizer_scale, model.world_model_scale)
        if scales != (1.0, 1.0):
            raise ValueError(
                f"model.tokenizer_scale={scales[0]} and model.world_model_scale={scales[1]} weigh "
                f"the two losses in one update, but training.tokenizer.ratio={t.tokenizer.ratio} "
                "trains the tokenizer by itself: leave the scales at 1, or set the ratio to 0."
            )
    decays = t.world_model_decay or t.tokenizer.decay
    if t.optimiser != "adam" and decays:
        raise ValueError(
            f"training.optimiser={t.optimiser} has no weight decay: set world_model_decay and "
            "tokenizer.decay of training to 0, or take adam."
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
    lengths = [t.batch_length, t.dream_context + t.dream_starts - 1]
    longest = max(*lengths, t.tokenizer.batch_length if t.tokenizer.ratio else 0)
    if longest > t.replay_capacity // num_envs:
        raise ValueError(
            f"sequences of {longest} records (training.batch_length, training.dream_context, "
            f"training.dream_starts, training.tokenizer.batch_length) do not fit a replay of "
            f"training.replay_capacity={t.replay_capacity} records split over "
            f"env.num_envs={num_envs} environments: raise the capacity or shorten the sequences."
        )
    if longest > warmup_iterations(config):
        raise ValueError(
            f"training.warmup={t.warmup} steps give each of env.num_envs={num_envs} environments "
            f"{warmup_iterations(config)} records, fewer than the {longest} of one sequence: raise "
            f"training.warmup to at least {longest * num_envs}."
        )


# Numbers that may be 0.
_OPTIONAL = {
    "warmup",
    "acting_context",
    "exploration",
    "joint",
    "replay_value_scale",
    "sampling_power",
    "epoch",
    "ratio",
    "world_model_ratio",
    "agent_ratio",
    "start",
    "world_model_start",
    "agent_start",
    "first",
    "world_model_first",
    "optimiser_warmup",
    "small_products",
    "decay",
    "world_model_decay",
}


def _check_numbers(path: str, section: TrainingConfig | TokenizerTraining) -> None:
    for field in dataclasses.fields(section):
        name, value = field.name, getattr(section, field.name)
        if not isinstance(value, int | float):
            continue
        if value < 0 or (value == 0 and name not in _OPTIONAL):
            least = "not be negative" if name in _OPTIONAL else "be greater than 0"
            raise ValueError(f"{path}.{name}={value} must {least}.")
        if name.endswith("ratio") and value and not 1 / _LONGEST_CYCLE <= value < math.inf:
            raise ValueError(
                f"{path}.{name}={value} is no number of updates per agent step: give at least "
                f"{1 / _LONGEST_CYCLE}, or 0 for none."
            )
