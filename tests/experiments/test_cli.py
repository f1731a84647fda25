"""The entry points as a user types them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from experiments.configs import OFFLINE_PRESETS, PRESETS
from worldmodels_jax.config import describe
from worldmodels_jax.training.config import Config

ROOT = Path(__file__).parents[2]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug preset, trained from the command line."""
    path = tmp_path_factory.mktemp("cli") / "debug"
    done = run("experiments.train", "--config=debug", f"--run={path}")
    assert done.returncode == 0, done.stderr
    assert "random policy" in done.stdout
    assert str(path / "dream.gif") in done.stdout
    return path


def test_a_run_leaves_everything_behind(directory: Path) -> None:
    names = {p.name for p in directory.iterdir()}
    assert {"checkpoints", "metrics.jsonl", "tensorboard", "evaluation.json"} <= names
    assert {"learning_curve.png", "dream.gif", "config.json"} <= names
    assert any((directory / "tensorboard").iterdir())
    result = json.loads((directory / "evaluation.json").read_text())
    assert {"episodes", "mean", "iqm", "random_mean", "protocol", "seeds"} <= set(result)
    assert result["episodes"] == 4
    assert result["preset"] == "debug"
    with Image.open(directory / "learning_curve.png") as image:
        assert image.width > 300


def test_metrics_name_every_term(directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    model = (
        "reconstruction_loss reward_loss termination_loss dynamics_kl dynamics_loss "
        "representation_kl representation_loss posterior_entropy prior_entropy token_perplexity "
        "codebook_use gradient_norm"
    )
    agent = "actor_loss critic_loss actor_entropy return_mean return_std return_scale gradient_norm"
    wanted = {f"world_model/{n}" for n in model.split()} | {f"agent/{n}" for n in agent.split()}
    assert wanted | {"steps_per_second", "episode/return"} <= set(rows[-1])


def test_the_same_command_again_changes_no_result(directory: Path) -> None:
    before = {n: (directory / n).read_bytes() for n in ("evaluation.json", "metrics.jsonl")}
    done = run("experiments.train", "--config=debug", f"--run={directory}")
    assert done.returncode == 0, done.stderr
    assert before == {name: (directory / name).read_bytes() for name in before}


def test_evaluate_and_imagine(directory: Path, tmp_path: Path) -> None:
    done = run("experiments.evaluate", f"--run={directory}", "--episodes=3", "--greedy")
    assert done.returncode == 0, done.stderr
    assert "actions=mode" in done.stdout
    assert "3 episodes" in done.stdout
    out = tmp_path / "d.gif"
    done = run(
        "experiments.imagine", f"--run={directory}", "--context=2", "--horizon=5", f"--out={out}"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(out) as image:
        assert image.n_frames == 7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--config=debug", "--config.model.priro=mlp"], "prior"),
        (["evaluate", "--run=/nowhere/at/all"], "holds no run"),
    ],
)
def test_mistakes_are_one_paragraph_without_a_traceback(
    args: list[str], message: str, tmp_path: Path
) -> None:
    if args[0] == "train":
        args = [*args, f"--run={tmp_path / 'run'}"]
    done = run(f"experiments.{args[0]}", *args[1:])
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_presets_and_fields_with_their_meaning() -> None:
    text = run("experiments.train", "--help").stdout
    for name, make in PRESETS.items():
        assert f"  {name}: {make.__doc__.splitlines()[0]}" in text
    for line in describe(Config()).splitlines()[1:]:
        assert line in text
        path, *rest = re.split(r"  +", line)
        assert len(rest) == 3, f"{path} has no documentation"
    for flag in ("--config", "--run", "--seed", "--seeds"):
        assert f"  {flag}: " in text


def test_help_of_fit_names_its_own_presets_and_fields() -> None:
    text = run("experiments.fit", "--help").stdout
    for name, make in OFFLINE_PRESETS.items():
        assert f"  {name}: {make.__doc__.splitlines()[0]}" in text
    for line in describe(OFFLINE_PRESETS["alpha_tcvae_sprites16"]()).splitlines()[1:]:
        assert line in text
        assert len(re.split(r"  +", line)) == 4, f"{line} has no documentation"
    for flag in ("--config", "--run", "--seeds", "--data_dir", "--cache_dir", "--[no]fast"):
        assert f"  {flag}: " in text


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("evaluate", ["run", "episodes", "evaluation_seed", "[no]greedy"]),
        ("imagine", ["run", "context", "horizon", "out", "dream_seed", "trained_seed"]),
    ],
)
def test_help_of_what_uses_a_run(program: str, flags: list[str]) -> None:
    text = run(f"experiments.{program}", "--help").stdout
    assert f"python -m experiments.{program} --run=runs/catch" in text
    for flag in flags:
        assert f"  --{flag}: " in text
