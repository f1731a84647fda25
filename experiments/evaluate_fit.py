"""Evaluate a run of ``fit``: the tables of its chapter, or the losses on the test examples.

``python -m experiments.evaluate --run=DIR`` comes here with runs of ``experiments.fit``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import nowcast, representation
from worldmodels_jax.data.dataset import Dataset, num_examples
from worldmodels_jax.evaluation.image_features import inception
from worldmodels_jax.files import replacing
from worldmodels_jax.models.nowcasting_config import NowcastingConfig
from worldmodels_jax.models.vae import VaeConfig
from worldmodels_jax.training.data_config import DataConfig, load_data
from worldmodels_jax.training.fit import load_fit, read_fit_config
from worldmodels_jax.training.fit_load import LoadedFit

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the files of a data set are, for those that are read."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Where data sets that are made are kept; by default they are made anew."
)
_FAST = flags.DEFINE_bool("fast", False, "Fewer examples and trees; representation learners only.")
_INCEPTION = flags.DEFINE_string(
    "inception",
    None,
    "Weights of Inception-v3 as .npz, for the published distances; representation learners only.",
)
_MEMBERS = flags.DEFINE_integer(
    "members", None, "Forecasts per event, 5 by default; nowcasts only.", lower_bound=1
)
_BATCH = 64


class Evaluator(NamedTuple):
    """How runs of a system are evaluated.

    Attributes:
      run: ``(run) -> JSON values``, of one seed.
      describe: ``(result) -> text`` for a terminal.
      draw: ``(run, directory) -> paths`` of the figures it has written.
    """

    run: Callable[[LoadedFit], dict[str, Any]]
    describe: Callable[[dict[str, Any]], str]
    draw: Callable[[LoadedFit, Path], list[Path]]


def dataset(config: DataConfig) -> Dataset:
    """The data set of a config, from where ``--data_dir`` and ``--cache_dir`` say."""
    data_dir, cache_dir = (
        None if flag.value is None else Path(flag.value) for flag in (_DATA_DIR, _CACHE_DIR)
    )
    return load_data(config, data_dir, cache_dir)


def evaluate(directory: Path, *, step: int | None = None, data: Any = None) -> list[Path]:
    """Evaluate all seeds of a run; print; write ``evaluation.json`` and figures.

    Args:
      directory: of the run.
      step: of the checkpoint; None takes the newest.
      data: its data set, if that is at hand.

    Returns:
      What was written.
    """
    config, first, count, _ = read_fit_config(directory)
    data = dataset(config.data) if data is None else data
    evaluator = _evaluator(type(config.model))
    per_seed, written = {}, []
    for seed in range(first, first + count):
        run = load_fit(directory, seed=seed, step=step, dataset=data)
        per_seed[str(seed)] = evaluator.run(run)
        print(f"Evaluation of {config.preset} at step {run.step}, seed {seed}:")
        print(evaluator.describe(per_seed[str(seed)]), flush=True)
        if seed == first:
            written += evaluator.draw(run, directory)
    result = {
        "preset": config.preset,
        "step": run.step,
        "data": data.name,
        "test_examples": num_examples(data.test),
        "per_seed": per_seed,
    }
    path = directory / "evaluation.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    return [path, *written]


def check_flags(model: type) -> None:
    """Refuse at once what an evaluation would refuse once all is trained.

    Args:
      model: class of the model's config.

    Raises:
      FileNotFoundError: if there is no file of weights.
      ValueError: if a flag does nothing for such a model, or the weights are others.
    """
    _evaluator(model)
    if _INCEPTION.value is not None:
        inception(Path(_INCEPTION.value))


def _evaluator(model: type) -> Evaluator:
    """How runs of a system are evaluated; those that have no chapter's tables by their losses."""
    known: dict[type, tuple[Evaluator, tuple[Any, ...]]] = {
        VaeConfig: (
            Evaluator(_representation, representation.describe, representation.draw),
            (_FAST, _INCEPTION),
        ),
        NowcastingConfig: (Evaluator(_nowcast, nowcast.describe, nowcast.draw), (_MEMBERS,)),
    }
    for kind, (evaluator, meant) in known.items():
        if issubclass(model, kind):
            refuse_flags(f"a run of {model.__name__}", _DATA_DIR, _CACHE_DIR, *meant)
            return evaluator
    refuse_flags(f"a run of {model.__name__}", _DATA_DIR, _CACHE_DIR)
    return Evaluator(losses_on_test, _describe_losses, lambda run, directory: [])


def refuse_flags(what: str, *meant: Any) -> None:
    """Refuse those of these flags that would do nothing.

    Raises:
      ValueError: if one is given and not meant.
    """
    names = {flag.name for flag in meant}  # the flags themselves cannot be compared
    for flag in (_DATA_DIR, _CACHE_DIR, _FAST, _INCEPTION, _MEMBERS):
        if flag.present and flag.name not in names:
            raise ValueError(f"--{flag.name} has no effect on {what}: leave it out.")


def _representation(run: LoadedFit) -> Any:
    vae: Any = run.system
    return representation.evaluate_run(
        vae,
        run.variables,
        run.dataset,
        fast=_FAST.value,
        seed=run.seed,
        inception_file=None if _INCEPTION.value is None else Path(_INCEPTION.value),
    )


def _nowcast(run: LoadedFit) -> dict[str, Any]:
    nowcaster: Any = run.system
    return nowcast.evaluate_run(
        nowcaster, run.variables, run.dataset, members=_MEMBERS.value or 5, seed=run.seed
    )


def losses_on_test(run: LoadedFit) -> dict[str, Any]:
    """The metrics of each part's loss: means over the test examples, in whole batches.

    Args:
      run: of any system.

    Returns:
      ``part/metric`` -> value.
    """
    size = num_examples(run.dataset.test)
    batch_size = min(_BATCH, size)

    @jax.jit
    def losses(batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        out: dict[str, jax.Array] = {}
        for name, loss in run.system.losses.items():
            _, (_, metrics) = loss(run.variables, batch, key, jax.numpy.int32(run.step))
            out |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        return out

    rows = []
    for at in range(0, size - batch_size + 1, batch_size):
        batch = {k: np.asarray(x[at : at + batch_size]) for k, x in run.dataset.test.items()}
        rows.append(jax.device_get(losses(batch, jax.random.key(at))))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _describe_losses(result: dict[str, Any]) -> str:
    return "\n".join(f"  {name}: {value:.4g}" for name, value in result.items())
