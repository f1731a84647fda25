"""Some rows of an array that is too large for memory, read when they are asked for."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """A selection of rows, as an array that is read where it is indexed.

    It is indexed along its first axis only, by a slice or by numbers of rows. Those of an HDF5 data
    set must increase; slices of a selection in rising order do.

    Attributes:
      stored: (N', ...): an array, a memory map or an HDF5 data set.
      selected: (N,) int64, rows of ``stored``.
    """

    stored: Any
    selected: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self.selected), *self.stored.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the elements."""
        return np.dtype(self.stored.dtype)

    def __len__(self) -> int:
        """N."""
        return len(self.selected)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Reads rows into memory."""
        return np.asarray(self.stored[self.selected[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all rows into memory."""
        if copy is False:
            raise ValueError("rows of a file cannot be an array without being copied from it.")
        return np.asarray(self[:], dtype)
