"""The debug preset's loop, compiled once, and a run of it, shared by the tests of training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments.configs.small import debug
from worldmodels_jax import envs
from worldmodels_jax.training.checkpoint import abstract, open_checkpoints
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.load import CHECKPOINTS
from worldmodels_jax.training.online import Loop, LoopState, make_loop
from worldmodels_jax.training.parallel import EACH_ENV, make_mapping
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import train
from worldmodels_jax.types import PyTree


def _to_numpy(tree: PyTree) -> PyTree:
    """A copy on the host that no donation can overwrite; keys become their words."""

    def leaf(x: Any) -> np.ndarray:
        is_key = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(leaf, tree)


def _assert_identical(a: PyTree, b: PyTree) -> None:
    """Equal structure, types and bits (an equality of floats would let -0 pass for 0)."""
    leaves_a, leaves_b = (jax.tree_util.tree_leaves_with_path(_to_numpy(tree)) for tree in (a, b))
    assert len(leaves_a) == len(leaves_b) > 0
    for (path, x), (other, y) in zip(leaves_a, leaves_b, strict=True):
        name = jax.tree_util.keystr(path)
        assert name == jax.tree_util.keystr(other)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


class History(NamedTuple):
    """The debug preset from ``jax.random.key(0)``, chunk by chunk, as NumPy arrays."""

    states: list[LoopState]  # before the first chunk, and after each
    metrics: list[dict[str, np.ndarray]]  # of each chunk
    compiled: list[str]  # the programs, in order


@pytest.fixture(scope="session")
def to_numpy() -> Callable[[PyTree], PyTree]:
    return _to_numpy


@pytest.fixture(scope="session")
def assert_identical() -> Callable[[PyTree, PyTree], None]:
    return _assert_identical


@pytest.fixture(scope="session")
def config() -> Config:
    return debug()


@pytest.fixture(scope="session")
def pure_loop(config: Config) -> Loop:
    parts = build(config)
    env = envs.batch(envs.auto_reset(parts.env), config.env.num_envs)
    return make_loop(config, env, parts.halves)


@pytest.fixture(scope="session")
def loop(config: Config, pure_loop: Loop) -> Loop:
    """As ``training.run.train`` compiles it."""
    mapping = make_mapping(1, small_products=config.training.small_products)
    return Loop(
        mapping.compile(pure_loop.init, (None,), EACH_ENV),
        mapping.compile(pure_loop.run, (EACH_ENV,), (EACH_ENV, None), donate=True),
    )


@pytest.fixture(scope="session")
def history(loop: Loop) -> History:
    """All the debug preset's steps: four chunks of 20 iterations of 2 environments."""
    lowered: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            lowered.append(about["fun_name"])

    state = loop.init(jax.random.key(0))
    jax.monitoring.register_event_duration_secs_listener(listen)
    states, metrics = [_to_numpy(state)], []
    for _ in range(4):
        state, values = loop.run(state)
        states.append(_to_numpy(state))
        metrics.append(_to_numpy(values))
    jax.monitoring.unregister_event_duration_listener(listen)
    return History(states, metrics, lowered)


@pytest.fixture(scope="session")
def _trained(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "debug"
    train(config, directory)
    return directory


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """The directory of a finished run of the debug preset, a copy to tamper with."""
    return shutil.copytree(_trained, tmp_path / "trained")


@pytest.fixture(scope="session")
def saved_state(pure_loop: Loop) -> Callable[[Path, int], LoopState]:
    """``(directory, step) -> LoopState`` of a run of the debug preset."""
    like = abstract(jax.eval_shape(pure_loop.init, jax.random.key(0)))

    def restore(directory: Path, step: int) -> LoopState:
        checkpoints = open_checkpoints(directory / CHECKPOINTS, read_only=True)
        try:
            return checkpoints.restore(step, like)[0]
        finally:
            checkpoints.close()

    return restore
