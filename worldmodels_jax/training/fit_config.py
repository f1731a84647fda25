"""The configuration of a run of ``fit``, and what of it must fit together."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar, Literal

from worldmodels_jax.models.offline import LossConfig, SystemConfig
from worldmodels_jax.training.data_config import DataConfig


@dataclasses.dataclass(frozen=True)
class PartTraining:
    """How one part of a system is trained.

    Attributes:
      lr: learning rate, the highest of its schedule.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's epsilon.
      clip: bound on the gradient's global norm; 0 for none.
      decay: decoupled weight decay of Linear layers' matrices.
      warmup: updates over which the rate rises from 0.
      schedule: of the rate after the warm-up: constant, or down to 0 at the part's last update.
      start: step of its first update.
      stop: step before which it has its last one; 0 for the end of the run.
    """

    lr: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float = 0.0
    decay: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    start: int = 0
    stop: int = 0


@dataclasses.dataclass(frozen=True)
class PartsConfig:
    """How the parts of a system are trained: a subclass has a ``PartTraining`` of each name.

    ``optional`` names those that a system has with some losses only.
    """

    optional: ClassVar[tuple[str, ...]] = ()


@dataclasses.dataclass(frozen=True)
class OnePart(PartsConfig):
    """Training of a system that is one part.

    Attributes:
      model: all of it.
    """

    model: PartTraining = PartTraining()


@dataclasses.dataclass(frozen=True)
class AdversarialParts(PartsConfig):
    """Training of a model and of what tells its samples apart.

    Attributes:
      model: what is wanted.
      discriminator: its adversary.
    """

    model: PartTraining = PartTraining()
    discriminator: PartTraining = PartTraining(b1=0.5, b2=0.9)


@dataclasses.dataclass(frozen=True)
class TokenParts(PartsConfig):
    """Training of a tokenizer, then of a transformer on its tokens, and of a classifier on it.

    Attributes:
      tokenizer: of frames.
      head: the classifier, for losses that have one.
      transformer: on tokens.
    """

    optional: ClassVar[tuple[str, ...]] = ("head",)

    tokenizer: PartTraining = PartTraining()
    head: PartTraining = PartTraining(decay=0.01)
    transformer: PartTraining = PartTraining(decay=0.01)


@dataclasses.dataclass(frozen=True)
class FitTraining:
    """The loop.

    Attributes:
      steps: updates of each part, where a part's own start and stop do not say less.
      epochs: passes over the data in the place of steps; 0 goes by steps.
      batch_size: B, examples per update.
      accumulation: pieces that a batch is cut into, whose gradients are averaged: as much memory
        as B / accumulation examples need.
      ema: decay of a moving average of the parameters, which is then what is evaluated; 0 for none.
      chunk: updates per compiled call; metrics are written once per chunk.
      checkpoint_every: updates between checkpoints, and between pictures.
      keep_checkpoints: newest checkpoints kept.
    """

    steps: int = 10_000
    epochs: int = 0
    batch_size: int = 64
    accumulation: int = 1
    ema: float = 0.0
    chunk: int = 100
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """A run.

    Attributes:
      preset: name of the preset it was made from; printed next to every score.
      data: the data set.
      model: the system's networks.
      loss: what it minimises.
      parts: how its parts are trained.
      training: the loop.
      precision: of the computation; parameters, losses, softmax and statistics are float32.
    """

    preset: str = "custom"
    data: DataConfig
    model: SystemConfig
    loss: LossConfig
    parts: PartsConfig = OnePart()
    training: FitTraining = FitTraining()
    precision: Literal["float32", "bf16"] = "float32"


def num_steps(training: FitTraining, num_train: int) -> int:
    """Updates of a run on so many examples."""
    return training.epochs * (num_train // training.batch_size) or training.steps


def trained_parts(
    parts: PartsConfig, names: Collection[str], steps: int
) -> dict[str, PartTraining]:
    """How each part of a system is trained, with the step of its end filled in.

    Args:
      parts: of the config.
      names: of the system's losses.
      steps: of the run.

    Raises:
      ValueError: if a part has no training, or a training that is not the default has no part, or
        its numbers make no sense.
    """
    given = {field.name: getattr(parts, field.name) for field in dataclasses.fields(parts)}
    defaults = {field.name: field.default for field in dataclasses.fields(parts)}
    for name in names:
        if name not in given:
            raise ValueError(
                f"the system has the part {name!r}, which {type(parts).__name__} does not train: "
                f"its parts are {', '.join(given)}; give FitConfig.parts a class with all of "
                f"{', '.join(names)}."
            )
    for name, part in given.items():
        if name not in {*names, *parts.optional} and part != defaults[name]:
            raise ValueError(
                f"parts.{name} has fields that differ from their defaults, but the system has no "
                f"such part (it has {', '.join(names)}): leave them alone."
            )
    return {name: _with_end(name, given[name], steps) for name in names}


def _with_end(name: str, part: PartTraining, steps: int) -> PartTraining:
    for field in ("lr", "eps"):
        if not getattr(part, field) > 0:
            raise ValueError(f"parts.{name}.{field}={getattr(part, field)} must be greater than 0.")
    for field in ("b1", "b2"):
        if not 0 <= getattr(part, field) < 1:
            raise ValueError(
                f"parts.{name}.{field}={getattr(part, field)} is no decay: give 0 or more, below 1."
            )
    for field in ("clip", "decay", "warmup", "start", "stop"):
        if getattr(part, field) < 0:
            raise ValueError(f"parts.{name}.{field}={getattr(part, field)} must not be negative.")
    stop = part.stop or steps
    if part.start >= stop:
        raise ValueError(
            f"parts.{name} starts at step {part.start} and stops before step {stop}: it would "
            f"never be trained; lower parts.{name}.start, or raise training.steps."
        )
    if part.schedule != "constant" and part.warmup >= stop - part.start:
        raise ValueError(
            f"parts.{name}.warmup={part.warmup} leaves nothing of its {stop - part.start} updates "
            f"for schedule={part.schedule}: shorten the warm-up, or make the schedule constant."
        )
    return dataclasses.replace(part, stop=stop)


def validate(training: FitTraining, num_devices: int) -> None:
    """Check the loop's numbers.

    Raises:
      ValueError: naming the field, its value and the remedy.
    """
    for name in ("steps", "batch_size", "accumulation", "chunk", "checkpoint_every"):
        if getattr(training, name) < 1:
            raise ValueError(f"training.{name}={getattr(training, name)} must be at least 1.")
    if training.keep_checkpoints < 1:
        raise ValueError(f"training.keep_checkpoints={training.keep_checkpoints}: keep at least 1.")
    if training.epochs < 0:
        raise ValueError(f"training.epochs={training.epochs} must not be negative.")
    if not 0 <= training.ema < 1:
        raise ValueError(f"training.ema={training.ema} is no decay: give 0 or more, below 1.")
    pieces = num_devices * training.accumulation
    if training.batch_size % pieces:
        raise ValueError(
            f"training.batch_size={training.batch_size} cannot be cut into equal pieces for "
            f"{num_devices} devices and training.accumulation={training.accumulation}: make it a "
            f"multiple of {pieces}."
        )
