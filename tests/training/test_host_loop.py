"""The host-stepped loop around an environment in NumPy; no emulator is needed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, imagine
from worldmodels_jax.agents.acting import Actor, Memory, make_actor
from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training import parts
from worldmodels_jax.training import run as run_lib
from worldmodels_jax.training.config import Config, TrainingConfig
from worldmodels_jax.training.env_config import AtariConfig, EnvConfig
from worldmodels_jax.training.host import make_host_loop
from worldmodels_jax.training.learner import Learner, TrainState, Update, Updates
from worldmodels_jax.training.online import make_halves
from worldmodels_jax.types import EnvSpec, TimeStep

SPEC = EnvSpec("atari/Walk", (10, 5, 1), "uint8", 3, True, 100)


class Walk:
    """A random walk of random length on a strip of five cells, its state in NumPy.

    The reward is the cell one stands on; an episode ends by itself or, one in four, is cut.
    """

    opened: list["Walk"]  # all that were made; set by a fixture

    def __init__(self, num_envs: int, seed: int) -> None:
        self.spec, self.num_envs, self.closed = SPEC, num_envs, False
        self.rng = np.random.default_rng(seed)
        self.cell = np.zeros(num_envs, int)
        self.ended = np.ones(num_envs, bool)
        self.log: list[TimeStep] = []
        Walk.opened.append(self)

    def reset(self) -> TimeStep:
        self.ended[:] = True
        return self.step(np.zeros(self.num_envs, np.int32))

    def step(self, actions: np.ndarray) -> TimeStep:
        assert not self.closed
        first, n = self.ended, self.num_envs
        slips = self.rng.integers(-1, 2, n)
        self.cell = np.where(first, 2, np.clip(self.cell + actions - 1 + slips, 0, 4))
        ended = ~first & (self.rng.random(n) < 0.3)
        truncated = ended & (self.rng.random(n) < 0.25)
        self.ended = ended
        frame = np.zeros((n, *SPEC.observation_shape), np.uint8)
        frame[np.arange(n), :, self.cell] = 255
        reward = np.where(first, 0, self.cell).astype(np.float32)
        step = TimeStep(frame, reward, ended & ~truncated, truncated, first)
        self.log.append(step)
        return step

    def save_state(self) -> bytes:
        state = [self.rng.bit_generator.state, self.cell.tolist(), self.ended.tolist()]
        return json.dumps(state).encode()

    def load_state(self, state: bytes) -> None:
        self.rng.bit_generator.state, cell, ended = json.loads(state)
        self.cell, self.ended = np.array(cell), np.array(ended)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Walk]:
    """Every environment that is made, in order."""
    monkeypatch.setattr(Walk, "opened", [], raising=False)

    def open_host(num_envs: int, seed: int, evaluation: bool) -> Walk:
        del evaluation
        return Walk(num_envs, seed)

    monkeypatch.setattr(parts, "environment", lambda config: open_host)
    return Walk.opened


@pytest.fixture
def walking(config: Config) -> Config:
    """Learning is switched off: what is tested is what surrounds it."""
    overrides = {
        "model.prior": "mlp",
        "training.world_model_ratio": "0",
        "training.agent_ratio": "0",
        "training.steps": "120",
        "training.checkpoint_every": "40",
    }
    config = dataclasses.replace(config, env=AtariConfig(game="Walk", num_envs=2))
    return apply_overrides(config, overrides)


def always(actor: Actor, memory: Memory, action: int) -> tuple[Memory, jax.Array]:
    actions = jnp.full(memory.records.reward.shape[0], action)
    return actor.record_action(memory, actions), actions


def test_the_replay_is_what_the_environment_showed_and_was_told(walks: list[Walk]) -> None:
    """World model and agent are counters; the policy's action is 2, a random one 0."""
    none = Learner(jnp.zeros((), jnp.int32), ())

    def count(train: TrainState, written: jax.Array, key: jax.Array) -> tuple[TrainState, Any]:
        number = train.agent.variables + 1
        return train._replace(agent=Learner(number, ())), {"number": number, "written": written}

    updates = Updates(
        init=lambda key: TrainState(none, none),
        parts={
            "agent": Update(lambda replay, draws, key: (draws, replay.written), count, (1, 1), 0.5)
        },
    )
    actor = make_actor(None, Agent(*[None] * 5), SPEC, 2)
    actor = actor._replace(
        act=lambda model, agent, memory, key: always(actor, memory, 2),
        act_random=lambda memory, key: always(actor, memory, 0),
    )
    config = Config(
        env=EnvConfig(num_envs=3),
        training=dataclasses.replace(
            TrainingConfig(),
            warmup=21,
            replay_capacity=60,
        ),
    )
    env = Walk(3, seed=0)
    loop = make_host_loop(env, make_halves(config, SPEC, updates, actor))
    state, history = loop.run(loop.init(0), 10)
    state, later = loop.run(state, 10)
    assert len(env.log) == 21  # a reset and 20 steps
    shown = TimeStep(*(np.stack(values, axis=1) for values in zip(*env.log, strict=True)))

    for name in TimeStep._fields:  # (E, K, ...)
        np.testing.assert_array_equal(
            getattr(state.replay.storage, name), getattr(shown, name)[:, :20]
        )
        np.testing.assert_array_equal(getattr(state.time_step, name), getattr(shown, name)[:, 20])
    np.testing.assert_array_equal(state.replay.storage.action, [[0] * 7 + [2] * 13] * 3)

    history = jax.tree.map(lambda *values: np.concatenate(values), history, later)
    last = shown.is_last[:, 1:]
    assert last.any(axis=1).all()
    np.testing.assert_array_equal(history["episode/count"], last.sum(0))
    total = np.zeros(20)
    for row in range(3):
        episode = 0.0
        for t in range(20):
            episode = 0.0 if shown.is_first[row, t + 1] else episode + shown.reward[row, t + 1]
            total[t] += episode * last[row, t]
    np.testing.assert_array_equal(history["episode/return_sum"], total)
    # 1.5 an iteration, from the seventh record on; 9 = floor(6 * 1.5) never happened.
    done = np.array([max(0, 3 * k // 2 - 9) for k in range(21)])
    np.testing.assert_array_equal(history["agent/updates"], np.diff(done))
    assert state.train.agent.variables == done[-1] == 21
    assert history["agent/written"][6:].tolist() == list(range(7, 21))
    assert "world_model/number" not in history


def test_a_host_run_resumes_to_the_bit_and_closes_what_it_opened(
    walking: Config, walks: list[Walk], tmp_path: Path
) -> None:
    run_lib.train(walking, tmp_path / "whole")
    whole = walks[-1]
    stopped = dataclasses.replace(walking, training=dataclasses.replace(walking.training, steps=80))
    run_lib.train(stopped, tmp_path / "stopped")
    run_lib.train(walking, tmp_path / "stopped")
    resumed = walks[-1]
    assert len(whole.log) == 61
    assert len(resumed.log) == 21  # the reset of a new vector, then only what was left to do
    for mine, its in zip(resumed.log[1:], whole.log[41:], strict=True):
        for x, y in zip(mine, its, strict=True):
            np.testing.assert_array_equal(x, y)
    assert resumed.save_state() == whole.save_state()
    assert all(walk.closed for walk in walks)

    # The entry points play whole episodes in environments of their own.
    result = evaluate.evaluate_run(tmp_path / "whole", episodes=5)
    assert result["episodes"] == 8  # four environments, two episodes each
    assert result["protocol"]["max_noops"] == 30
    assert len(result["returns"][0]) == 8
    path = imagine.imagine_run(tmp_path / "whole", context=2, horizon=3)
    assert path.exists()
    assert path.with_suffix(".png").exists()
    assert all(walk.closed for walk in walks)


def test_a_host_environment_is_closed_where_the_run_fails(
    walking: Config, walks: list[Walk], tmp_path: Path
) -> None:
    def stop(step: int, metrics: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lib.train(walking, tmp_path / "run", report=stop)
    assert len(walks) == 2  # one was asked for its spec
    assert all(walk.closed for walk in walks)
    assert run_lib.load(tmp_path / "run").step == 40  # what was saved is finished


def test_several_seeds_need_a_compiled_environment(
    walking: Config, walks: list[Walk], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--seeds=2 .* start one run per seed"):
        run_lib.train(walking, tmp_path / "run", num_seeds=2)
    assert not (tmp_path / "run").exists()
