"""The pages' examples run, in order, in one namespace, and what the pages name exists."""

import dataclasses
import importlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from experiments.configs import OFFLINE_PRESETS, PRESETS
from worldmodels_jax.training import env_config
from worldmodels_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/environments.md"
BLOCK = re.compile(r"<!-- test: run -->\n```python\n(.*?)```", re.DOTALL)


def test_examples_of_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == PAGE.read_text().count("```python"), "a block that is not run"
    monkeypatch.chdir(tmp_path)
    # Under the name of a module, as in a file of the user's own.
    page = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), page)

    assert page["returns"].shape == page["lengths"].shape == (4,)
    assert ((page["lengths"] >= 1) & (page["lengths"] <= 50)).all()
    # At most 1 a step, and at least that of the step that leaves the track.
    assert (page["returns"] <= page["lengths"]).all()
    assert page["action"].shape == (1,)
    assert page["time_step"].observation.shape == (1, 6, 6, 2)

    lengths, left = np.asarray(page["meadow_lengths"]), np.asarray(page["ends"]["distance_left"])
    assert lengths.shape == left.shape == (16,)
    arrived = np.asarray(page["meadow_returns"]) == 1
    assert (left[arrived] == 0).all()
    assert (left[~arrived] > 0).all()
    assert (lengths[~arrived] == 20).all()

    for first, second in zip(page["steps"], page["same_steps"], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(step.terminated.any() for step in page["steps"])

    poles = page["open_poles"](2, 0, False)
    assert poles.reset().observation.shape == (2, 4)
    poles.close()


def test_examples_of_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/adding_a_system.md").read_text()
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python"), "a block that is not run"
    monkeypatch.chdir(tmp_path)
    # A module: a saved run finds the classes of its config again, as in a file of the user's own.
    page = types.ModuleType("systems_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    for block in blocks:
        exec(compile(block, "adding_a_system.md", "exec"), vars(page))

    assert page.run.config.model == page.BlinkConfig()
    assert page.action.shape == (1,)
    assert page.codes.shape == (100, 8)
    assert page.pictures["reconstruction"].shape == (2, 8, 16, 16, 3)
    rows = read_metrics(Path("runs/squeeze/metrics.jsonl"))
    images = page.squeezed.dataset.train["image"] / 255.0
    assert rows[-1]["model/error"] < images.var(0).mean()  # what the mean image misses


def test_all_fields_of_all_suites_are_on_the_page() -> None:
    text = PAGE.read_text()
    configs = [c for c in vars(env_config).values() if dataclasses.is_dataclass(c)]
    names = {c.__name__ for c in configs} | {f.name for c in configs for f in dataclasses.fields(c)}
    assert len(configs) >= 4
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    presets = re.findall(r"--config=(\w+)", text)
    assert [name for name in presets if name not in {*PRESETS, *OFFLINE_PRESETS}] == []
    files = re.findall(r"(?:docs|results|experiments|worldmodels_jax)/[\w/]+\.\w+", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    for name in set(re.findall(r"\b(?:worldmodels_jax|experiments)(?:\.\w+)+", text)):
        assert _exists(name), name


def _exists(dotted: str) -> bool:
    """Tells whether a dotted name is a module, or an attribute of one."""
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, attribute = dotted.rpartition(".")
        return bool(module) and hasattr(importlib.import_module(module), attribute)
    return True
