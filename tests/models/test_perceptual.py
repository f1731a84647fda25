"""Tokenizers of rain and of frames that are trained with LPIPS: the file, the loss, the state."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iris_toys import DELTA
from nowcasting_toys import CONFIG

from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.models.nowcasting_config import NowcastingLossConfig
from worldmodels_jax.models.nowcasting_gpt import make_nowcasting_gpt
from worldmodels_jax.nn.lpips import lpips, lpips_weight_shapes
from worldmodels_jax.types import DataSpec, EnvSpec, Record

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SIDE = 16  # the least that VGG-16 leaves anything of


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    # Kernels of one value each, which the compilation cache need not compress for seconds; biases
    # make channels differ.
    return {
        name: np.full(shape, 2 / math.prod(shape[1:]), np.float32)
        if name.startswith("features") and name.endswith("weight")
        else RNG.uniform(0, 0.5, shape).astype(np.float32)
        for name, shape in lpips_weight_shapes("vgg").items()
    }


@pytest.fixture(scope="module")
def file(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lpips.npz"
    np.savez(path, **weights)
    return path


def test_a_nowcaster(weights: dict[str, np.ndarray], file: Path) -> None:
    data = DataSpec("rain", {"rain": (3, SIDE, SIDE)}, 10)
    rain = RNG.exponential(1.0, (2, 3, SIDE, SIDE)).astype(np.float32)
    loss = NowcastingLossConfig(perceptual="lpips", lpips_file=str(file))
    made = make_nowcasting_gpt(CONFIG, loss, data)
    variables = jax.jit(made.init)(KEY)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["lpips"], weights))
    run = jax.jit(made.losses["tokenizer"])
    value, (state, metrics) = run(variables, {"rain": rain}, KEY, jnp.int32(0))
    assert set(state) == {"vq"}  # the weights stay as they are
    terms = ("reconstruction_l1", "quantiser_loss", "perceptual_loss")
    np.testing.assert_allclose(value, sum(metrics[term] for term in terms), rtol=1e-5)
    decoded = made.reconstruct(variables, rain) / CONFIG.scale
    pair = (2 * x[..., None] - 1 for x in (decoded, rain / CONFIG.scale))
    distance = jax.jit(lpips, static_argnums=3)(weights, *pair, "vgg").mean()
    # Rates are cut off at 0, which what is decoded by random parameters often is below.
    assert 0.5 < metrics["perceptual_loss"] / distance < 2


def test_delta_iris(file: Path) -> None:
    spec = EnvSpec("frames", (SIDE, SIDE, 3), "uint8", 3, True, 100)
    flags = np.zeros((2, 3), bool)
    batch = Record(
        observation=RNG.integers(0, 256, (2, 3, SIDE, SIDE, 3), np.uint8),
        action=np.zeros((2, 3), np.int32),
        reward=np.zeros((2, 3), np.float32),
        terminated=flags,
        truncated=flags,
        is_first=flags,
    )
    tokenizer = dataclasses.replace(DELTA.tokenizer, lpips_weight=2.0, lpips_file=str(file))
    model = make_delta_iris(dataclasses.replace(DELTA, tokenizer=tokenizer), spec)
    variables = jax.jit(model.init)(KEY)
    assert set(variables) == {"params", "vq", "lpips"}
    assert model.parts is not None
    value, (_, metrics) = jax.jit(model.parts["tokenizer"])(variables, batch, KEY)
    weights = {
        "reconstruction_l1": tokenizer.l1_weight,
        "reconstruction_l2": tokenizer.l2_weight,
        "max_pixel_error": tokenizer.max_pixel_weight,
        "quantiser_loss": 1.0,
        "perceptual_loss": 2.0,
    }
    expected = sum(weight * metrics[name] for name, weight in weights.items())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics["perceptual_loss"] > 0


def test_a_weight_and_a_file_go_together(tmp_path: Path) -> None:
    data = DataSpec("rain", {"rain": (3, SIDE, SIDE)}, 10)
    for loss, message in (
        (NowcastingLossConfig(perceptual="lpips"), r"needs trained weights: set loss\.lpips_file"),
        (NowcastingLossConfig(lpips_file="x"), r"loss\.lpips_file=x has no effect with"),
    ):
        with pytest.raises(ValueError, match=message):
            make_nowcasting_gpt(CONFIG, loss, data)
    spec = EnvSpec("frames", (SIDE, SIDE, 3), "uint8", 3, True, 100)
    path = str(tmp_path / "none.npz")
    for fields, error, message in (
        ({"lpips_weight": 1.0}, ValueError, "tokenizer.lpips_weight=1.0 and model.tokenizer.lpips"),
        ({"lpips_file": path}, ValueError, "go together: give both, or neither"),
        ({"lpips_weight": 1.0, "lpips_file": path}, FileNotFoundError, "weights of LPIPS (vgg)"),
    ):
        tokenizer = dataclasses.replace(DELTA.tokenizer, **fields)
        with pytest.raises(error, match=re.escape(message)):
            make_delta_iris(dataclasses.replace(DELTA, tokenizer=tokenizer), spec)
