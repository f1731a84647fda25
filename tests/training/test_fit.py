"""The offline loop on toys whose answers are known, against plain NumPy and optax."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_toys import WEIGHTS, ToyConfig, ToyData, toy

from worldmodels_jax.data.dataset import batch_indices
from worldmodels_jax.training.checkpoint import CheckpointError
from worldmodels_jax.training.fit import fit, load_fit, read_fit_config
from worldmodels_jax.training.fit_config import (
    AdversarialParts,
    OnePart,
    PartsConfig,
    PartTraining,
)
from worldmodels_jax.training.load import read_config
from worldmodels_jax.training.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class CriticParts(PartsConfig):
    """Attributes:
    model: the line.
    critic: what learns its mean.
    """

    model: PartTraining = PartTraining(lr=0.1)
    critic: PartTraining = PartTraining(lr=0.2, start=5, stop=30)


def by_hand(config, seed: int, steps: int) -> np.ndarray:
    """Adam on the line, one batch after the other, with NumPy's gradient."""
    data = config.data.load(None).train
    key, _ = jax.random.split(jax.random.key(seed))
    w = np.asarray(jax.random.normal(key, (3,)))
    optimiser = optax.adam(0.1)
    state = optimiser.init(w)
    for index in batch_indices(40, config.training.batch_size, seed, 0, steps):
        x, y = data["x"][index], data["y"][index]
        gradient = 2 * x.T @ (x @ w - y) / len(x)
        updates, state = optimiser.update(jnp.asarray(gradient), state)
        w = w + np.asarray(updates)
    return w


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fit") / "line"
    fit(toy(), directory)
    return directory


def test_fit_is_adam_on_shuffled_batches(line: Path) -> None:
    run = load_fit(line)
    assert run.step == 40
    np.testing.assert_allclose(run.variables["params"]["w"], by_hand(toy(), 0, 40), atol=1e-5)
    assert run.variables["counters"]["calls"] == 40


def test_a_longer_run_finds_the_line(tmp_path: Path) -> None:
    fit(toy(steps=400), tmp_path)
    np.testing.assert_allclose(load_fit(tmp_path).variables["params"]["w"], WEIGHTS, atol=1e-2)


def test_metrics_and_pictures_of_a_run(tmp_path: Path) -> None:
    shown = []
    fit(toy(), tmp_path, show=lambda step, pictures: shown.append((step, pictures)))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert [row["model/updates"] for row in rows] == [10] * 4
    assert rows[-1]["model/loss"] < rows[0]["model/loss"]
    assert all(row["input_wait_seconds"] >= 0 for row in rows)
    assert [step for step, _ in shown] == [10, 20, 40]  # early, then with the checkpoints
    test = ToyData().load(None).test["x"][:8]
    np.testing.assert_allclose(shown[0][1]["inputs"][:, 0, :, 0, 0], np.clip(test, 0, 1))


def test_a_stopped_run_resumes_to_the_bit(
    line: Path, tmp_path: Path, assert_identical: Callable
) -> None:
    asked = iter([False, False, True])
    fit(toy(), tmp_path, should_stop=lambda: next(asked))
    assert load_fit(tmp_path).step == 20
    fit(toy(), tmp_path)
    assert_identical(load_fit(tmp_path).variables, load_fit(line).variables)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30, 40]


def test_the_number_of_steps_is_kept_and_may_grow(tmp_path: Path, line: Path) -> None:
    fit(toy(steps=13), tmp_path)
    assert load_fit(tmp_path).step == 13
    fit(toy(), tmp_path)
    run, whole = load_fit(tmp_path), load_fit(line)
    assert run.step == 40
    np.testing.assert_allclose(run.variables["params"]["w"], whole.variables["params"]["w"])


def test_a_rate_that_falls_to_the_end_fixes_the_length(tmp_path: Path) -> None:
    parts = OnePart(PartTraining(lr=0.1, schedule="cosine"))
    fit(toy(parts=parts, steps=10), tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.steps: 10 there, 20 asked"):
        fit(toy(parts=parts, steps=20), tmp_path)


def test_epochs_are_passes_over_the_data(tmp_path: Path) -> None:
    fit(toy(epochs=3, batch_size=16), tmp_path)
    assert load_fit(tmp_path).step == 6  # two batches of 16 in 40 examples


def test_pieces_of_a_batch_give_its_gradient(line: Path, tmp_path: Path) -> None:
    fit(toy(accumulation=4), tmp_path)
    cut, whole = load_fit(tmp_path).variables, load_fit(line).variables
    np.testing.assert_allclose(cut["params"]["w"], whole["params"]["w"], atol=1e-4)
    assert cut["counters"]["calls"] == 160  # each piece sees what the one before has left


def test_the_average_of_the_parameters_is_what_is_loaded(tmp_path: Path) -> None:
    config = toy(steps=3, ema=0.5, chunk=3)
    fit(config, tmp_path)
    key, _ = jax.random.split(jax.random.key(0))
    average = np.asarray(jax.random.normal(key, (3,)))
    for step in range(3):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * by_hand(config, 0, step + 1)
    np.testing.assert_allclose(load_fit(tmp_path).variables["params"]["w"], average, atol=1e-5)


def test_seeds_at_once_are_the_seeds_one_by_one(tmp_path: Path) -> None:
    fit(toy(), tmp_path, seed=3, num_seeds=2)
    for seed in (3, 4):
        learned = load_fit(tmp_path, seed=seed).variables["params"]["w"]
        np.testing.assert_allclose(learned, by_hand(toy(), seed, 40), atol=1e-5)
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    mean = (row["seed_0/model/loss"] + row["seed_1/model/loss"]) / 2
    assert row["model/loss"] == pytest.approx(mean)
    with pytest.raises(CheckpointError, match=r"seeds 3\.\.4, not seed 5"):
        load_fit(tmp_path, seed=5)


@pytest.mark.parametrize(("how", "seeds"), [("shard_map", 1), ("pmap", 1), ("shard_map", 2)])
def test_devices_share_a_batch(tmp_path: Path, how: str, seeds: int) -> None:
    fit(toy(), tmp_path, num_devices=4, parallel=how, num_seeds=seeds)
    for seed in range(seeds):
        learned = load_fit(tmp_path, seed=seed).variables["params"]["w"]
        np.testing.assert_allclose(learned, by_hand(toy(), seed, 40), atol=1e-5)


def test_parts_have_optimisers_and_times_of_their_own(tmp_path: Path) -> None:
    config = toy(kind="two", parts=CriticParts())
    train = fit(config, tmp_path)
    params = load_fit(tmp_path).variables["params"]
    # The critic's loss pulls at the line too, which only the line's own loss may move.
    np.testing.assert_allclose(params["model"]["w"], by_hand(config, 0, 40), atol=1e-5)
    critic, optimiser = jnp.zeros(()), optax.adam(0.2)
    state = optimiser.init(critic)
    for step in range(5, 30):
        # It sees the line after the line's update of the same step.
        gradient = 2 * (critic - by_hand(config, 0, step + 1).mean())
        updates, state = optimiser.update(gradient, state)
        critic = critic + updates
    np.testing.assert_allclose(params["critic"], critic, atol=1e-4)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["critic/updates"] for row in rows] == [5, 10, 10, 0]
    assert rows[0]["critic/at"] == 7.0  # steps 5 to 9
    assert "critic/loss" not in rows[-1]
    assert set(train.learner.optimiser) == {"model", "critic"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": OnePart(PartTraining(lr=0.0))}, r"parts.model.lr=0.0 must be greater than 0"),
        ({"parts": OnePart(PartTraining(start=40))}, "starts at step 40 and stops before step 40"),
        (
            {"parts": OnePart(PartTraining(schedule="linear", warmup=40))},
            "warmup=40 leaves nothing of its 40 updates",
        ),
        ({"kind": "two"}, "'critic', which OnePart does not train"),
        (
            {"parts": AdversarialParts(discriminator=PartTraining(lr=1.0))},
            "parts.discriminator has fields that differ",
        ),
        ({"batch_size": 41}, "a batch of 41 is larger than the 40 examples"),
        ({"accumulation": 3}, "training.batch_size=8 cannot be cut"),
        ({"ema": 1.0}, "training.ema=1.0 is no decay"),
        ({"chunk": 0}, "training.chunk=0 must be at least 1"),
    ],
)
def test_wrong_numbers_are_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(toy(**change), tmp_path / "run")


def test_a_directory_belongs_to_one_run(line: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(toy(), model=ToyConfig("two"), parts=CriticParts())
    with pytest.raises(CheckpointError, match=r"model\.toy_kind: 'line' there, 'two' asked"):
        fit(other, line)
    with pytest.raises(CheckpointError, match=r"run of experiments\.fit, which has no agent"):
        read_config(line)
    assert read_fit_config(line)[:3] == (toy(), 0, 1)
    saved = json.loads((line / "config.json").read_text())
    assert saved["config"]["model"] == {"toy_kind": "line"}


def test_a_data_set_of_ones_own(tmp_path: Path) -> None:
    data = ToyData(16).load(None)._replace(name="mine")
    fit(toy(), tmp_path, dataset=data)
    with pytest.raises(ValueError, match="data set of your own, 'mine'"):
        load_fit(tmp_path)
    assert load_fit(tmp_path, dataset=data).dataset.name == "mine"
    with pytest.raises(CheckpointError, match="own dataset: 'mine' there, None asked"):
        fit(toy(), tmp_path)
