"""The README's examples run, in order, in one namespace."""

import re
from pathlib import Path

import pytest

from experiments.configs.small import debug
from worldmodels_jax.training.run import train

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"<!-- test: run -->\n```python\n(.*?)```", re.DOTALL)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(README.read_text())
    assert len(blocks) >= 2, "the README promises a library example and a checkpoint example"
    train(debug(), tmp_path / "runs/catch")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["frames"].shape == (2, 64, 64, 3)
    assert namespace["action"].shape == (1,)


def test_every_file_the_readme_names_exists() -> None:
    text = README.read_text()
    named = re.findall(r"(?:docs|results|experiments|worldmodels_jax)/[\w/]+\.\w+", text)
    assert named
    assert [name for name in named if not (README.parent / name).exists()] == []
