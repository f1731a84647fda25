"""Loading a run of ``fit``: to evaluate it, or to use what it learned."""

from pathlib import Path
from typing import NamedTuple

import jax

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.models.offline import OfflineSystem
from worldmodels_jax.training.checkpoint import abstract, open_checkpoints
from worldmodels_jax.training.data_config import load_data
from worldmodels_jax.training.directory import CHECKPOINTS, choose_step, read_saved, seed_index
from worldmodels_jax.training.fit_config import FitConfig, num_steps
from worldmodels_jax.training.fit_loop import evaluated, make_fit_loop, make_system
from worldmodels_jax.types import PyTree


class SavedFit(NamedTuple):
    """What ``config.json`` of a run says.

    Attributes:
      config: of the run.
      seed: its first seed.
      num_seeds: S.
      own_dataset: name of the data set that was handed to ``fit``, if one was.
    """

    config: FitConfig
    seed: int
    num_seeds: int
    own_dataset: str | None = None


def read_fit_config(directory: Path) -> SavedFit:
    """The config of a run of ``fit``, its first seed and the number of seeds.

    Raises:
      CheckpointError: if the directory holds no run, or not of this kind.
    """
    return SavedFit(**read_saved(directory, FitConfig))


class LoadedFit(NamedTuple):
    """A trained run: its system, its data, and what it learned."""

    directory: Path
    config: FitConfig
    seed: int
    step: int
    dataset: Dataset
    system: OfflineSystem
    variables: PyTree


def load_fit(
    directory: str | Path,
    *,
    seed: int | None = None,
    step: int | None = None,
    data_dir: Path | None = None,
    dataset: Dataset | None = None,
) -> LoadedFit:
    """Load a checkpoint of a run of ``fit``.

    Args:
      directory: of the run.
      seed: which of its seeds; by default the first.
      step: which of its checkpoints; by default the newest.
      data_dir: where the files of the data set are, for sets that are read.
      dataset: the one of the caller's own that it was trained on, or one that is at hand already.

    Raises:
      CheckpointError: if there is no run, no checkpoint, no such seed or step, or a damaged one.
      ValueError: if the data set cannot be made without ``data_dir`` or ``dataset``.
      OSError: if a file of the data set is missing.
    """
    directory = Path(directory)
    config, first, count, own = read_fit_config(directory)
    index = seed_index(directory, seed, first, count)
    if own is not None and dataset is None:
        raise ValueError(
            f"{directory} was trained on a data set of your own, {own!r}, which a command cannot "
            "make again: call worldmodels_jax.training.fit.load_fit(directory, dataset=...)."
        )
    data = load_data(config.data, data_dir) if dataset is None else dataset
    system = make_system(config, data)
    loop = make_fit_loop(config, system, num_steps(config.training, data.spec.num_train))
    checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
    try:
        step = choose_step(checkpoints, step, config.training.checkpoint_every)
        like = jax.eval_shape(loop.init, jax.random.key(0)).train
        if count > 1:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), like)
        train = checkpoints.restore_train(step, abstract(like))
    finally:
        checkpoints.close()
    if count > 1:
        train = jax.tree.map(lambda x: x[index], train)
    return LoadedFit(directory, config, first + index, step, data, system, evaluated(train))
