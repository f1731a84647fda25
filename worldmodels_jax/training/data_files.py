"""Public data sets of images with known factors, as the data of a run of ``fit``."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldmodels_jax.data.dataset import Dataset, split
from worldmodels_jax.data.factor_files import load_factor_dataset
from worldmodels_jax.data.rows import Rows
from worldmodels_jax.training.data_config import DataConfig


@dataclasses.dataclass(frozen=True)
class FactorFilesConfig(DataConfig):
    """Published images: ``{"image": (H, W, C) uint8, "factors": (M,) int32}``.

    The images are ``Rows``: those that stay in a file are read when a batch asks for them.

    Attributes:
      name: of the set.
      count: images drawn without replacement; 0 takes all.
      seed: of the draw and of the split.
      test_share: of the images that are kept for evaluation.
      unpack: write the images once to an uncompressed file next to the published one and map that
        into memory; for a set that memory does not hold, or of which HDF5 reads too slowly.
    """

    name: Literal["dsprites", "3dshapes", "mpi3d_real", "teapots", "cars3d", "celeba"] = "dsprites"
    count: int = 0
    seed: int = 0
    test_share: float = 0.2
    unpack: bool = False

    def load(self, data_dir: Path | None) -> Dataset:
        """See ``DataConfig``."""
        if data_dir is None:
            raise ValueError(
                f"{self.name} is read from files: give the folder that holds them, "
                "--data_dir=FOLDER, or choose a data set that is made."
            )
        found = load_factor_dataset(self.name, data_dir, unpack=self.unpack)
        size = len(found.factors)
        if not 0 <= self.count <= size:
            raise ValueError(
                f"data.count={self.count} images cannot be drawn from the {size} of {self.name}: "
                f"give 0 for all, or at most {size}."
            )
        rows = np.arange(size)
        if self.count:
            rows = np.sort(np.random.default_rng(self.seed).permutation(size)[: self.count])
        parts = split({"row": rows}, self.test_share, self.seed)
        train, test = (self._arrays(found.images, found.factors, part["row"]) for part in parts)
        return Dataset(self.name, train, test, found)

    @staticmethod
    def _arrays(images: Any, factors: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        return {"image": Rows(images, rows), "factors": factors[rows]}
