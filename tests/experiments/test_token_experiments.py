"""The experiments on tokens: what they measure, by hand, and all of them at the smallest sizes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from token_toys import delta_toy, iris_toy, run_part

from experiments import token_experiments, token_training, tokenizer_errors
from worldmodels_jax.envs.scroll_grid import make_scroll_grid, render
from worldmodels_jax.models.iris_config import DeltaIrisConfig
from worldmodels_jax.types import Record

KEY = jax.random.key(0)
# What is measured


def counted(episodes: int, length: int) -> Record:
    """Records whose reward is their number within the episode, plus 100 for each episode."""
    number = jnp.arange(length) + 100.0 * jnp.arange(episodes)[:, None]
    no = jnp.zeros((episodes, length), bool)
    frames = jnp.zeros((episodes, length, 2, 2, 1), jnp.uint8) + number[..., None, None, None]
    return Record(frames.astype(jnp.uint8), number.astype(jnp.int32), number, no, no, no)


def test_errors_of_frames_and_which_are_the_worst() -> None:
    pairs = tokenizer_errors.pairs_of(counted(2, 4))
    # Episodes are not joined: none of the six transitions leads from 3 to 100.
    np.testing.assert_array_equal(pairs.action, [0, 1, 2, 100, 101, 102])
    np.testing.assert_array_equal(pairs.frames[:, 0, 0, 0], pairs.action + 1)
    np.testing.assert_array_equal(pairs.previous[:, 0, 0, 0], pairs.action)
    perfect = tokenizer_errors.frame_errors(lambda frames, *_: frames / 255, pairs, batch=4)
    np.testing.assert_array_equal(perfect, np.zeros(6))
    copied = tokenizer_errors.frame_errors(lambda _, previous, __: previous / 255, pairs, batch=4)
    np.testing.assert_allclose(copied, np.full(6, 1 / 255**2))
    grey = tokenizer_errors.frame_errors(lambda frames, *_: np.full(frames.shape, 0.5), pairs)
    np.testing.assert_allclose(grey, (0.5 - np.array([1, 2, 3, 101, 102, 103]) / 255) ** 2)
    # Of 101 frames two are the worst hundredth: 100 and 99.
    errors = np.random.default_rng(0).permutation(101).astype(float)
    assert tokenizer_errors.summary(errors) == {"l2": 50.0, "worst_1_percent": 99.5}


def test_reward_losses_of_the_omniscient_and_of_the_ignorant() -> None:
    # Bins at multiples of 2; ln(1 + 1) is 0.35 of the way from 0 to the next.
    share = np.log(2) / 2
    got = token_experiments.reward_references(np.array([[0.0, 0.0], [0.0, 1.0]]), 21)

    def entropy(*p: float) -> float:
        return -sum(x * np.log(x) for x in p)

    assert got["known"] == pytest.approx(entropy(share, 1 - share) / 4, rel=1e-4)
    assert got["base_rate"] == pytest.approx(entropy(share / 4, 1 - share / 4), rel=1e-4)


def test_held_out_metrics_are_means_over_all_windows() -> None:
    def loss(variables: Any, batch: Record, key: jax.Array) -> Any:
        assert batch.reward.shape[1] == 13
        steps = jnp.diff(batch.reward, axis=1)
        return 0.0, ({}, {"mean": variables * batch.reward.mean(), "step": steps.max()})

    records = counted(3, 30)  # two windows of each, six in all: four and two
    got = token_experiments.held_out_metrics(loss, 2.0, records, batch=4)
    expected = 2 * np.asarray(records.reward)[:, :26].mean()
    assert got == {"mean": pytest.approx(expected), "step": 1.0}


def test_fit_trains_its_part_on_windows_of_episodes() -> None:
    records = counted(2, 6)

    def loss(variables: Any, batch: Record, key: jax.Array) -> Any:
        params, seen = variables["params"], variables["seen"]
        value = ((params["own"]["w"] - 7.0) ** 2).sum() + params["other"]["w"]
        gap = jnp.abs(jnp.diff(batch.reward, axis=1) - 1.0).max()
        seen = seen.at[batch.action[:, 0] % 100].set(True)
        return value, ({"seen": seen}, {"gap": gap, "rows": jnp.float32(batch.reward.shape[0])})

    variables = {
        "params": {"own": {"w": jnp.zeros(2)}, "other": {"w": jnp.ones(())}},
        "seen": jnp.zeros(6, bool),
    }

    def fit(updates: int) -> Any:
        return token_training.fit(
            loss, "own", variables, optax.sgd(0.1), records, KEY,
            updates=updates, batch=5, length=3, chunk=15,
        )  # fmt: skip

    trained, metrics = fit(30)
    np.testing.assert_allclose(trained["params"]["own"]["w"], 7.0 * (1 - 0.8**30), rtol=1e-4)
    assert trained["params"]["other"]["w"] == 1.0
    assert metrics == {"gap": 0.0, "rows": pytest.approx(5.0)}
    # Every start but those from which three records would leave the episode.
    np.testing.assert_array_equal(trained["seen"], [True] * 4 + [False] * 2)
    with pytest.raises(ValueError, match=r"20 updates are not a positive multiple .* of 15"):
        fit(20)


def test_only_matrices_decay() -> None:
    leaves = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    params = {"dense": leaves, "conv": {"kernel": jnp.ones((3, 3, 1, 1))}}
    expected = {
        "dense": {"kernel": True, "bias": False, "scale": False},
        "conv": {"kernel": False},
    }
    assert token_training._kernels(params) == expected


def test_experience_is_whole_episodes_and_their_states() -> None:
    env = make_scroll_grid(max_episode_steps=5)
    records, states = token_training.experience(env, KEY, 3)
    assert records.observation.shape == (3, 6, 16, 16, 3)
    np.testing.assert_array_equal(records.is_first, np.arange(6) == np.zeros((3, 1)))
    np.testing.assert_array_equal(records.truncated, np.arange(6) == np.full((3, 1), 5))
    frames = jax.jit(jax.vmap(jax.vmap(render)))(states)
    np.testing.assert_array_equal(frames, records.observation)
    assert len(np.unique(records.action)) > 2


# The program


@pytest.fixture(autouse=True)
def no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_experiments.cost, "matmul_ceiling", lambda: 1.0)


def test_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[DeltaIrisConfig] = []

    def train(config: DeltaIrisConfig, *args: Any) -> Any:
        trained.append(config)
        return config.tokenizer.num_tokens, {"reconstruction_l2": 0.5, "codebook_entropy": 3.0}

    def make_reconstruct(config: DeltaIrisConfig, spec: Any) -> Any:
        off = 0.1 if config.tokenizer.kind == "delta" else 0.8

        def reconstruct(tokens: int, frames: Any, previous: Any, action: Any) -> Any:
            return frames / 255 + off / tokens

        return reconstruct

    monkeypatch.setattr(tokenizer_errors, "train_tokenizer", train)
    monkeypatch.setattr(tokenizer_errors, "make_reconstruct", make_reconstruct)
    stored = run_part("tokenizers", tmp_path)
    (row,) = stored["rows"]
    l2 = {name: values["l2"] for name, values in row.items()}
    assert l2.pop("copy-last-frame") > 0.01
    expected = {"delta-4": 0.025, "delta-4, no max-pixel term": 0.025}
    expected |= {"frame-16": 0.05, "frame-4": 0.2}
    assert l2 == {name: pytest.approx(off**2) for name, off in expected.items()}
    assert stored["means"]["frame-4"] == {
        "l2": pytest.approx(0.04),
        "worst_1_percent": pytest.approx(0.04),
    }
    assert all(stored["passed"].values())
    assert len(stored["passed"]) == 3
    weights = [config.tokenizer.max_pixel_weight for config in trained]
    assert weights == [0.01, 0.0, 0.01, 0.01]
    with Image.open(tmp_path / "images/delta_iris_reconstructions.png") as image:
        assert image.size[0] > 500


def test_i_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known losses; that of the model without I-tokens is that of who knows how often."""
    env = make_scroll_grid(**token_experiments.REWARDED)

    def losses(config: DeltaIrisConfig, spec: Any) -> Any:
        shown = config.world_model.i_tokens

        def loss(variables: Any, batch: Record, key: jax.Array) -> Any:
            share = variables["transformer"] * batch.reward[:, 1:].mean()
            return share, ({}, {"reward_loss": share, "token_loss": 2.0 + share, "shown": shown})

        return {"tokenizer": loss, "dynamics": loss}

    def train_tokenizer(*args: Any) -> Any:
        return {"tokenizer": 1.0}, {"reconstruction_l2": 0.5}

    def train_transformer(config: Any, spec: Any, variables: Any, *args: Any) -> Any:
        return {**variables, "transformer": 1.0 if config.world_model.i_tokens else 2.0}, {}

    monkeypatch.setattr(token_experiments, "parts_of", losses)
    monkeypatch.setattr(token_experiments, "train_tokenizer", train_tokenizer)
    monkeypatch.setattr(token_experiments, "train_transformer", train_transformer)
    stored = run_part("i_tokens", tmp_path)
    (row,) = stored["rows"]
    held_out, _ = token_training.experience(env, jax.random.split(jax.random.key(0), 4)[1], 2)
    rewards = np.asarray(held_out.reward).reshape(10, 13)[:, 1:]
    assert row["with"]["reward_loss"] == pytest.approx(rewards.mean())
    assert row["without"]["reward_loss"] == pytest.approx(2 * rewards.mean())
    assert stored["means"]["without"]["token_loss"] == pytest.approx(2 + 2 * rewards.mean())
    assert row["reward_references"]["base_rate"] > row["reward_references"]["known"] > 0
    assert (row["with"]["shown"], row["without"]["shown"]) == (1.0, 0.0)
    # Exactly half is not below half.
    assert stored["passed"] == {"reward loss: with < 0.5 without": False}


def test_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_experiments, "delta_iris_tiny16", delta_toy)
    monkeypatch.setattr(token_experiments, "iris_tiny16", iris_toy)
    once = token_experiments.cost.Timing(3.0, 2.0, 4.0, 3.0, 5)
    monkeypatch.setattr(token_experiments.cost, "time_call", lambda *_, **__: once)
    stored = run_part("speed", tmp_path)
    (row,) = stored["rows"]
    assert list(row) == ["delta-4", "iris-16", "iris-64"]
    for values in row.values():
        assert values["milliseconds_per_step"] == pytest.approx(200.0)
        assert values["milliseconds_per_step_quartiles"] == pytest.approx([400 / 3, 800 / 3])
        assert values["steps_per_second"] == pytest.approx(5.0)
    flops = [values["gigaflops_per_step"] for values in row.values()]
    assert flops[1] < flops[2]
    assert stored["passed"] == {"speed: delta-4 > iris-16 > iris-64": False}
