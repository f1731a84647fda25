"""``precision=bf16``: computed in bfloat16; learned, kept and reported in float32."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from worldmodels_jax.config import apply_overrides
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.learner import TrainState, make_updates
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.parts import Parts, build
from worldmodels_jax.training.run import load, train
from worldmodels_jax.types import PyTree, Record

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def half(config: Config) -> Config:
    return apply_overrides(config, {"precision": "bf16", "training.steps": "80"})


@pytest.fixture(scope="module")
def trained_in_half(half: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("half") / "run"
    train(half, run)
    return run


@pytest.fixture(scope="module")
def parts(config: Config, half: Config) -> dict[str, Parts]:
    return {"float32": build(config), "bfloat16": build(half)}


@pytest.fixture(scope="module")
def batch(parts: dict[str, Parts]) -> Record:
    """Sixteen sequences of black and white noise."""
    rng = np.random.default_rng(0)
    records = empty_records(parts["float32"].spec, (16, 8))
    frames = 255 * rng.integers(0, 2, records.observation.shape)
    return records._replace(
        observation=jnp.asarray(frames, records.observation.dtype),
        action=jnp.asarray(rng.integers(0, 3, (16, 8)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
    )


def assert_float32(tree: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {
        jax.tree_util.keystr(path): str(x.dtype)
        for path, x in leaves
        if jnp.issubdtype(x.dtype, jnp.floating)
    }
    assert found
    assert {name: dtype for name, dtype in found.items() if dtype != "float32"} == {}


def activations(parts: Parts, variables: PyTree, batch: Record) -> dict[str, str]:
    """The type of what every module puts out while the loss of the world model is computed."""
    found = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path:
            found["/".join(context.module.path)] = str(jax.tree.leaves(out)[0].dtype)
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(parts.world_model.loss, variables, batch, KEY)
    return found


def test_a_short_run_is_finite_and_what_it_learns_is_float32(trained_in_half: Path) -> None:
    rows = read_metrics(trained_in_half / "metrics.jsonl")
    assert [row["step"] for row in rows] == [40, 80]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["world_model/updates"] == rows[-1]["agent/updates"] == 20
    assert_float32(load(trained_in_half).train)


def test_losses_metrics_and_optimisers_are_float32(
    half: Config, parts: dict[str, Parts], batch: Record
) -> None:
    model, agent = parts["bfloat16"].world_model, parts["bfloat16"].agent
    updates = make_updates(half.training, model, agent)
    state: TrainState = jax.eval_shape(updates.init, KEY)
    assert_float32(state)
    assert_float32(jax.eval_shape(updates.parts["world_model"].step, state, batch, KEY))
    context = jax.tree.map(lambda x: x[:, : half.training.dream_context], batch)
    assert_float32(jax.eval_shape(updates.parts["agent"].step, state, context, KEY))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_transformer_computes_in(dtype: str, parts: dict[str, Parts], batch: Record) -> None:
    variables = jax.eval_shape(parts[dtype].world_model.init, KEY)
    found = activations(parts[dtype], variables, batch)
    transformer = {name: its for name, its in found.items() if name.split("/")[0] == "transformer"}
    layers = {f"attention_0/{name}" for name in ("query", "key", "value", "out")}
    layers |= {"norm_in", "attention_0", "norm_attention_0", "up_0", "down_0", "norm_mlp_0"}
    assert {f"transformer/{name}" for name in layers} | {"transformer"} <= transformer.keys()
    assert set(transformer.values()) == {dtype}
    assert found["prior"] == found["reward"] == found["termination"] == "float32"  # to softmax


def test_the_loss_is_that_of_float32_but_for_rounding(
    trained_in_half: Path, parts: dict[str, Parts], batch: Record
) -> None:
    variables = load(trained_in_half).train.world_model.variables
    (exact, (_, metrics)), (rounded, (_, others)) = (
        jax.jit(parts[dtype].world_model.loss)(variables, batch, KEY)
        for dtype in ("float32", "bfloat16")
    )
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=0.05, err_msg=name)
