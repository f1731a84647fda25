"""Readers of public factor data sets, on small files of their layouts; what they refuse."""

import dataclasses
import gc
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from worldmodels_jax.data import factor_readers
from worldmodels_jax.data.factor_files import FILES, load_factor_dataset, read_factor_file
from worldmodels_jax.data.factor_readers import FactorFile
from worldmodels_jax.data.rows import Rows

RNG = np.random.default_rng(0)


def pictures(*shape: int, largest: int = 255) -> np.ndarray:
    return RNG.integers(0, largest + 1, shape).astype(np.uint8)


def grid(*sizes: int) -> np.ndarray:
    return np.stack([axis.ravel() for axis in np.indices(sizes)], axis=1)


def small(name: str, **changes: Any) -> FactorFile:
    """A public layout with fewer and smaller images."""
    return dataclasses.replace(FILES[name], **changes)


DSPRITES = small("dsprites", image_shape=(4, 4), factor_sizes=(1, 2, 2, 1, 1, 4))
SHAPES3D = small("3dshapes", image_shape=(4, 4, 3), factor_sizes=(2, 2, 1, 2, 2, 1))
MPI3D = small("mpi3d_real", image_shape=(4, 4, 3), factor_sizes=(2, 1, 1, 1, 2, 2, 2))
TEAPOTS = small("teapots", image_shape=(4, 4, 3), count=5)
CARS3D = small("cars3d", image_shape=(4, 6, 3), factor_sizes=(2, 3, 2))


def write_dsprites(root: Path) -> np.ndarray:
    images = pictures(16, 4, 4, largest=1)
    np.savez_compressed(
        root / DSPRITES.path,
        imgs=images,
        latents_classes=grid(1, 2, 2, 1, 1, 4),
        # The published file has such a pickle; to unpickle it is to run it.
        metadata=np.array({"author": "no one"}, dtype=object),
    )
    return images


def write_3dshapes(root: Path) -> tuple[np.ndarray, np.ndarray]:
    h5py = pytest.importorskip("h5py")
    images, classes = pictures(16, 4, 4, 3), grid(2, 2, 1, 2, 2, 1)
    tables = [[0.0, 0.5], [0.1, 0.6], [0.3], [1.25, 0.75], [0.0, 3.0], [-30.0]]
    labels = np.stack([np.array(t)[c] for t, c in zip(tables, classes.T, strict=True)], axis=1)
    with h5py.File(root / SHAPES3D.path, "w") as file:
        file["images"], file["labels"] = images, labels
    return images, classes


def write_mpi3d(root: Path) -> np.ndarray:
    images = pictures(16, 4, 4, 3)
    np.savez(root / MPI3D.path, images=images)
    return images


ANGLE = 2 * np.pi / 10


def write_teapots(root: Path, last_azimuth: float = 2 * np.pi) -> np.ndarray:
    images = pictures(5, 4, 4, 3)
    values = np.full((5, 5), 0.05)
    values[:, 0] = [0.0, 0.99 * ANGLE, 1.01 * ANGLE, 5.5 * ANGLE, last_azimuth]
    values[:, 1] = np.pi / 2 * np.array([0.0, 0.31, 0.49, 0.51, 1.0])
    np.savez(root / TEAPOTS.path, images=images.astype(np.int32), gts=values)
    return images


def write_cars3d(root: Path) -> np.ndarray:
    """Returns (types, H, W, C, azimuths, elevations)."""
    cars = pictures(2, 4, 6, 3, 3, 2)
    folder = root / CARS3D.path
    folder.mkdir()
    (folder / "list.txt").write_text("car_b\ncar_a.mat\n")
    for name, car in zip(("car_b", "car_a"), cars, strict=True):
        scipy.io.savemat(folder / f"{name}.mat", {"im": car})
    return cars


def test_the_published_sets_are_as_large_as_they_are() -> None:
    sizes = {name: file.num_images for name, file in FILES.items()}
    assert sizes == {
        "dsprites": 737_280,
        "3dshapes": 480_000,
        "mpi3d_real": 1_036_800,
        "teapots": 200_000,
        "cars3d": 17_568,
        "celeba": 202_599,
    }
    assert len(set(FILES["celeba"].factor_names)) == 40


def test_dsprites_are_white_on_black_without_their_one_colour(tmp_path: Path) -> None:
    images = write_dsprites(tmp_path)
    made = read_factor_file(DSPRITES, tmp_path)
    assert made.images.dtype == np.uint8
    np.testing.assert_array_equal(made.images, 255 * images[..., None])
    assert made.factors.dtype == np.int32
    # Others that never change in this small file are left out too.
    assert made.factor_names == ("shape", "scale", "y")
    assert made.factor_sizes == (2, 2, 4)
    np.testing.assert_array_equal(made.factors, grid(2, 2, 4))


@pytest.mark.parametrize("unpack", [False, True])
def test_3dshapes_stay_in_their_file(tmp_path: Path, unpack: bool) -> None:
    images, classes = write_3dshapes(tmp_path)
    made = read_factor_file(SHAPES3D, tmp_path, unpack=unpack)
    gc.collect()  # nobody but the images holds the file
    assert isinstance(made.images, np.ndarray) == unpack
    np.testing.assert_array_equal(made.images[3:5], images[3:5])
    np.testing.assert_array_equal(made.images[...], images)
    assert made.factor_names == ("floor_hue", "wall_hue", "scale", "shape")
    # Classes are in the order of their values, of which 0.75 comes before 1.25.
    expected = classes[:, [0, 1, 3, 4]] * [1, 1, -1, 1] + [0, 0, 1, 0]
    np.testing.assert_array_equal(made.factors, expected)


def test_mpi3d_are_all_combinations_in_order(tmp_path: Path) -> None:
    images = write_mpi3d(tmp_path)
    made = read_factor_file(MPI3D, tmp_path)
    np.testing.assert_array_equal(made.images, images)
    assert made.factor_names == ("colour", "background", "horizontal_axis", "vertical_axis")
    np.testing.assert_array_equal(made.factors, grid(2, 2, 2, 2))


def test_teapots_are_cut_into_ten_classes(tmp_path: Path) -> None:
    images = write_teapots(tmp_path)
    made = read_factor_file(TEAPOTS, tmp_path)
    assert made.images.dtype == np.uint8
    np.testing.assert_array_equal(made.images, images)
    assert made.factor_sizes == (10,) * 5
    np.testing.assert_array_equal(made.factors[:, 0], [0, 0, 1, 5, 9])
    np.testing.assert_array_equal(made.factors[:, 1], [0, 3, 4, 5, 9])
    np.testing.assert_array_equal(made.factors[:, 2:], 0)
    write_teapots(tmp_path, last_azimuth=6.5)
    with pytest.raises(ValueError, match=r"azimuth in .*teapots\.npz is 0 to 6\.5, expected was 0"):
        read_factor_file(TEAPOTS, tmp_path)


def test_cars_are_halved_and_put_in_the_order_of_their_factors(tmp_path: Path) -> None:
    cars = write_cars3d(tmp_path).astype(int)
    made = read_factor_file(CARS3D, tmp_path)
    assert made.images.shape == (12, 2, 3, 3)
    assert made.images.dtype == np.uint8
    np.testing.assert_array_equal(made.factors, grid(2, 3, 2))
    for image, (elevation, azimuth, car) in zip(made.images, made.factors, strict=True):
        stored = cars[car, :, :, :, azimuth, elevation]
        mean = (stored[::2, ::2] + stored[1::2, ::2] + stored[::2, 1::2] + stored[1::2, 1::2]) / 4
        np.testing.assert_allclose(image, mean, atol=0.5)


def test_unpacked_images_are_made_once_and_anew_if_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor_readers, "_BLOCK", 6)  # does not divide the 16 images
    images = write_mpi3d(tmp_path)
    made = read_factor_file(MPI3D, tmp_path, unpack=True)
    assert isinstance(made.images, np.memmap)
    np.testing.assert_array_equal(made.images, images)
    unpacked = tmp_path / "mpi3d_real.images.npy"
    first = unpacked.stat().st_mtime_ns
    read_factor_file(MPI3D, tmp_path, unpack=True)
    assert unpacked.stat().st_mtime_ns == first
    others = write_mpi3d(tmp_path)
    newer = unpacked.stat().st_mtime + 10
    os.utime(tmp_path / MPI3D.path, (newer, newer))
    np.testing.assert_array_equal(read_factor_file(MPI3D, tmp_path, unpack=True).images, others)
    unpacked.write_bytes(unpacked.read_bytes()[:-1])
    os.utime(unpacked, (newer, newer))
    with pytest.raises(ValueError, match=r"images\.npy cannot be read .*delete it"):
        read_factor_file(MPI3D, tmp_path, unpack=True)
    np.save(unpacked, images[:3])
    os.utime(unpacked, (newer, newer))
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 3\), expected was uint8 of \(16, 4, 4, 3\)"):
        read_factor_file(MPI3D, tmp_path, unpack=True)


# What is refused


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def _damage_inside(path: Path) -> None:
    """Flips bits of the first member's data, which its check sum tells."""
    data = bytearray(path.read_bytes())
    data[400] ^= 255
    path.write_bytes(data)


def _fewer(path: Path) -> None:
    np.savez(path, images=pictures(15, 4, 4, 3))


def _empty(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


def _floats(path: Path) -> None:
    np.savez(path, images=np.zeros((16, 4, 4, 3)))


def _columns(path: Path) -> None:
    np.savez(path, images=np.asfortranarray(pictures(16, 4, 4, 3)))


def _pickle(path: Path) -> None:
    np.savez(path, images=np.full((16, 4, 4, 3), None))


def _large(path: Path) -> None:
    np.savez(path, images=np.full((16, 4, 4, 3), 256, np.int32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, r"mpi3d_real\.npz cannot be read as a file of kind \.npz .*truncated"),
        (_damage_inside, r"mpi3d_real\.npz cannot be read as a file of kind \.npz"),
        (_fewer, r"is of shape \(15, 4, 4, 3\), expected was \(16, 4, 4, 3\)"),
        (_empty, "has no array 'images', only nothing"),
        (_floats, "is float64 in C order, expected was integers in C order"),
        (_columns, "is uint8 in F order"),
        (_pickle, "is object in C order"),
        (_large, "is 256 to 256, expected was 0 to 255"),
    ],
)
@pytest.mark.parametrize("unpack", [False, True])
def test_other_archives_are_refused(
    spoil: Callable[[Path], None], message: str, unpack: bool, tmp_path: Path
) -> None:
    write_mpi3d(tmp_path)
    spoil(tmp_path / MPI3D.path)
    with pytest.raises(ValueError, match=message) as refused:
        read_factor_file(MPI3D, tmp_path, unpack=unpack)
    assert "https://github.com/rr-learning" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [MPI3D.path]  # nothing half written


def test_other_labels_are_refused(tmp_path: Path) -> None:
    images, right = pictures(16, 4, 4, largest=1), grid(1, 2, 2, 1, 1, 4)
    twice, three = right.copy(), right.copy()
    twice[0], three[0, 1] = right[1], 2
    cases = {
        "lacks 1 of the 16 combinations": twice,
        "shape in .* has 3 values, expected were 2": three,
        r"'latents_classes' in .* is of shape \(16, 5\)": right[:, 1:],
        "is <U1, expected was numbers": right.astype(str).astype("<U1"),
        "cannot be read as a file of kind .npz .Object arrays": right.astype(object),
    }
    for message, labels in cases.items():
        np.savez(tmp_path / DSPRITES.path, imgs=images, latents_classes=labels)
        with pytest.raises(ValueError, match=message):
            read_factor_file(DSPRITES, tmp_path)


def test_other_hdf5_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    images, _ = write_3dshapes(tmp_path)
    path = tmp_path / SHAPES3D.path

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_factor_file(SHAPES3D, tmp_path)

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(r"3dshapes\.h5 cannot be read as a file of kind \.h5 .*truncated")
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file["labels"]
    refused("has no array 'labels', only images")
    with h5py.File(path, "r+") as file:
        del file["images"]
        file["images"], file["labels"] = images.astype(np.int16), np.zeros((16, 6))
    refused("'images' in .* is int16, expected was uint8")
    with h5py.File(path, "r+") as file:
        del file["images"]
        file["images"] = images[:, :3]
    refused(r"of shape \(16, 3, 4, 3\)")

    def without_h5py(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(factor_readers.importlib, "import_module", without_h5py)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'worldmodels_jax\[data\]'"):
        read_factor_file(SHAPES3D, tmp_path)


def test_other_cars_are_refused(tmp_path: Path) -> None:
    cars = write_cars3d(tmp_path)
    folder = tmp_path / CARS3D.path
    with pytest.raises(ValueError, match=r"nothing.*leave it out"):
        read_factor_file(CARS3D, tmp_path, unpack=True)

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_factor_file(CARS3D, tmp_path)

    mat = folder / "car_a.mat"
    whole = mat.read_bytes()
    mat.write_bytes(whole[:-40])
    refused(r"car_a\.mat cannot be read as a file of kind \.mat")
    mat.write_bytes(b"")
    refused(r"car_a\.mat cannot be read")
    scipy.io.savemat(mat, {"image": cars[0]})
    refused("has no array 'im', only image")
    scipy.io.savemat(mat, {"im": cars[0][..., 0]})
    refused(r"of shape \(4, 6, 3, 3\), expected was \(4, 6, 3, 3, 2\)")
    scipy.io.savemat(mat, {"im": cars[0].astype(float)})
    refused("is float64, expected was uint8")
    mat.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*car_a\.mat"):
        read_factor_file(CARS3D, tmp_path)
    (folder / "list.txt").write_text("car_b")
    refused(r"list\.txt names 1 files, expected were 2")


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named_with_their_origin(name: str, tmp_path: Path) -> None:
    if name == "3dshapes":
        pytest.importorskip("h5py")
    with pytest.raises(FileNotFoundError, match="there is no file") as missing:
        load_factor_dataset(name, tmp_path)
    assert FILES[name].path in str(missing.value)
    assert FILES[name].origin in str(missing.value)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no factor data set 'shapes3d': choose one of dsprites, "):
        load_factor_dataset("shapes3d", tmp_path)


# Rows


def test_rows_are_an_array_that_is_read_when_indexed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    images, _ = write_3dshapes(tmp_path)
    chosen = np.array([1, 4, 6, 15])
    with h5py.File(tmp_path / SHAPES3D.path) as file:
        for stored in (file["images"], images):
            rows = Rows(stored, chosen)
            assert rows.shape == (4, 4, 4, 3)
            assert (len(rows), rows.dtype) == (4, np.uint8)
            np.testing.assert_array_equal(rows[:2], images[[1, 4]])
            np.testing.assert_array_equal(rows[np.array([0, 3])], images[[1, 15]])
            np.testing.assert_array_equal(np.asarray(rows), images[chosen])
            with pytest.raises(ValueError, match="cannot be an array without being copied"):
                np.array(rows, copy=False)
