"""CelebA: a table of attributes and a folder of images, on a small copy; what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodels_jax.data.factor_files import FILES, read_factor_file

CELEBA = dataclasses.replace(
    FILES["celeba"],
    image_shape=(6, 4, 3),
    factor_names=("Bald", "Young"),
    factor_sizes=(2, 2),
    ranges=((-1.0, 1.0),) * 2,
    count=3,
    resized=2,
)


def write_celeba(root: Path, rows: str = " 1 -1|-1 -1|-1  1", names: str = "Bald Young") -> None:
    """Images of two halves of one colour each, which JPEG alters by a unit or two."""
    folder = root / "img_align_celeba"
    folder.mkdir(exist_ok=True)
    lines = rows.split("|")
    for i in range(3):
        image = np.full((6, 4, 3), 40 * (i + 1), np.uint8)
        image[3:] += 100
        Image.fromarray(image).save(folder / f"{i}.jpg", quality=100)
    table = [f"{len(lines)}", names, *(f"{i}.jpg {row}" for i, row in enumerate(lines))]
    (root / CELEBA.path).write_text("\n".join(table) + "\n")


@pytest.mark.parametrize("unpack", [False, True])
def test_celeba_is_a_table_and_a_folder(tmp_path: Path, unpack: bool) -> None:
    write_celeba(tmp_path)
    made = read_factor_file(CELEBA, tmp_path, unpack=unpack)
    assert isinstance(made.images, np.memmap) == unpack
    assert made.images.shape == (3, 2, 2, 3)
    # Six rows to two: those of a triangle three rows high on either side of 1.5 weigh 2, 3, 2, 1.
    for i, image in enumerate(made.images):
        rows = 40 * (i + 1) + np.array([100 / 8, 700 / 8])
        np.testing.assert_allclose(image, np.broadcast_to(rows[:, None, None], (2, 2, 3)), atol=2)
    assert made.factor_names == ("Bald", "Young")
    np.testing.assert_array_equal(made.factors, [[1, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rows": " 1 -1|-1 -1"}, r"'attributes' in .*celeba\.txt is of shape \(2, 2\), expected"),
        ({"names": "Bald Old"}, r"'names' in .*celeba\.txt is Bald Old, expected was Bald Young"),
        ({"rows": " 1 -1|-1|-1 1"}, r"celeba\.txt cannot be read as a file of kind \.txt"),
        ({"rows": " 1 -1|0.5 1|-1 2"}, r"Young in .*celeba\.txt is -1 to 2, expected was -1 to 1"),
    ],
)
def test_other_attributes_are_refused(tmp_path: Path, table: dict[str, str], message: str) -> None:
    write_celeba(tmp_path, **table)
    with pytest.raises(ValueError, match=message):
        read_factor_file(CELEBA, tmp_path)


def test_other_faces_are_refused(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    face = tmp_path / "img_align_celeba" / "1.jpg"
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(face)
    with pytest.raises(
        ValueError, match=r"'image' in .*1\.jpg is of shape \(5, 4, 3\), expected was"
    ):
        read_factor_file(CELEBA, tmp_path)
    face.write_bytes(face.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"1\.jpg cannot be read as a file of kind \.jpg"):
        read_factor_file(CELEBA, tmp_path)
    face.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*1\.jpg: give the folder"):
        read_factor_file(CELEBA, tmp_path)
