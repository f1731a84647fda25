"""The comparisons of all systems, with the debug preset in the place of the small ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare, offline, video_comparison
from experiments.configs.small import debug
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.training.config import Config
from worldmodels_jax.types import EnvSpec, Record


@pytest.fixture(scope="module")
def config() -> Config:
    changes = {"training.steps": "80", "training.checkpoint_every": "80", "model.prior": "mlp"}
    return apply_overrides(debug(), changes)


def test_a_row_is_what_was_trained_and_evaluated_and_is_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = compare.run(config, tmp_path / "row", 2)
    evaluation = json.loads((tmp_path / "row" / "evaluation.json").read_text())
    assert row["seeds"] == [evaluation["per_seed"]["0"], evaluation["per_seed"]["1"]]
    assert row["mean"] == pytest.approx(np.mean(row["seeds"]))
    assert row["interval_95"][0] <= row["mean"] <= row["interval_95"][1]
    assert row["episodes_per_seed"] == 4
    # 80 steps of 2 environments, the first 20 iterations but one without updates, one each later.
    assert row["updates"] == {"world_model": 21, "agent": 21}
    assert 0 < row["minutes"] < 20
    rows = [json.loads(x) for x in (tmp_path / "row" / "metrics.jsonl").read_text().splitlines()]
    assert row["minutes"] == pytest.approx(
        sum(40 / x["steps_per_second"] for x in rows) / 60, rel=1e-6
    )

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it was trained already")

    monkeypatch.setattr(compare, "train", fail)
    assert compare.run(config, tmp_path / "row", 2) == row
    with pytest.raises(AssertionError, match="trained already"):
        compare.run(config, tmp_path / "row", 3)  # another number of seeds is not what is there
    text = compare.describe({"Catch-bsuite": {"STORM": row}}, 80)
    assert f"| STORM | {row['mean']:.2f} [" in text
    assert "80 agent steps, 2 seeds, 4 episodes a seed" in text


def test_every_system_has_a_preset_for_every_environment() -> None:
    seen = set()
    for environment in compare.ENVIRONMENTS:
        for system in compare.SYSTEMS:
            config = compare.configuration(system, environment, 500)
            assert config.env.name == environment
            assert config.training.steps == 500
            seen.add((environment, type(config.model).__name__, getattr(config.model, "prior", "")))
    assert len(seen) == len(compare.ENVIRONMENTS) * len(compare.SYSTEMS)
    with pytest.raises(ValueError, match="unknown --systems=Dreamer: choose among GIT-STORM"):
        compare.configuration("Dreamer", "Catch-bsuite", 1)
    with pytest.raises(ValueError, match="unknown --environments=Pong: choose among Catch-bsuite"):
        compare.configuration("STORM", "Pong", 1)


def consecutive() -> Record:
    """Ten records of frames that count; episodes begin at 0, 3 and 7."""
    spec = EnvSpec("frames", (7, 7, 1), "uint8", 2, True, 10)
    records = empty_records(spec, (10,))
    frames = jnp.arange(10, dtype=jnp.uint8)[:, None, None, None]
    first = jnp.zeros(10, bool).at[jnp.array([0, 3, 7])].set(True)
    return records._replace(
        observation=jnp.broadcast_to(frames, records.observation.shape), is_first=first
    )


def test_episodes_are_shown_from_their_beginning() -> None:
    rows = video_comparison.episodes_of(consecutive(), 4, 2)
    np.testing.assert_array_equal(rows.observation[:, :, 0, 0, 0], [[0, 1, 2, 3], [3, 4, 5, 6]])
    with pytest.raises(ValueError, match="10 records hold the beginnings of 2 episodes, not of 3"):
        video_comparison.episodes_of(consecutive(), 4, 3)


def test_errors_are_of_the_predicted_frames_that_belong_to_the_episode() -> None:
    """Of 4 records the first is shown; the first row's episode ends before the last."""
    real = video_comparison.episodes_of(consecutive(), 4, 2)
    wrong = np.array(real.observation)
    assert video_comparison.errors(real, wrong, 1)["psnr"] == 100.0
    wrong[:, 0] = 200  # shown
    wrong[0, 3] = 200  # of another episode
    assert video_comparison.errors(real, wrong, 1) == {"psnr": 100.0, "ssim": 1.0}
    wrong[1, 2] += 255 // 10  # a tenth of the range off: 20 dB and a bit, one frame in five
    expected = (4 * 100 + 20 * np.log10(255 / 25)) / 5
    assert video_comparison.errors(real, wrong, 1)["psnr"] == pytest.approx(expected, rel=1e-6)


def test_models_are_trained_on_one_replay_and_shown(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "configuration", lambda system, environment, steps: config)
    rows, frames = video_comparison.evaluate_models(
        ["one", "again"],
        "Catch-bsuite",
        seeds=1,
        updates=3,
        steps=120,
        episodes=3,
        context=2,
        horizon=4,
    )
    assert frames.shape == (3, 6, 10, 5, 3)
    first, again = rows["one"][0], rows["again"][0]
    assert {**first, "minutes": 0} == {**again, "minutes": 0}
    # The ball has moved since, and the paddle may have: 2 or 4 of 50 pixels are wrong.
    last = rows[video_comparison.LAST_FRAME][0]["psnr"]
    assert 10 * np.log10(50 / 4) <= last <= 10 * np.log10(50 / 2)
    table = video_comparison.summary(rows)
    assert table["one"]["psnr"]["mean"] == first["psnr"]
    text = video_comparison.describe(table)
    assert f"| one | {first['psnr']:.2f} [" in text


def test_offline_training_makes_every_update_but_the_agents(config: Config) -> None:
    """The key of a sample decides it: other keys give other parameters, the same the same."""
    parts = compare.build(config)
    updates = video_comparison.make_updates(config.training, parts.world_model, parts.agent)
    records = jax.jit(lambda k: offline.experience(config, k, 60))(jax.random.key(0))
    replay = offline.as_replay(records)
    fit = jax.jit(lambda key: offline.train(updates, replay, key, 4))
    state, metrics = fit(jax.random.key(1))
    start = jax.jit(updates.init)(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, state.agent, start.agent)
    moved = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(
            jax.tree.leaves(state.world_model.variables["params"]),
            jax.tree.leaves(start.world_model.variables["params"]),
            strict=True,
        )
    ]
    assert all(moved)
    assert np.isfinite(metrics["loss"])


def test_every_program_that_compares_knows_its_flags() -> None:
    """Each in a process of its own: flags of modules that one imports may be called alike."""
    programs = ("compare", "video_comparison", "token_experiments", "dreamer_experiments")
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in programs
    }
    for name, process in started.items():
        text = process.communicate(timeout=300)[0]
        assert "--seeds" in text, text
        assert "--out" in text, name
