"""The data set of a run of ``fit``: one config class for each kind."""

import dataclasses
import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from worldmodels_jax.config import to_dict
from worldmodels_jax.data import factors, rain, traced_sets
from worldmodels_jax.data.dataset import Arrays, Dataset, split
from worldmodels_jax.data.shapes3d import shapes3d_like
from worldmodels_jax.files import replacing


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
class MadeConfig(DataConfig):
    """A data set that is made of nothing but its fields, and can be kept on disk once made."""

    @property
    def title(self) -> str:
        """What it is, for messages."""
        raise NotImplementedError

    def make(self) -> Arrays:
        """All arrays of the set, name -> (...)."""
        raise NotImplementedError

    def dataset(self, arrays: Arrays) -> Dataset:
        """The data set, of what ``make`` returned."""
        raise NotImplementedError

    def load(self, data_dir: Path | None) -> Dataset:
        """See ``DataConfig``."""
        if data_dir is not None:
            raise ValueError(
                f"{self.title} is made, not read: leave out --data_dir={data_dir}, or choose a "
                "data set of files."
            )
        return self.dataset(self.make())


@dataclasses.dataclass(frozen=True)
class FactorsConfig(MadeConfig):
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

    @property
    def title(self) -> str:
        """See ``MadeConfig``."""
        return self.name

    def make(self) -> Arrays:
        """See ``MadeConfig``."""
        key = jax.random.key(self.seed)
        made = factors.make_images(_FACTOR_SETS[self.name](), key, self.count or None)
        return {"image": np.asarray(made.images), "factors": np.asarray(made.factors)}

    def dataset(self, arrays: Arrays) -> Dataset:
        """See ``MadeConfig``."""
        parts = split(arrays, self.test_share, self.seed)
        return Dataset(self.name, *parts, _FACTOR_SETS[self.name]())


_FACTOR_SETS = {
    "sprites": factors.sprites,
    "sprites16": factors.sprites16,
    "shapes3d_like": shapes3d_like,
    "teapots_like": traced_sets.teapots_like,
    "mpi3d_like": traced_sets.mpi3d_like,
    "cars3d_like": traced_sets.cars3d_like,
}


@dataclasses.dataclass(frozen=True)
class RainConfig(MadeConfig):
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

    @property
    def title(self) -> str:
        """See ``MadeConfig``."""
        return f"the {self.physics} rain"

    def _simulator(self) -> rain.RainPhysics:
        physics = rain.full_physics() if self.physics == "full" else rain.toy_physics()
        return dataclasses.replace(
            physics, rows=self.rows or physics.rows, columns=self.columns or physics.columns
        )

    def make(self) -> Arrays:
        """See ``MadeConfig``."""
        positive(self, "count", "test_count")
        physics = self._simulator()
        keys = jax.random.split(jax.random.key(self.seed), self.count + self.test_count)

        def event(key: jax.Array) -> dict[str, jax.Array]:
            made = rain.simulate(key, physics)
            return {"rain": made.frames, "accumulation": made.accumulation}

        made = jax.jit(lambda keys: jax.lax.map(event, keys, batch_size=64))(keys)
        return {name: np.asarray(x) for name, x in made.items()}

    def dataset(self, arrays: Arrays) -> Dataset:
        """See ``MadeConfig``."""
        train = {name: x[: self.count] for name, x in arrays.items()}
        test = {name: x[self.count :] for name, x in arrays.items()}
        return Dataset(f"rain_{self.physics}", train, test, self._simulator())


def load_data(
    config: DataConfig, data_dir: Path | None = None, cache_dir: Path | None = None
) -> Dataset:
    """The data set of a config, which knows where it comes from.

    Args:
      config: of the set.
      data_dir: see ``DataConfig.load``.
      cache_dir: where sets that are made are kept, to be read the next time; None keeps none.

    Raises:
      ValueError: as ``DataConfig.load`` does; for a set that is read and a ``cache_dir``; for a
        damaged file in it.
      OSError: if a file is missing, or cannot be read or written.
    """
    if cache_dir is None:
        return config.load(data_dir)._replace(config=config)
    if not isinstance(config, MadeConfig) or data_dir is not None:
        raise ValueError(
            f"--cache_dir={cache_dir} keeps data sets that are made, this one is read from files: "
            "leave it out."
        )
    fields = json.dumps([type(config).__name__, to_dict(config)], sort_keys=True)
    path = cache_dir / f"{hashlib.sha256(fields.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path}, which keeps {config.title}, is damaged ({error}): delete it, and the set "
                "is made again."
            ) from error
    else:
        arrays = config.make()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    return config.dataset(arrays)._replace(config=config)


def positive(config: DataConfig, *names: str) -> None:
    """Check numbers of examples and the like.

    Raises:
      ValueError: for a field that is not at least 1.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"data.{name}={getattr(config, name)} must be at least 1.")
