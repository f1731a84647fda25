"""The notebooks run from the first cell to the last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The Jupyter client's own sockets and event loops, which are not ours to mend.
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs_from_the_first_cell_to_the_last(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/gif" in out.get("data", {}) for out in outputs), "no dream was shown"
    assert (tmp_path / "dream.gif").stat().st_size > 1000


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
