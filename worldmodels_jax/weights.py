"""Weights of published networks, read from files of the user's: none come with this library."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def read_weights(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], *, what: str, how: str
) -> dict[str, np.ndarray]:
    """Read a network's arrays from an ``.npz`` file.

    Args:
      path: of the file; it may hold more.
      shapes: name -> shape of what is needed.
      what: the network, for errors.
      how: a user comes by the file, for errors.

    Returns:
      The arrays by name, float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no ``.npz`` file, or arrays are missing or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} with the weights of {what}, which cannot be downloaded from "
            f"here: {how}."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file: write the weights of {what} with np.savez.")
    with np.load(path) as file:
        found = {name: file[name] for name in file.files if name in shapes}
    missing = [name for name in shapes if name not in found]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(shapes)} arrays of {what}, {missing[0]!r} "
            f"for one: {how}."
        )
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise ValueError(
                f"{path}: {name!r} is of shape {found[name].shape} where {what} has {shape}: {how}."
            )
    return {name: np.asarray(found[name], np.float32) for name in shapes}
