"""``experiments.fit`` and ``experiments.evaluate`` of its runs, as a user starts them."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from experiments import common, evaluate, fit
from experiments import train as train_program
from experiments.configs import OFFLINE_PRESETS
from worldmodels_jax.config import from_dict, to_dict
from worldmodels_jax.data import factor_files
from worldmodels_jax.training.fit import load_fit
from worldmodels_jax.training.fit_config import FitConfig

# 60 sprites; what is trained is a mean image within seconds.
SMALL = [
    *["--config=vae_sprites16", "--config.data.count=60", "--config.model.num_latents=6"],
    *["--config.training.steps=6", "--config.training.chunk=3", "--config.training.batch_size=8"],
    *["--config.model.widths=(8,)", "--config.training.checkpoint_every=3"],
]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """``(program, *arguments) -> exit code``, which is the message where there is one."""
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", None)

    def run(program: Callable[[dict[str, str]], None], *arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as stopped:
            common.run_app(program, fields=program is fit.main, presets=OFFLINE_PRESETS)
        return stopped.value.code

    with flagsaver.flagsaver():
        yield run
        flags.FLAGS.unparse_flags()
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def quick_evaluation(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tables of the chapter, which take minutes, replaced by a note of the seeds asked for."""
    seen = []

    def evaluate_run(vae: object, variables: object, dataset: object, **given: object) -> dict:
        seen.append(given)
        return {"usage": {"active_units": 3.0}}

    monkeypatch.setattr("experiments.representation.evaluate_run", evaluate_run)
    return seen


def test_a_run_leaves_checkpoints_pictures_and_tables(
    start: Callable,
    quick_evaluation: list,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.evaluate_fit.inception", lambda path: None)
    run = tmp_path / "run"
    flags = ["--seed=4", "--seeds=2", "--fast", "--inception=weights.npz"]
    assert start(fit.main, *SMALL, f"--run={run}", *flags) is None
    given = {"fast": True, "inception_file": Path("weights.npz")}
    assert quick_evaluation == [given | {"seed": 4}, given | {"seed": 5}]
    result = json.loads((run / "evaluation.json").read_text())
    assert set(result["per_seed"]) == {"4", "5"}
    assert (result["step"], result["test_examples"]) == (6, 12)
    # One row a checkpoint, one column an image of the first eight.
    for name in ("prior", "reconstruction", "traversal"):
        assert (run / f"samples/{name}_00000003.png").exists()
    with Image.open(run / "samples/reconstruction_00000006.png") as image:
        assert image.width > 8 * 16
    assert (run / "traversals.png").exists()
    out = capsys.readouterr().out
    assert "6 steps on 48 examples of sprites16" in out
    assert "active_units" in out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    # Again: nothing is left to train.
    before = (run / "metrics.jsonl").read_bytes()
    assert start(fit.main, *SMALL, f"--run={run}", "--seed=4", "--seeds=2", "--fast") is None
    assert (run / "metrics.jsonl").read_bytes() == before


def test_systems_without_tables_are_told_by_their_losses(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("experiments.evaluate_fit.VaeConfig", int)  # a stranger
    assert start(fit.main, *SMALL, f"--run={run}") is None
    losses = json.loads((run / "evaluation.json").read_text())["per_seed"]["0"]
    loaded = load_fit(run)
    test = {name: x[:12] for name, x in loaded.dataset.test.items()}
    key = jax.random.key(0)
    expected, _ = loaded.system.losses["model"](loaded.variables, test, key, jax.numpy.int32(6))
    assert losses["model/loss"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (fit, ["--config=catch"], "preset of experiments.train: run python -m experiments.train"),
        (fit, ["--config=nothing"], "unknown preset --config=nothing"),
        (fit, [*SMALL, "--config.loss.gamma=3"], "gamma"),
        (fit, [*SMALL, "--members=3"], "--members has no effect on a run of VaeConfig"),
        (fit, [*SMALL, "--inception=/nowhere.npz"], "no file /nowhere.npz with the weights of Inc"),
        (fit, [*SMALL, "--data_dir=/nowhere"], "sprites16 is made, not read"),
        (train_program, ["--config=vae_sprites16"], "is a preset of experiments.fit"),
    ],
)
def test_wrong_flags_are_named(
    start: Callable,
    quick_evaluation: list,
    tmp_path: Path,
    program: object,
    arguments: list[str],
    message: str,
) -> None:
    assert message in str(start(program.main, *arguments, f"--run={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()  # nothing is trained before


@pytest.mark.parametrize("name", sorted(OFFLINE_PRESETS))
def test_presets_survive_their_file(name: str) -> None:
    config = OFFLINE_PRESETS[name]()
    assert config.preset == name
    assert from_dict(FitConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert (OFFLINE_PRESETS[name].__doc__ or "").strip()
    assert "partial(" not in (OFFLINE_PRESETS[name].__doc__ or "")


def test_an_agents_flags_are_no_flags_of_a_representation() -> None:
    with flagsaver.flagsaver():
        flags.FLAGS(["program", "--greedy"])
        with pytest.raises(ValueError, match="--greedy is for agents"):
            evaluate.refuse_playing()


def test_a_public_file_is_read_from_the_folder_that_is_given(
    start: Callable, quick_evaluation: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(
        factor_files.FILES["mpi3d_real"],
        image_shape=(16, 16, 3),
        factor_names=("a", "b"),
        factor_sizes=(4, 6),
    )
    monkeypatch.setattr(factor_files, "FILES", {"mpi3d_real": small})
    images = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / small.path, images=images)
    arguments = [
        *["--config=alpha_tcvae_mpi3d_real", f"--run={tmp_path / 'run'}"],
        *["--config.training.epochs=1", "--config.training.batch_size=8"],
        *["--config.model.channels=(4,4)", "--config.model.hidden=8"],
    ]
    assert "give the folder that holds them" in str(start(fit.main, *arguments))
    assert start(fit.main, *arguments, f"--data_dir={tmp_path}") is None
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["test_examples"] == 4
    assert load_fit(tmp_path / "run", data_dir=tmp_path).step == 2
