"""The debug preset over four virtual devices, mapped both ways, and what a split must satisfy.

That a split batch gives the gradients of the whole one is tested in ``test_learner_sharded``.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from worldmodels_jax import envs
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.checkpoint import abstract
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.online import LoopState, make_loop, over_seeds
from worldmodels_jax.training.parallel import (
    EACH_ENV,
    compiler_options,
    make_mapping,
    per_device_config,
    with_seeds,
)
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import load, train

D = 4


@pytest.fixture(scope="module")
def split_config(config: Config) -> Config:
    overrides = {
        "env.num_envs": "4",
        "model.prior": "mlp",
        "training.batch_size": "4",
        "training.warmup": "40",
        "training.chunk": "12",
        "training.steps": "96",
        "training.checkpoint_every": "48",
        "training.world_model_ratio": "0.25",
        "training.agent_ratio": "0.25",
    }
    return apply_overrides(config, overrides)


def run_chunks(config: Config, how: Any, num_seeds: int = 1) -> tuple[LoopState, dict]:
    mapping = make_mapping(D, how)
    parts = build(config, num_devices=D, axis_name=mapping.axis_name)
    batched = envs.batch(envs.auto_reset(parts.env), config.env.num_envs // D)
    loop = make_loop(config, batched, parts.halves, axis_name=mapping.axis_name)
    layout, keys = EACH_ENV, jax.random.key(0)
    if num_seeds > 1:
        loop, layout = over_seeds(loop), with_seeds(EACH_ENV)
        keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    state = mapping.compile(loop.init, (None,), layout)(keys)
    run = mapping.compile(loop.run, (layout,), (layout, None), donate=True)
    state, metrics = run(state)
    return state, metrics


@pytest.fixture(scope="module")
def mapped(split_config: Config) -> tuple[LoopState, dict]:
    return run_chunks(split_config, "shard_map")


def test_what_is_split_and_what_is_not(mapped: tuple[LoopState, dict]) -> None:
    state, metrics = mapped
    assert metrics["world_model/updates"].tolist() == [0] * 9 + [1] * 3
    assert state.replay.storage.observation.shape[:2] == (4, 50)
    assert state.iteration == state.replay.written == 12
    shards = state.replay.storage.reward.addressable_shards
    assert [shard.data.shape[0] for shard in shards] == [1] * D
    # Each device plays its own games.
    actions = np.asarray(state.replay.storage.action[:, :12])
    assert len({row.tobytes() for row in actions}) == D
    for leaf in jax.tree.leaves(state.train):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == D
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_pmap_is_shard_map(
    split_config: Config, mapped: tuple[LoopState, dict], to_numpy: Callable
) -> None:
    expected, actual = to_numpy(mapped), to_numpy(run_chunks(split_config, "pmap"))
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_seeds_over_devices_are_the_seeds_one_by_one(
    split_config: Config, mapped: tuple[LoopState, dict], to_numpy: Callable
) -> None:
    state, metrics = run_chunks(split_config, "shard_map", num_seeds=2)
    assert state.replay.storage.reward.shape[:2] == (2, 4)
    first = to_numpy(jax.tree.map(lambda x: x[0], state.train))
    for x, y in zip(
        jax.tree.leaves(to_numpy(mapped[0].train)), jax.tree.leaves(first), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    for name, values in mapped[1].items():
        np.testing.assert_allclose(values, metrics[name][0], rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_run_goes_on_with_another_number_of_devices(split_config: Config, tmp_path: Path) -> None:
    half = dataclasses.replace(
        split_config, training=dataclasses.replace(split_config.training, steps=48)
    )
    four = train(half, tmp_path / "run", num_devices=4)
    again = load(tmp_path / "run").train  # on one device
    for x, y in zip(jax.tree.leaves(four), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    final = train(split_config, tmp_path / "run", num_devices=2)
    assert load(tmp_path / "run").step == 96
    moved = [
        bool((np.asarray(x) != np.asarray(y)).any())
        for x, y in zip(
            jax.tree.leaves(four.world_model.variables["params"]),
            jax.tree.leaves(final.world_model.variables["params"]),
            strict=True,
        )
    ]
    assert any(moved)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env.num_envs": "6"}, r"env\.num_envs=6 .* 4 devices: .* --config\.env\.num_envs=8"),
        ({"training.batch_size": "2"}, r"training\.batch_size=2 .* multiple of 4"),
        (
            {"training.dream_batch": "12", "training.dream_starts": "2"},
            r"training\.dream_batch=12 .* 2 \(training.dream_starts\) .*dream_batch=16",
        ),
        ({"training.dream_batch": "9"}, r"training\.dream_batch=9 .* --config.*dream_batch=12"),
    ],
)
def test_what_does_not_split_evenly_is_named(
    split_config: Config, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        per_device_config(apply_overrides(split_config, overrides), D)


def test_devices_that_are_not_there(split_config: Config) -> None:
    with pytest.raises(ValueError, match=r"--devices=99 cannot be had: JAX sees \d+ cpu devices"):
        make_mapping(99)
    assert make_mapping().num_devices == 1
    assert make_mapping().axis_name is None


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_run_that_goes_on_is_the_program_that_it_was(num_devices: int) -> None:
    """So it is found in the cache: a full-size loop takes minutes to compile."""
    mapping = make_mapping(num_devices)
    first = mapping.compile(lambda x: x + 1, (0,), 0)(np.zeros(4, np.float32))
    restored = jax.device_put(np.asarray(first), abstract(first).sharding)
    assert restored.committed
    run = mapping.compile(lambda x: 2 * x, (0,), 0)
    assert run.lower(restored).as_text() == run.lower(first).as_text()


@pytest.mark.parametrize("num_devices", [1, 2])
def test_small_products_are_compiled_without_a_library(num_devices: int) -> None:
    """Where this fails on a new JAX, see whether its compiler still wants to be told."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 32, 32)).astype(np.float32) for _ in range(2))
    compiled = [
        make_mapping(num_devices, small_products=small).compile(jax.numpy.matmul, (0, 0), 0)
        for small in (False, True)
    ]
    texts = [function.lower(x, y).compile().as_text() for function in compiled]
    assert ["ynn" in text for text in texts] == [True, False]
    np.testing.assert_allclose(compiled[0](x, y), x @ y, atol=1e-5)
    np.testing.assert_allclose(compiled[1](x, y), x @ y, atol=1e-5)


def test_compiler_options_are_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_options(False) == {}
    assert len(compiler_options(True)) == 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options(True) == {}
