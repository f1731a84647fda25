"""The host-stepped loop on real Atari frames, with a tiny model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.checkpoint import open_checkpoints
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.env_config import AtariConfig
from worldmodels_jax.training.host import make_host_loop
from worldmodels_jax.training.load import CHECKPOINTS
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import load, train

pytest.importorskip("ale_py")


@pytest.fixture(scope="module")
def pong(config: Config) -> Config:
    overrides = {
        "model.channels": "4,4,4,4",
        "training.steps": "80",
        "training.checkpoint_every": "40",
        "training.warmup": "20",
    }
    config = dataclasses.replace(config, env=AtariConfig(num_envs=2))
    return apply_overrides(config, overrides)


def test_an_atari_run_resumes_to_the_bit(
    pong: Config, tmp_path: Path, assert_identical: Any
) -> None:
    whole = train(pong, tmp_path / "whole")
    halfway = dataclasses.replace(pong, training=dataclasses.replace(pong.training, steps=40))
    train(halfway, tmp_path / "stopped")
    resumed = train(pong, tmp_path / "stopped")
    assert_identical(whole, resumed)
    assert load(tmp_path / "stopped").step == 80
    # The emulators stand at the same place too.
    extras = []
    for name in ("whole", "stopped"):
        checkpoints = open_checkpoints(tmp_path / name / CHECKPOINTS, read_only=True)
        extras.append(checkpoints.manager.restore(80)["extra"])
        checkpoints.close()
    assert extras[0] == extras[1]
    assert extras[0]["host_env"]


def test_the_replay_holds_what_the_emulator_showed(pong: Config) -> None:
    import jax

    parts = build(pong)
    env = parts.open_host(2, 0, False)
    loop = make_host_loop(env, parts.halves)
    state, _ = loop.run(loop.init(0), 6)
    stored = jax.tree.map(lambda x: np.asarray(x[:, :6]), state.replay.storage)
    env.close()

    again = parts.open_host(2, 0, False)
    time_step = again.reset()
    for i in range(6):
        np.testing.assert_array_equal(stored.observation[:, i], time_step.observation)
        np.testing.assert_array_equal(stored.is_first[:, i], time_step.is_first)
        time_step = again.step(stored.action[:, i])
    again.close()


def test_several_seeds_need_a_compiled_environment(pong: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stepped by the host, cannot join"):
        train(pong, tmp_path / "run", num_seeds=2)
