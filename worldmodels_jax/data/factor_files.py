"""Public data sets of images with known factors, from dSprites to CelebA.

Their files are read as they were published; nothing is downloaded and nothing unpickled. N is the
number of images, M that of factors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldmodels_jax.data import factor_readers
from worldmodels_jax.data.factor_readers import FactorFile

_BINS = 10  # classes of a continuous factor
_ATTRIBUTES = (  # of CelebA
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip

FILES: Mapping[str, FactorFile] = {
    "dsprites": FactorFile(
        path="dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        kind="npz",
        images="imgs",
        image_shape=(64, 64),
        white=1,
        labels="latents_classes",
        factor_names=("colour", "shape", "scale", "orientation", "x", "y"),
        factor_sizes=(1, 3, 6, 40, 32, 32),
        origin="https://github.com/google-deepmind/dsprites-dataset",
    ),
    "3dshapes": FactorFile(
        path="3dshapes.h5",
        kind="h5",
        images="images",
        image_shape=(64, 64, 3),
        labels="labels",
        factor_names=("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"),
        factor_sizes=(10, 10, 10, 8, 4, 15),
        origin="https://github.com/google-deepmind/3d-shapes",
    ),
    "mpi3d_real": FactorFile(
        path="mpi3d_real.npz",
        kind="npz",
        images="images",
        image_shape=(64, 64, 3),
        factor_names=(
            "colour",
            "shape",
            "size",
            "camera_height",
            "background",
            "horizontal_axis",
            "vertical_axis",
        ),
        factor_sizes=(6, 6, 2, 3, 3, 40, 40),
        origin="https://github.com/rr-learning/disentanglement_dataset",
    ),
    "teapots": FactorFile(
        path="teapots.npz",
        kind="npz",
        images="images",
        image_shape=(64, 64, 3),
        labels="gts",
        factor_names=("azimuth", "elevation", "red", "green", "blue"),
        factor_sizes=(_BINS,) * 5,
        ranges=((0.0, 2 * np.pi), (0.0, np.pi / 2), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0)),
        count=200_000,
        origin="https://github.com/cianeastwood/qedr",
    ),
    "cars3d": FactorFile(
        path="cars",
        kind="mat",
        images="im",
        image_shape=(128, 128, 3),
        factor_names=("elevation", "azimuth", "car_type"),
        factor_sizes=(4, 24, 183),
        origin="http://www.scottreed.info/files/nips2015-analogy-data.tar.gz",
    ),
    "celeba": FactorFile(
        path="list_attr_celeba.txt",
        kind="jpg",
        images="img_align_celeba",
        image_shape=(218, 178, 3),
        factor_names=_ATTRIBUTES,
        factor_sizes=(2,) * 40,
        ranges=((-1.0, 1.0),) * 40,  # no and yes
        count=202_599,
        resized=64,
        origin="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
}


class FactorDataset(NamedTuple):
    """Images of a public set with the factors that they show."""

    images: Any  # (N, H, W, C) uint8: an array, a memory map or an open HDF5 data set
    factors: np.ndarray  # (N, M) int32
    factor_sizes: tuple[int, ...]
    factor_names: tuple[str, ...]


def load_factor_dataset(name: str, root: Path, *, unpack: bool = False) -> FactorDataset:
    """Opens a public data set.

    Images are RGB, of dSprites grey (C = 1) with 255 for white; those of Cars3D are halved to
    64x64, those of CelebA resized to it. Factors are classes; the continuous ones of Teapots are
    cut into 10 of equal width. The colour of dSprites, which never changes, is left out. 3DShapes'
    images stay in the file until they are asked for; a compressed ``.npz`` is read into memory, up
    to 13 GB, and so are CelebA's images, 2.5 GB.

    Args:
      name: a key of ``FILES``.
      root: the folder that holds the set's file or, for Cars3D, the folder ``cars``; for
        CelebA the attributes' table and, beside it, the folder ``img_align_celeba``.
      unpack: write the images to an uncompressed ``.npy`` next to the file, once, and map that into
        memory: random access without reading all of them.

    Raises:
      FileNotFoundError: if a file is missing.
      ModuleNotFoundError: for 3DShapes without h5py.
      OSError: if the unpacked file cannot be written.
      ValueError: for an unknown name, and for a file that is truncated or holds something else.
    """
    if name not in FILES:
        raise ValueError(f"there is no factor data set {name!r}: choose one of {', '.join(FILES)}.")
    return read_factor_file(FILES[name], root, unpack=unpack)


def read_factor_file(file: FactorFile, root: Path, *, unpack: bool = False) -> FactorDataset:
    """Opens a data set in one of the public layouts.

    Args:
      file: the layout, and what must be found.
      root: see ``load_factor_dataset``.
      unpack: see ``load_factor_dataset``.

    Raises:
      FileNotFoundError: see ``load_factor_dataset``.
      ModuleNotFoundError: see ``load_factor_dataset``.
      OSError: see ``load_factor_dataset``.
      ValueError: see ``load_factor_dataset``.
    """
    path = Path(root) / file.path
    reader = {
        "npz": factor_readers.read_npz,
        "h5": factor_readers.read_h5,
        "mat": factor_readers.read_mat,
        "jpg": factor_readers.read_jpg,
    }[file.kind]
    images, labels = reader(file, path, unpack)
    if labels is None:
        factors = np.stack(np.unravel_index(np.arange(file.num_images), file.factor_sizes), 1)
    elif file.ranges:
        factors = _binned(file, path, labels)
    else:
        factors = _classes(file, path, labels)
    varies = [j for j, size in enumerate(file.factor_sizes) if size > 1]
    return FactorDataset(
        images,
        factors[:, varies].astype(np.int32),
        tuple(file.factor_sizes[j] for j in varies),
        tuple(file.factor_names[j] for j in varies),
    )


def _binned(file: FactorFile, path: Path, labels: np.ndarray) -> np.ndarray:
    """Classes of equal width; the last one has its upper end too."""
    classes = np.empty(labels.shape, np.int64)
    for j, (name, (low, high)) in enumerate(zip(file.factor_names, file.ranges, strict=True)):
        share = (labels[:, j].astype(np.float64) - low) / (high - low)
        if not ((share > -1e-6) & (share < 1 + 1e-6)).all():  # a NaN neither
            raise ValueError(
                f"{name} in {path} is {labels[:, j].min():g} to {labels[:, j].max():g}, expected "
                f"was {low:g} to {high:g}: it is another file; get the one of {file.origin}."
            )
        size = file.factor_sizes[j]
        classes[:, j] = np.clip(np.floor(size * share), 0, size - 1)
    return classes


def _classes(file: FactorFile, path: Path, labels: np.ndarray) -> np.ndarray:
    """The rank of each label among those of its factor; all combinations must be there."""
    columns = []
    for name, size, column in zip(file.factor_names, file.factor_sizes, labels.T, strict=True):
        values, ranks = np.unique(column, return_inverse=True)
        if len(values) != size:
            raise ValueError(
                f"{name} in {path} has {len(values)} values, expected were {size}: it is another "
                f"file; get the one of {file.origin}."
            )
        columns.append(ranks)
    places = np.ravel_multi_index(columns, file.factor_sizes)
    missing = file.num_images - len(np.unique(places))
    if missing:
        raise ValueError(
            f"{path} lacks {missing} of the {file.num_images} combinations of its factors: it is "
            f"damaged; get it anew from {file.origin}."
        )
    return np.stack(columns, axis=1)
