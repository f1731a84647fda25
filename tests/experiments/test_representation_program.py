"""Presets, tables and figures of α-TCVAE's family, and its acceptance experiment."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import alpha_tcvae_acceptance as acceptance
from experiments import representation
from experiments.configs.representation import PRESETS
from worldmodels_jax.config import from_dict, to_dict
from worldmodels_jax.evaluation.image_features import ImageFeatures
from worldmodels_jax.evaluation.representation import Sizes, score_reconstruction
from worldmodels_jax.models.vae import VaeConfig
from worldmodels_jax.models.vae_losses import VaeLossConfig
from worldmodels_jax.training.data_config import load_data
from worldmodels_jax.training.fit import load_fit
from worldmodels_jax.training.fit_config import FitConfig, trained_parts
from worldmodels_jax.types import DataSpec

KINDS = ("vae", "beta_vae", "factor_vae", "beta_tcvae", "hfs", "annealed_vae", "alpha_tcvae")


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_systems_whose_parts_they_train(name: str) -> None:
    config = PRESETS[name]()
    assert config.preset == name == PRESETS[name].__name__
    assert PRESETS[name].__doc__
    shape = (64, 64, 3) if name.endswith("shapes") else (16, 16, 3)
    system = config.model.make(config.loss, DataSpec("toy", {"image": shape}, 10_000), None, "f4")
    assert list(trained_parts(config.parts, list(system.losses), 10)) == list(system.losses)
    # The model learns from 64 images, whatever the kind.
    assert config.training.batch_size == 64 * len(system.losses)
    assert from_dict(VaeLossConfig, json.loads(json.dumps(to_dict(config.loss)))) == config.loss


def test_there_is_a_preset_of_each_kind_and_size() -> None:
    assert set(PRESETS) == {f"{kind}_{data}" for kind in KINDS for data in ("sprites16", "shapes")}
    losses = {name: preset().loss for name, preset in PRESETS.items()}
    assert all(name.startswith(loss.kind) for name, loss in losses.items())  # type: ignore[attr-defined]
    parameters = jax.eval_shape(_system(PRESETS["alpha_tcvae_shapes"]()).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(parameters)) == 766_295


def _system(config: FitConfig) -> Any:
    return config.model.make(config.loss, DataSpec("s", {"image": (64, 64, 3)}, 9), None, "f4")


# Tables


def test_tables_as_text() -> None:
    text = representation.describe(
        {
            "usage": {"active_units": 7.0},
            "vendi_random": {"real": 43.25, "noise": 20.0},
            "fid_random": {"real": 0.125, "noise": 0.5},
        }
    )
    assert [line.split() for line in text.splitlines()] == [
        ["usage"],
        ["active_units", "7.000"],
        ["images", "vendi_random", "fid_random"],
        ["real", "43.250", "0.125"],
        ["noise", "20.000", "0.500"],
    ]


@pytest.mark.parametrize(
    ("fast", "file", "names"),
    [
        (True, None, ["random"]),
        (False, None, ["random", "factor"]),
        (True, Path("weights.npz"), ["random", "inception"]),
    ],
)
def test_full_evaluations_have_trained_features_too(
    fast: bool, file: Path | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(images: np.ndarray, factors: np.ndarray, key: jax.Array) -> ImageFeatures:
        assert len(images) == len(factors)
        return ImageFeatures("factor", lambda x: x, np.zeros(1))

    def read(path: Path) -> ImageFeatures:
        assert path == file
        return ImageFeatures("inception", lambda x: x, np.zeros(1))

    def used(*arguments: Any, features: Any, **settings: Any) -> list[str]:
        return [network.name for network in features]

    monkeypatch.setattr(representation, "factor_cnn", named)
    monkeypatch.setattr(representation, "inception", read)
    monkeypatch.setattr(representation, "evaluate_representation", used)
    config = smaller(acceptance.objectives()["poe"])
    data = load_data(config.data, None)
    vae: Any = config.model.make(config.loss, data.spec, None, "f4")
    found = representation.evaluate_run(vae, {}, data, fast=fast, seed=0, inception_file=file)
    assert found == names


# Acceptance


def row(**columns: float) -> dict[str, float]:
    return {"nll": 30.0, "dci": 0.2, "active": 6.0, "balance": 0.1, "vendi_noise": 30.0,
            "vendi_traversal": 30.0, "fid_traversal": 0.2} | columns  # fmt: skip


def passing() -> dict[str, list[dict[str, float]]]:
    return {
        "beta_vae": [row(), row()],
        "poe": [row(nll=60.0, active=8.0, balance=0.8), row(active=10.0, balance=0.6)],
        "poe_alpha0.05": [row(nll=40.0), row()],
        "mi": [row(vendi_traversal=32.0, vendi_noise=30.1, fid_traversal=0.1)] * 2,
        "beta_tcvae": [row(dci=0.4)] * 2,
        "mi_tc": [row(dci=0.3)] * 2,
    }


def test_claims_that_hold() -> None:
    claims = acceptance.check(passing())
    assert len(claims) == 7
    assert all(claim["passed"] for claim in claims.values())
    assert next(iter(claims.values()))["values"] == [2.0, 4.0]
    shown = {name: rows for name, rows in passing().items() if "tc" not in name}
    assert len(acceptance.check(shown)) == 6


@pytest.mark.parametrize(
    ("name", "seed", "columns", "claim"),
    [
        ("poe", 1, {"active": 7.0, "balance": 0.8}, 0),
        ("poe", 0, {"nll": 60.0, "active": 8.0, "balance": 0.4}, 1),
        ("beta_vae", 1, {"balance": 0.55}, 1),
        ("mi", 1, {"vendi_traversal": 31.5, "vendi_noise": 31.0, "fid_traversal": 0.1}, 2),
        ("mi", 0, {"vendi_traversal": 32.0, "vendi_noise": 30.0, "fid_traversal": 0.1}, 3),
        ("mi", 1, {"vendi_traversal": 32.0, "vendi_noise": 31.0, "fid_traversal": 0.31}, 4),
        ("poe_alpha0.05", 0, {"nll": 61.0}, 5),
        ("mi_tc", 0, {"dci": 0.6}, 6),
    ],
)
def test_claims_that_do_not(name: str, seed: int, columns: dict[str, float], claim: int) -> None:
    table = passing()
    table[name] = [row(**columns) if i == seed else other for i, other in enumerate(table[name])]
    passed = [one["passed"] for one in acceptance.check(table).values()]
    assert passed == [i != claim for i in range(7)]


def test_correlations_over_objectives_and_seeds() -> None:
    def run(x: float, y: float) -> dict[str, dict[str, float]]:
        codes = {"unfairness": -x, "dci_geometric": y, "snc": 0.5, "nk": x, "attribute_accuracy": x}
        return {
            "vendi_random": {"noise": x, "traversal": 2 * x + 1},
            "fid_random": {"traversal": y},
            "disentanglement": codes,
        }

    tables = {"a": [run(0, 0), run(1, 1)], "b": [run(2, 1)]}
    found = acceptance.correlations(tables)
    assert list(found) == ["all runs", "without poe"]
    assert found["all runs"] == found["without poe"]
    found = found["all runs"]
    assert found["Vendi noise"]["Vendi trav."][0] == pytest.approx(1)
    assert found["unfairness"]["Vendi noise"][0] == pytest.approx(-1)
    # Of 0, 1, 2 with 0, 1, 1: the covariance is 1/3, the variances are 2/3 and 2/9.
    assert found["DCI geo"]["Vendi noise"] == pytest.approx([0.75**0.5, -1, 1])
    assert found["SNC"]["NK"] is None

    # Two runs of poe more: left out of the second matrix, whatever alpha they had.
    tables |= {"poe": [run(5, -3)], "poe_alpha0.05": [run(9, 4)]}
    found = acceptance.correlations(tables)
    assert found["without poe"]["DCI geo"]["Vendi noise"] == pytest.approx([0.75**0.5, -1, 1])
    r, low, high = found["all runs"]["DCI geo"]["Vendi noise"]
    xs, ys = np.array([[0, 1, 2, 5, 9], [0, 1, 1, -3, 4]])
    assert r == pytest.approx(np.corrcoef(xs, ys)[0, 1])
    # Fisher: atanh(r) is normal with standard deviation 1 / sqrt(n - 3).
    expected = np.tanh(np.arctanh(r) + np.array([-1.959964, 1.959964]) / np.sqrt(2))
    assert [low, high] == pytest.approx(expected.tolist(), abs=1e-6)
    assert acceptance.correlations({"poe": [run(0, 0), run(1, 1)]}).keys() == {"all runs"}


def smaller(config: FitConfig) -> FitConfig:
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, count=700),  # type: ignore[call-arg]
        model=VaeConfig(widths=(16,), num_latents=5),
        training=dataclasses.replace(config.training, steps=4, batch_size=8, chunk=2),
    )


def quick_tables(vae: Any, variables: Any, dataset: Any, **settings: Any) -> Any:
    """Only what is quick to measure; the rest is the same for all."""
    assert settings["sizes"].images == 400
    assert settings["fast"]
    encode = functools.partial(jax.jit(vae.encode), variables)
    decode = functools.partial(jax.jit(vae.decode), variables)
    return {
        "reconstruction": score_reconstruction(encode, decode, dataset.test["image"]),
        "disentanglement": {
            "dci_geometric": 0.2,
            "unfairness": 0.1,
            "snc": 0.1,
            "nk": 0.1,
            "attribute_accuracy": 0.8,
        },
        "usage": {"active_units": 3.0, "balance": 0.4},
        "vendi_random": {"real": 40.0, "noise": 20.0, "traversal": 30.0},
        "fid_random": {"real": 0.1, "noise": 0.5, "traversal": 0.3},
    }


def test_the_experiment_and_the_figure_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "evaluate_run", quick_tables)
    result = acceptance.accept(tmp_path / "out", tmp_path / "runs", num_seeds=2, change=smaller)
    stored = json.loads((tmp_path / "out/acceptance.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["losses"]["poe"]["alpha"] == 0.25
    assert len(stored["claims"]) == 6
    errors = {name: [one["nll"] for one in rows] for name, rows in stored["rows"].items()}
    assert all(first != second for first, second in errors.values())
    text = (tmp_path / "out/acceptance.md").read_text().splitlines()
    assert "| SNC | – | – | – | – | – | – | – | – |" in text
    (line,) = [line for line in text if line.startswith("| poe |")]
    cells = [float(cell) for cell in line.split("|")[2:-1]]
    assert cells == pytest.approx([np.mean(errors["poe"]), 0.2, 3, 0.4, 20, 30, 0.3], rel=0.01)

    data = load_data(smaller(acceptance.objectives()["poe"]).data, None)
    run = load_fit(tmp_path / "runs/poe", seed=1, dataset=data)
    (path,) = representation.draw(run, tmp_path)
    with Image.open(path) as picture:
        assert picture.size[0] > picture.size[1] > 100
    system: Any = run.system
    sizes = Sizes(train=300, test=140, images=60)
    tables = representation.evaluate_run(
        system, run.variables, data, fast=True, seed=1, sizes=sizes
    )
    columns = acceptance.row_of(tables)
    assert columns["nll"] == pytest.approx(errors["poe"][1])
    assert np.isfinite(list(columns.values())).all()


def test_what_the_experiment_trains() -> None:
    made = acceptance.objectives(extension=True)
    assert list(made) == ["beta_vae", "poe", "poe_alpha0.05", "mi", "beta_tcvae", "mi_tc"]
    for config in made.values():
        assert (config.training.steps, config.training.batch_size) == (10_000, 64)
        assert config.parts.model.lr == 1e-3  # type: ignore[attr-defined]
    losses: dict[str, Any] = {name: config.loss for name, config in made.items()}
    assert [losses[name].beta for name in made] == [2.0, 2.0, 2.0, 2.0, 4.0, 2.0]
    assert [losses[name].ceb for name in ("poe", "mi", "mi_tc")] == ["poe", "mi", "mi_tc"]
    assert losses["poe_alpha0.05"].alpha == 0.05
