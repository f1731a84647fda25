"""A run of every suite, with the smallest sizes: trained, saved, loaded, evaluated."""

from pathlib import Path

import numpy as np
import pytest

from experiments import evaluate
from experiments.configs import PRESETS
from experiments.configs.atari import GAMES
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.config import Config, validate
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.run import train

TINY = {
    "model.num_tokens": "4",
    "model.num_classes": "4",
    "model.channels": "4,4,4,4",
    "model.width": "16",
    "model.layers": "1",
    "model.heads": "2",
    "model.hidden": "16",
    "model.prior": "mlp",
    "agent.width": "16",
    "training.steps": "80",
    "training.warmup": "40",
    "training.replay_capacity": "200",
    "training.batch_size": "2",
    "training.batch_length": "4",
    "training.dream_batch": "4",
    "training.dream_context": "2",
    "training.horizon": "2",
    "training.acting_context": "2",
    "training.chunk": "10",
    "training.checkpoint_every": "80",
    "training.evaluation_episodes": "2",
}


def tiny(preset: str, **env: str) -> Config:
    overrides = TINY | {f"env.{name}": value for name, value in env.items()}
    return apply_overrides(PRESETS[preset](), overrides)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_fits_together(preset: str) -> None:
    config = PRESETS[preset]()
    validate(config)
    assert config.preset == preset


@pytest.mark.parametrize(
    ("preset", "env", "protocol"),
    [
        (
            "atari100k",
            {"game": "Freeway", "num_envs": "2", "max_episode_steps": "20"},
            {
                "environment": "atari/Freeway",
                "action_repeat": 4,
                "sticky_actions": 0.0,
                "max_noops": 30,
                "life_loss": "training only",
                "max_episode_steps": 20,
                "actions": "sampled",
                "episodes_per_environment": 1,
            },
        ),
        (
            "dmc_vision",
            {
                "task": "cartpole_balance",
                "num_envs": "2",
                "max_episode_steps": "10",
                "rendering": "fast",
                "workers": "1",
            },
            {
                "environment": "dmc/cartpole_balance",
                "action_repeat": 2,
                "rendering": "fast",
                "max_episode_steps": 10,
            },
        ),
        (
            "craftax",
            {"num_envs": "2", "max_episode_steps": "10"},
            {"environment": "Craftax-Classic-Pixels", "max_episode_steps": 10},
        ),
        (
            "gymnasium",
            {"id": "CartPole-v1", "num_envs": "2", "max_episode_steps": "10"},
            {"environment": "gymnasium/CartPole-v1", "pixels": False},
        ),
    ],
)
def test_a_run_of_every_suite(
    preset: str, env: dict[str, str], protocol: dict[str, object], tmp_path: Path
) -> None:
    if preset == "dmc_vision":
        from worldmodels_jax.envs.dmc_backend import find_fault

        if find_fault("egl") and find_fault("osmesa"):
            pytest.skip("neither EGL nor OSMesa renders here")
    train(tiny(preset, **env), tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert rows[-1]["step"] == 80
    assert sum(row["world_model/updates"] for row in rows) > 0
    assert np.isfinite(rows[-1]["world_model/loss"])
    result = evaluate.evaluate_run(tmp_path / "run")
    assert result["episodes"] == 2
    assert result["protocol"] | protocol == result["protocol"]
    text = evaluate.describe(result)
    assert all(f"{name}={value}" in text for name, value in protocol.items())
    if preset == "craftax":
        assert len(result["outcomes"]) == 22
        assert 0 <= result["crafter_score"] <= 100


def test_atari100k_is_26_games() -> None:
    from worldmodels_jax.envs.atari import game_names

    assert len(set(GAMES)) == 26
    assert set(GAMES) <= set(game_names())
