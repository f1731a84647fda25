"""Presets of NowcastingGPT, their evaluation, and the program that checks its claims."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import nowcast
from experiments.configs.nowcasting import PRESETS, nowcasting_gpt, nowcasting_gpt_knmi
from experiments.nowcasting_acceptance import (
    SCORES,
    Variant,
    accept,
    check,
    chosen_heads,
    differences,
    with_evl,
)
from worldmodels_jax.config import apply_overrides, from_dict, to_dict
from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.models.nowcasting_config import RainPatchConfig, RainTransformerConfig
from worldmodels_jax.models.nowcasting_gpt import make_nowcasting_gpt
from worldmodels_jax.training.data_config import RainConfig
from worldmodels_jax.training.data_knmi import RadarSource
from worldmodels_jax.training.fit import load_fit
from worldmodels_jax.training.fit_config import FitConfig, FitTraining, PartTraining, trained_parts
from worldmodels_jax.types import DataSpec


def tiny(config: FitConfig) -> FitConfig:
    """The preset in a few steps of a few tokens."""
    model: Any = config.model
    return dataclasses.replace(
        config,
        data=RainConfig(count=24, test_count=12),
        model=dataclasses.replace(
            model,
            tokenizer=RainPatchConfig(num_codes=16, code_size=3, patch=4, width=8),
            transformer=RainTransformerConfig(width=8, layers=1, heads=2),
            event=dataclasses.replace(model.event, threshold_mm_3h=1.0, region=(2, 6, 2, 6)),
        ),
        parts=dataclasses.replace(
            config.parts,
            tokenizer=PartTraining(stop=2),
            transformer=PartTraining(start=2),
        ),
        training=FitTraining(steps=6, batch_size=4, chunk=2, checkpoint_every=6),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together_with_and_without_extremes(name: str) -> None:
    """As a user turns the loss on: nothing else need be changed."""
    config = PRESETS[name]()
    assert config.preset == name
    assert from_dict(FitConfig, to_dict(config)) == config
    side = 128 if name.endswith("knmi") else 8
    data = DataSpec("rain", {"rain": (9, side, side)}, 1000)
    for evl in ("false", "true"):
        changed: Any = apply_overrides(config, {"loss.evl": evl})
        system = make_nowcasting_gpt(changed.model, changed.loss, data)
        assert ("head" in system.losses) == (evl == "true")
        parts = trained_parts(changed.parts, list(system.losses), changed.training.steps)
        assert parts["tokenizer"].stop <= parts["transformer"].start


def test_published_preset() -> None:
    config: Any = nowcasting_gpt_knmi()
    assert (config.training.batch_size, config.training.accumulation) == (64, 4)
    assert (config.parts.transformer.lr, config.parts.transformer.decay) == (1e-4, 0.01)
    assert (config.parts.tokenizer.lr, config.parts.tokenizer.decay) == (1e-4, 0.0)


def test_acceptance_in_a_few_steps(tmp_path: Path) -> None:
    """Trains two variants, scores, draws, writes; what was trained is not trained again."""
    run = {"num_seeds": 1, "heads": ("frame_vit",), "scales": (0.5,), "members": 2, "change": tiny}
    result = accept(tmp_path / "out", tmp_path / "runs", **run)  # type: ignore[arg-type]
    assert list(result["rows"]) == [
        "eulerian_persistence", "lagrangian_persistence", "no_evl", "frame_vit_0.5",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/acceptance.json").read_text())["rows"] == result["rows"]
    text = (tmp_path / "out/acceptance.md").read_text()
    for row in result["rows"]:
        assert f"| {row} |" in text
    assert len(result["claims"]) == 10
    assert set(result["results"]["frame_vit_0.5"][0]["detection"]) == {
        "model_mean", "model_member", "eulerian_persistence", "lagrangian_persistence", "head",
    }  # fmt: skip
    told = nowcast.describe(result["results"]["frame_vit_0.5"][0])
    assert "extremes of 1 mm in 3 h" in told
    assert "lagrangian_persistence" in told

    loaded: Any = load_fit(tmp_path / "runs/no_evl")
    (path,) = nowcast.draw(loaded, tmp_path)
    assert path.stat().st_size > 10_000
    # Scores are those of the forecasts: the same seed makes the same.
    again = nowcast.evaluate_run(loaded.system, loaded.variables, loaded.dataset, members=2, seed=0)
    assert again == result["results"]["no_evl"][0]
    assert again["scores"]["model_mean"]["mse"] != again["scores"]["model_member"]["mse"]

    # Catchments of a radar archive are scored each, and no rain comes in from the other side.
    boxes = {"a": (0, 4, 0, 4), "b": (4, 8, 4, 8)}
    radar = Dataset("knmi", {}, {"rain": loaded.dataset.test["rain"]}, RadarSource(boxes))
    found = nowcast.evaluate_run(loaded.system, loaded.variables, radar, members=1, seed=0)
    assert found["protocol"]["catchments"] == 2
    assert found["protocol"]["accumulation"] == "frames"
    lagrangian = "lagrangian_persistence"
    assert found["scores"][lagrangian]["mse"] != again["scores"][lagrangian]["mse"]


def test_heads_that_are_asked_for() -> None:
    assert chosen_heads(["none"]) == []
    assert chosen_heads(["token_table", "frame_vit"]) == ["token_table", "frame_vit"]
    with pytest.raises(ValueError, match="--heads=frame_vit,none: none is none of frame_vit, "):
        chosen_heads(["frame_vit", "none"])


def test_variants() -> None:
    base = nowcasting_gpt()
    start = base.parts.transformer.start  # type: ignore[attr-defined]
    fixed: Any = with_evl(base, Variant("fixed_tokens", 2.0))
    assert (fixed.loss.gamma, fixed.loss.evl_scale) == (2.0, 2.0)
    # The set of codes is chosen, then kept.
    assert start < fixed.parts.head.stop < fixed.training.steps / 2
    table: Any = with_evl(base, Variant("token_table", 0.5))
    assert table.parts.head.stop == 0
    assert (table.loss.head, table.loss.reduction) == ("token_table", "mean")
    balanced: Any = with_evl(base, Variant("token_table_class_mean", 0.5))
    assert (balanced.loss.head, balanced.loss.reduction) == ("token_table", "class_mean")
    assert Variant("token_table", 0.5).name == "token_table_0.5"
    data = DataSpec("rain", {"rain": (9, 8, 8)}, 1000)
    for config in (fixed, table, balanced):
        make_nowcasting_gpt(config.model, config.loss, data)


def rows(**last: float) -> dict[str, float | None]:
    row: dict[str, float | None] = dict.fromkeys((*SCORES, "roc_auc", "pr_auc"), 0.0)
    return row | {f"{name}_last": 0.0 for name in SCORES} | last  # type: ignore[arg-type]


def test_claims_by_hand() -> None:
    table = {
        "eulerian_persistence": [rows(mse=4.0, pcc=0.1, mse_last=5.0, pcc_last=0.0)] * 2,
        "lagrangian_persistence": [rows(mse=3.0, pcc=0.05)] * 2,
        "no_evl": [
            rows(mse=3.0, pcc=0.2, mse_last=4.0, pcc_last=0.1),
            rows(mse=3.9, pcc=0.1, mse_last=5.5, pcc_last=0.1),
        ],
    }
    found = {name: claim["passed"] for name, claim in check(table).items()}
    assert found == {
        "no_evl beats Eulerian persistence in MSE at the longest lead": False,  # by one seed
        "no_evl beats Eulerian persistence in PCC at the longest lead": True,
        "no_evl beats Eulerian persistence in mean MSE": True,
        "no_evl beats Eulerian persistence in mean PCC": False,  # by the other, which is equal
        "Lagrangian persistence beats Eulerian in mean MSE": True,
        "Lagrangian persistence beats Eulerian in mean PCC": False,
    }


def test_differences_by_hand() -> None:
    table = {
        "no_evl": [rows(mse=2.0), rows(mse=3.0), rows(mse=4.0)],
        "token_table_2": [rows(mse=2.5), rows(mse=3.0), rows(mse=3.5)],
    }
    found = differences(table)
    # Of 0.5, 0 and -0.5: deviation 0.5, Student's 4.3027 with two degrees of freedom.
    half = 4.3027 * 0.5 / np.sqrt(3)
    assert found["token_table_2"]["mse"] == pytest.approx([0.0, -half, half], abs=1e-3)
    assert list(found) == ["token_table_2"]
    alone = {name: seeds[:1] for name, seeds in table.items()}
    assert differences(alone)["token_table_2"]["mse"] == [0.5, None, None]
