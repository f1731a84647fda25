"""Readers of the file formats in which images with known factors are published."""

import contextlib
import dataclasses
import importlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.io
from PIL import Image

from worldmodels_jax.files import replacing

Found = tuple[Any, np.ndarray | None]  # images (N, H, W, C) uint8, labels (N, M)
Blocks = Callable[[], Iterator[np.ndarray]]  # some images at a time, as they are in the file

_BLOCK = 1_000  # images that are read at once
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    TypeError,
    scipy.io.matlab.MatReadError,
)


class _UnfitError(ValueError):
    """A file that can be read but is not the one that was expected."""


@dataclasses.dataclass(frozen=True)
class FactorFile:
    """A published data set: its layout, and what must be found in it.

    Attributes:
      path: of the file, of the folder of ``.mat`` files, or of the table of ``.jpg`` files.
      kind: of the file.
      images: name of the array of images, or of their folder.
      image_shape: of an image in the file, (H, W, C) or (H, W).
      factor_names: M names.
      factor_sizes: M numbers of values; of the last factor, which varies fastest, at last.
      origin: address that the set can be got from.
      white: value of a full pixel in the file.
      labels: name of the array of the factors' values; where there is none, the images are those of
        all combinations in row-major order.
      ranges: of each factor if they are continuous; none if they are classes.
      count: N; 0 for the number of combinations.
      resized: side of the square that ``.jpg`` images are resized to.
    """

    path: str
    kind: Literal["npz", "h5", "mat", "jpg"]
    images: str
    image_shape: tuple[int, ...]
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    origin: str
    white: int = 255
    labels: str | None = None
    ranges: tuple[tuple[float, float], ...] = ()
    count: int = 0
    resized: int = 0

    @property
    def num_images(self) -> int:
        """N."""
        return self.count or math.prod(self.factor_sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C) of the images as they are handed out, C = 1 where the file has none."""
        H, W, *colours = self.image_shape
        return (self.num_images, self.resized or H, self.resized or W, *(colours or [1]))


def read_npz(file: FactorFile, path: Path, unpack: bool) -> Found:
    """Opens an archive of arrays; its images are read into memory, or unpacked once.

    Args:
      file: what must be found.
      path: of the archive.
      unpack: whether the images are mapped into memory from an uncompressed copy.

    Raises:
      FileNotFoundError: if it is missing.
      OSError: if the copy cannot be written.
      ValueError: if it is truncated or holds something else.
    """
    _require(file, path)

    def blocks() -> Iterator[np.ndarray]:
        with _damage_told(file, path), _member(file, path, file.images) as stream:
            shape, backwards, dtype = _header(stream)
            _check(file, path, file.images, shape, (file.num_images, *file.image_shape))
            if dtype.kind not in "ui" or backwards:
                order = "F" if backwards else "C"
                raise _wrong(
                    file, path, file.images, f"{dtype} in {order} order", "integers in C order"
                )
            size = dtype.itemsize * math.prod(file.image_shape)
            for first in range(0, file.num_images, _BLOCK):
                count = min(_BLOCK, file.num_images - first)
                block = np.frombuffer(stream.read(count * size), dtype)
                yield block.reshape(count, *file.image_shape)

    labels = None
    if file.labels:
        with _damage_told(file, path), _member(file, path, file.labels) as stream:
            labels = np.lib.format.read_array(stream, allow_pickle=False)
        _check_labels(file, path, labels)
    return (_mapped if unpack else _in_memory)(file, path, blocks), labels


def read_h5(file: FactorFile, path: Path, unpack: bool) -> Found:
    """Opens an HDF5 file; its images stay there, to be read when they are asked for.

    Args:
      file: what must be found.
      path: of the file.
      unpack: whether the images are mapped into memory from an uncompressed copy.

    Raises:
      FileNotFoundError: if it is missing.
      ModuleNotFoundError: if h5py is not installed.
      OSError: if the copy cannot be written.
      ValueError: if it is truncated or holds something else.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is an HDF5 file, which h5py reads, and that is not installed: run "
            "`pip install 'worldmodels_jax[data]'`."
        ) from error
    _require(file, path)
    with contextlib.ExitStack() as stack:
        with _damage_told(file, path):
            content = stack.enter_context(h5py.File(path, "r"))
            for name in filter(None, (file.images, file.labels)):
                if name not in content:
                    raise _lacks(file, path, name, list(content))
            images = content[file.images]
            _check(file, path, file.images, images.shape, (file.num_images, *file.image_shape))
            if images.dtype != np.uint8:
                raise _wrong(file, path, file.images, images.dtype, "uint8")
            labels = content[file.labels][...] if file.labels else None
        _check_labels(file, path, labels)

        def blocks() -> Iterator[np.ndarray]:
            with _damage_told(file, path):
                for first in range(0, file.num_images, _BLOCK):
                    yield images[first : first + _BLOCK]

        if unpack:
            return _mapped(file, path, blocks), labels
        stack.pop_all()  # the images keep the file open
        return images, labels


def read_mat(file: FactorFile, path: Path, unpack: bool) -> Found:
    """Reads a folder of MATLAB files, one for each value of the last factor, named in ``list.txt``.

    Each holds images (H, W, C, sizes of the other factors, backwards), which are halved by
    averaging 2x2 pixels.

    Args:
      file: what must be found.
      path: of the folder.
      unpack: must be False.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if one is truncated or holds something else, or for ``unpack``.
    """
    if unpack:
        raise ValueError(
            f"{path} is read into memory as it is small, so unpack=True does nothing: leave it out."
        )
    listed = path / "list.txt"
    _require(file, listed)
    names = listed.read_text().split()
    *others, last = file.factor_sizes
    if len(names) != last:
        raise ValueError(
            f"{listed} names {len(names)} files, expected were {last}: it is truncated, or another "
            f"list; get the one of {file.origin}."
        )
    H, W, C = file.image_shape
    images = np.empty((*others, last, H // 2, W // 2, C), np.uint8)
    for number, name in enumerate(names):
        mat = path / f"{name.removesuffix('.mat')}.mat"
        _require(file, mat)
        with _damage_told(file, mat):
            content = scipy.io.loadmat(mat)
        if file.images not in content:
            raise _lacks(file, mat, file.images, [n for n in content if not n.startswith("__")])
        stored = content[file.images]
        _check(file, mat, file.images, stored.shape, (H, W, C, *reversed(others)))
        if stored.dtype != np.uint8:
            raise _wrong(file, mat, file.images, stored.dtype, "uint8")
        stored = stored.transpose(*reversed(range(3, stored.ndim)), 0, 1, 2)
        fours = stored.reshape(*others, H // 2, 2, W // 2, 2, C)
        images[..., number, :, :, :] = np.rint(fours.mean((-4, -2)))
    return images.reshape(file.num_images, H // 2, W // 2, C), None


def read_jpg(file: FactorFile, path: Path, unpack: bool) -> Found:
    """Reads a table of attributes, and a folder of the images that it names.

    The table's first line is N, its second the M names, and each other line the name of an image
    and M numbers. Images are resized, bilinearly and antialiased.

    Args:
      file: what must be found.
      path: of the table; the folder is beside it.
      unpack: whether the images are mapped into memory from an uncompressed copy.

    Raises:
      FileNotFoundError: if the table or an image is missing.
      OSError: if the copy cannot be written.
      ValueError: if the table or an image is truncated or holds something else.
    """
    _require(file, path)
    with _damage_told(file, path):
        count, names, *lines = path.read_text().splitlines()
        rows = [line.split() for line in lines]
        _check(file, path, "attributes", (int(count), len(rows)), (file.num_images,) * 2)
        if tuple(names.split()) != file.factor_names:
            raise _wrong(file, path, "names", names, " ".join(file.factor_names))
        labels = np.array([row[1:] for row in rows], np.float64)
    _check(file, path, "attributes", labels.shape, (file.num_images, len(file.factor_names)))

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, file.num_images, _BLOCK):
            names = [row[0] for row in rows[first : first + _BLOCK]]
            yield np.stack([_resized(file, path.parent / file.images / name) for name in names])

    return (_mapped if unpack else _in_memory)(file, path, blocks), labels


def _resized(file: FactorFile, path: Path) -> np.ndarray:
    _require(file, path)
    with _damage_told(file, path), Image.open(path) as image:
        shape = (image.height, image.width, len(image.getbands()))
        _check(file, path, "image", shape, file.image_shape)
        return np.asarray(image.resize((file.resized,) * 2, Image.Resampling.BILINEAR))


def _require(file: FactorFile, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: give the folder that holds {file.path} as it was "
            f"published, or get it from {file.origin} first (nothing is downloaded here)."
        )


@contextlib.contextmanager
def _damage_told(file: FactorFile, path: Path) -> Iterator[None]:
    try:
        yield
    except _UnfitError:
        raise
    except _DAMAGE as error:
        raise ValueError(
            f"{path} cannot be read as a file of kind {path.suffix} ({error}): it is truncated or "
            f"something else; delete it and get it anew from {file.origin}."
        ) from error


@contextlib.contextmanager
def _member(file: FactorFile, path: Path, name: str) -> Iterator[Any]:
    with zipfile.ZipFile(path) as archive:
        found = [member.removesuffix(".npy") for member in archive.namelist()]
        if name not in found:
            raise _lacks(file, path, name, found)
        with archive.open(f"{name}.npy") as stream:
            yield stream


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _lacks(file: FactorFile, path: Path, name: str, found: list[str]) -> _UnfitError:
    return _UnfitError(
        f"{path} has no array {name!r}, only {', '.join(found) or 'nothing'}: it is another file; "
        f"get the one of {file.origin}."
    )


def _wrong(file: FactorFile, path: Path, name: str, found: Any, expected: Any) -> _UnfitError:
    return _UnfitError(
        f"{name!r} in {path} is {found}, expected was {expected}: it is truncated, or another "
        f"file; get the one of {file.origin}."
    )


def _check(
    file: FactorFile, path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if tuple(shape) != expected:
        raise _wrong(file, path, name, f"of shape {tuple(shape)}", expected)


def _check_labels(file: FactorFile, path: Path, labels: np.ndarray | None) -> None:
    if labels is not None and file.labels:
        _check(file, path, file.labels, labels.shape, (file.num_images, len(file.factor_names)))
        if labels.dtype.kind not in "uif":
            raise _wrong(file, path, file.labels, labels.dtype, "numbers")


def _pixels(file: FactorFile, path: Path, blocks: Blocks) -> Iterator[np.ndarray]:
    """Blocks (n, H, W, C) uint8, 255 for white."""
    for block in blocks():
        if block.min() < 0 or block.max() > file.white:
            raise _wrong(
                file, path, file.images, f"{block.min()} to {block.max()}", f"0 to {file.white}"
            )
        pixels = block.astype(np.uint8) * np.uint8(255 // file.white)
        yield pixels.reshape(len(block), *file.shape[1:])


def _in_memory(file: FactorFile, path: Path, blocks: Blocks) -> np.ndarray:
    images = np.empty(file.shape, np.uint8)
    done = 0
    for block in _pixels(file, path, blocks):
        images[done : done + len(block)] = block
        done += len(block)
    return images


def _mapped(file: FactorFile, path: Path, blocks: Blocks) -> np.ndarray:
    """A memory map of the unpacked images, which are written unless they are there already."""
    unpacked = path.with_suffix(".images.npy")
    if not unpacked.exists() or unpacked.stat().st_mtime < path.stat().st_mtime:
        header = {"descr": "|u1", "fortran_order": False, "shape": file.shape}
        # Written, not mapped: a map of a full disk ends the process.
        with replacing(unpacked) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for block in _pixels(file, path, blocks):
                stream.write(block.tobytes())
    try:
        images = np.load(unpacked, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{unpacked} cannot be read ({error}): it is damaged; delete it, and it is made again."
        ) from error
    if (images.shape, images.dtype) != (file.shape, np.uint8):
        raise ValueError(
            f"{unpacked} holds {images.dtype} of shape {images.shape}, expected was uint8 of "
            f"{file.shape}: delete it, and it is made again."
        )
    return images
