"""How JAX runs under test, and the tiny world model that most tests share.

The environment is set before anything is imported: some packages run JAX while they are imported,
and its flags are read then. It also reaches the programs that tests start.
"""

# ruff: noqa: E402
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

NUM_DEVICES = 4  # CPU devices, for the tests of what is split over a mapped axis

_FLAGS = [f"--xla_force_host_platform_device_count={NUM_DEVICES}"]
if "slow" not in sys.argv:
    # These tests compile far more than they run: without optimisation they take half the time.
    # The learning runs (-m slow) are the opposite.
    _FLAGS += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if version("jaxlib").startswith("0.10."):
        # Its older emitters take two thirds of the time to compile; JAX 0.11 has but the newer.
        _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
        _FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldmodels_jax/jax"
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so; tests interrupt themselves and what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import numpy as np
import pytest

from worldmodels_jax.models.git_storm import make_git_storm
from worldmodels_jax.models.git_storm_config import GitStormConfig, MaskGITConfig
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import EnvSpec, PyTree, Record


@pytest.fixture(scope="session")
def spec() -> EnvSpec:
    """A 10x5 grid with one channel and three discrete actions."""
    return EnvSpec("grid", (10, 5, 1), "uint8", 3, True, 100)


@pytest.fixture(scope="session")
def model_config() -> GitStormConfig:
    """The smallest GIT-STORM that uses every part; N = V = 4, D = 16."""
    return GitStormConfig(
        num_tokens=4,
        num_classes=4,
        channels=(8, 8),
        width=16,
        layers=1,
        heads=2,
        hidden=16,
        max_length=16,
        num_bins=21,
        maskgit=MaskGITConfig(width=8, layers=1, heads=2, hidden=8, revise_rounds=2),
    )


@pytest.fixture(scope="session")
def world_model(model_config: GitStormConfig, spec: EnvSpec) -> WorldModel:
    return make_git_storm(model_config, spec)


@pytest.fixture(scope="session")
def model_variables(world_model: WorldModel) -> PyTree:
    return jax.jit(world_model.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def records(spec: EnvSpec) -> Record:
    """Random records (B=2, T=8); episodes end inside both rows, by termination and by truncation.

    Row 0 terminates at 3 and begins anew at 4; row 1 is truncated at 5 and begins anew at 6.
    """
    rng = np.random.default_rng(0)
    shape = (2, 8)
    flags = {name: np.zeros(shape, bool) for name in ("terminated", "truncated", "is_first")}
    flags["terminated"][0, 3] = flags["is_first"][0, 4] = True
    flags["truncated"][1, 5] = flags["is_first"][1, 6] = True
    batch = Record(
        observation=rng.integers(0, 256, (*shape, *spec.observation_shape), np.uint8),
        action=rng.integers(0, spec.num_actions, shape, np.int32),
        reward=np.where(flags["is_first"], 0.0, rng.normal(size=shape)).astype(np.float32),
        **flags,
    )
    return jax.tree.map(jax.numpy.asarray, batch)
