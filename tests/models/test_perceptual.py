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
    return {
        name: RNG.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
        if name.startswith("features")
        else RNG.random(shape, np.float32)
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
    found, variables = {}, None
    for perceptual in ("lpips", "none"):
        name = str(file) if perceptual == "lpips" else ""
        loss = NowcastingLossConfig(perceptual=perceptual, lpips_file=name)  # type: ignore[arg-type]
        made = make_nowcasting_gpt(CONFIG, loss, data)
        variables = variables or jax.jit(made.init)(KEY)
        run = jax.jit(made.losses["tokenizer"])
        found[perceptual] = run(variables, {"rain": rain}, KEY, jnp.int32(0))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["lpips"], weights))
    value, (state, metrics) = found["lpips"]
    assert set(state) == {"vq"}  # the weights stay as they are
    without, (_, others) = found["none"]
    assert "perceptual_loss" not in others
    np.testing.assert_allclose(value - without, metrics["perceptual_loss"], rtol=1e-4)
    decoded = made.reconstruct(variables, rain) / CONFIG.scale
    # Of rates the decoder's are cut off at 0, which random ones often are below.
    distance = lpips(weights, 2 * decoded[..., None] - 1, 2 * rain[..., None] / 4 - 1, "vgg")
    assert 0.3 < metrics["perceptual_loss"] / distance.mean() < 3


def test_delta_iris(weights: dict[str, np.ndarray], file: Path) -> None:
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
    found, variables = {}, None
    for weight in (2.0, 0.0):
        name = str(file) if weight else ""
        tokenizer = dataclasses.replace(DELTA.tokenizer, lpips_weight=weight, lpips_file=name)
        model = make_delta_iris(dataclasses.replace(DELTA, tokenizer=tokenizer), spec)
        variables = variables or jax.jit(model.init)(KEY)
        assert model.parts is not None
        found[weight] = jax.jit(model.parts["tokenizer"])(variables, batch, KEY)
    value, (_, metrics) = found[2.0]
    without, (_, others) = found[0.0]
    assert "perceptual_loss" not in others
    np.testing.assert_allclose(value - without, 2 * metrics["perceptual_loss"], rtol=1e-3)
    assert metrics["perceptual_loss"] > 0
    assert set(variables) == {"params", "vq", "lpips"}


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
