"""Files are replaced as a whole or not at all."""

from pathlib import Path

import pytest

from worldmodels_jax.files import replacing


def test_a_file_appears_with_its_directory_and_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    with replacing(path) as temporary:
        temporary.write_text("{}")
        assert temporary.parent == path.parent  # a rename does not cross file systems
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "result.json"
    path.write_text("earlier")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("earlier")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "earlier"
