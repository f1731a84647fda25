"""The tables of docs/models.md against the code: lines, and who uses which part."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/models.md").read_text()
PACKAGE = ROOT / "worldmodels_jax"
SYSTEMS = {
    "STORM, GIT-STORM": "git_storm",
    "DreamerV3": "dreamer_v3",
    "IRIS": "iris",
    "Delta-IRIS": "delta_iris",
    "alpha-TCVAE family": "vae",
    "NowcastingGPT": "nowcasting_gpt",
}


def imported(path: Path) -> set[Path]:
    """Files of models, nn and ops that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("worldmodels_jax."):
            base = PACKAGE.parent.joinpath(*node.module.split("."))
            names = [base, *(base / alias.name for alias in node.names)]
            found |= {name.with_suffix(".py") for name in names}
    rooms = {PACKAGE / room for room in ("models", "nn", "ops")}
    return {file for file in found if file.is_file() and file.parent in rooms}


def closure(name: str) -> set[Path]:
    """A model's file and all that it needs of the three rooms."""
    todo, done = {PACKAGE / f"models/{name}.py"}, set()
    while todo:
        file = todo.pop()
        done.add(file)
        todo |= imported(file) - done
    return {
        file for file in done if file.name not in ("__init__.py", "world_model.py", "offline.py")
    }


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table under a heading, by those of the first column."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {first: rest for first, *rest in cells}


def test_every_file_of_a_model_is_listed_with_its_lines() -> None:
    listed: set[str] = set()
    for system, (files, lines) in rows("Lines").items():
        names = re.findall(r"`(\w+\.py)`", files)
        total = sum(len((PACKAGE / "models" / n).read_text().splitlines()) for n in names)
        assert int(lines) == pytest.approx(total, rel=0.1), (system, total)
        listed |= set(names)
    there = {file.name for file in (PACKAGE / "models").glob("*.py")} - {"__init__.py"}
    assert listed == there


@pytest.mark.parametrize("room", ["nn", "ops"])
def test_the_parts_of_each_model_are_those_it_imports(room: str) -> None:
    uses = {
        system: {file.stem for file in closure(name) if file.parent.name == room}
        for system, name in SYSTEMS.items()
    }
    table = rows(f"Parts of {room}/")
    told = {system: set() for system in SYSTEMS}
    for part, cells in table.items():
        for system, cell in zip(SYSTEMS, cells, strict=True):
            assert cell in ("", "x")
            if cell:
                told[system].add(part.strip("`"))
    assert told == uses
