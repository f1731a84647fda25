"""The data set of a run of ``fit``: one config class for each kind."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from worldmodels_jax.data import factors, rain, traced_sets
from worldmodels_jax.data.dataset import Dataset, split
from worldmodels_jax.data.shapes3d import shapes3d_like


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A data set. A kind's own is a subclass, which a saved run finds by itself."""

    def load(self, data_dir: Path | None) -> Dataset:
        """Make the examples, or read them.

        Args:
          data_dir: where the files are, for sets that are read; None for those that are made.

        Raises:
          ValueError: if files are needed and ``data_dir`` is None, or the other way round.
          OSError: if a file is missing or cannot be read.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FactorsConfig(DataConfig):
    """Images with known factors: ``{"image": (H, W, C) uint8, "factors": (M,) int32}``.

    Attributes:
      name: of the set.
      count: images drawn without replacement; 0 takes all combinations of the factors.
      seed: of the draw and of the split.
      test_share: of the images that are kept for evaluation.
    """

    name: Literal[
        "sprites", "sprites16", "shapes3d_like", "teapots_like", "mpi3d_like", "cars3d_like"
    ] = "sprites16"
    count: int = 0
    seed: int = 0
    test_share: float = 0.2

    def load(self, data_dir: Path | None) -> Dataset:
        """See ``DataConfig``."""
        no_files(self.name, data_dir)
        makers = {
            "sprites": factors.sprites,
            "sprites16": factors.sprites16,
            "shapes3d_like": shapes3d_like,
            "teapots_like": traced_sets.teapots_like,
            "mpi3d_like": traced_sets.mpi3d_like,
            "cars3d_like": traced_sets.cars3d_like,
        }
        factor_set = makers[self.name]()
        made = factors.make_images(factor_set, jax.random.key(self.seed), self.count or None)
        arrays = {"image": np.asarray(made.images), "factors": np.asarray(made.factors)}
        return Dataset(self.name, *split(arrays, self.test_share, self.seed), factor_set)


@dataclasses.dataclass(frozen=True)
class RainConfig(DataConfig):
    """Simulated rain: ``{"rain": (9, H, W) float32, mm/h, "accumulation": (H, W) float32, mm}``.

    Attributes:
      physics: of the simulator: 256x256 of 1 km, or a toy of 8x8 of 4 km.
      rows: of the grid; 0 takes the physics' own.
      columns: of the grid; 0 takes the physics' own.
      count: events to train on.
      test_count: events to evaluate with.
      seed: of all events.
    """

    physics: Literal["full", "toy"] = "toy"
    rows: int = 0
    columns: int = 0
    count: int = 4_000
    test_count: int = 1_000
    seed: int = 0

    def load(self, data_dir: Path | None) -> Dataset:
        """See ``DataConfig``."""
        no_files(f"the {self.physics} rain", data_dir)
        physics = rain.full_physics() if self.physics == "full" else rain.toy_physics()
        physics = dataclasses.replace(
            physics, rows=self.rows or physics.rows, columns=self.columns or physics.columns
        )
        keys = jax.random.split(jax.random.key(self.seed), self.count + self.test_count)

        def event(key: jax.Array) -> dict[str, jax.Array]:
            made = rain.simulate(key, physics)
            return {"rain": made.frames, "accumulation": made.accumulation}

        made = jax.jit(lambda keys: jax.lax.map(event, keys, batch_size=64))(keys)
        arrays = {name: np.asarray(x) for name, x in made.items()}
        train = {name: x[: self.count] for name, x in arrays.items()}
        test = {name: x[self.count :] for name, x in arrays.items()}
        return Dataset(f"rain_{self.physics}", train, test, physics)


def load_data(config: DataConfig, data_dir: Path | None) -> Dataset:
    """The data set of a config, which knows where it comes from; see ``DataConfig.load``."""
    return config.load(data_dir)._replace(config=config)


def no_files(name: str, data_dir: Path | None) -> None:
    """Refuse a folder that would not be read.

    Raises:
      ValueError: if there is one.
    """
    if data_dir is not None:
        raise ValueError(
            f"{name} is made, not read: leave out --data_dir={data_dir}, or choose a data set of "
            "files."
        )
