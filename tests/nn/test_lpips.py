"""LPIPS against a slow one in NumPy, the published sizes, and the file of its weights."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from worldmodels_jax.nn.lpips import Network, load_lpips, lpips, lpips_weight_shapes

RNG = np.random.default_rng(0)
SIDES = {"vgg": 19, "alex": 67}  # odd: the last row of a pooling is left out


def random_weights(network: Network) -> dict[str, np.ndarray]:
    out = {}
    for name, shape in lpips_weight_shapes(network).items():
        if name.startswith("lin"):
            out[name] = RNG.random(shape, np.float32)
        else:
            spread = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
            out[name] = RNG.normal(0, spread, shape).astype(np.float32)
    return out


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, np.ndarray]]:
    return {"vgg": random_weights("vgg"), "alex": random_weights("alex")}


def images(side: int, channels: int = 3) -> np.ndarray:
    return RNG.uniform(-1, 1, (2, side, side, channels)).astype(np.float32)


# Layers as the papers list them: (channels, stride, padding), "pool", "tap" after a ReLU.
VGG = "64 64t p 128 128t p 256 256 256t p 512 512 512t p 512 512 512t"
ALEX = "64t p 192t p 384t 256t 256t"


def slow_lpips(weights: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, network: str) -> list:
    """Image by image, with the layers counted as PyTorch counts them."""

    def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, pad: int) -> np.ndarray:
        windows = sliding_window_view(
            np.pad(x, ((pad, pad), (pad, pad), (0, 0))), kernel.shape[2:], axis=(0, 1)
        )[::stride, ::stride]
        return np.einsum("hwcij,ocij->hwo", windows, kernel)

    def features(x: np.ndarray) -> list[np.ndarray]:
        x = (x.astype(np.float64) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        found, index = [], 0
        for layer in (VGG if network == "vgg" else ALEX).split():
            if layer == "p":
                size = 2 if network == "vgg" else 3
                x = sliding_window_view(x, (size, size), axis=(0, 1))[::2, ::2].max((-1, -2))
                index += 1
                continue
            kernel = weights[f"features.{index}.weight"]
            stride = 4 if kernel.shape[-1] == 11 else 1
            pad = 2 if kernel.shape[-1] >= 5 else 1
            x = np.maximum(convolve(x, kernel, stride, pad) + weights[f"features.{index}.bias"], 0)
            assert x.shape[-1] == int(layer.rstrip("t"))
            index += 2
            if layer.endswith("t"):
                found.append(x)
        return found

    out = []
    for a, b in zip(x, y, strict=True):
        total = 0.0
        for i, (f, g) in enumerate(zip(features(a), features(b), strict=True)):
            f, g = (v / (np.sqrt((v**2).sum(-1, keepdims=True)) + 1e-10) for v in (f, g))
            total += (((f - g) ** 2) * weights[f"lin{i}.model.1.weight"][0, :, 0, 0]).sum(-1).mean()
        out.append(total)
    return out


@pytest.mark.parametrize(
    ("network", "classifier", "channels"), [("vgg", 14_714_688, 1_472), ("alex", 2_469_696, 1_152)]
)
def test_the_published_sizes(network: Network, classifier: int, channels: int) -> None:
    sizes = {name: math.prod(shape) for name, shape in lpips_weight_shapes(network).items()}
    assert sum(n for name, n in sizes.items() if name.startswith("features")) == classifier
    assert sum(n for name, n in sizes.items() if name.startswith("lin")) == channels


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_against_a_slow_one(network: Network, weights: dict) -> None:
    x, y = images(SIDES[network]), images(SIDES[network])
    distance = jax.jit(lpips, static_argnums=3)(weights[network], x, y, network)
    np.testing.assert_allclose(distance, slow_lpips(weights[network], x, y, network), rtol=1e-4)


def test_it_is_a_distance_with_a_gradient(weights: dict) -> None:
    x, y = jnp.asarray(images(16)), jnp.asarray(images(16))
    compiled = jax.jit(lpips, static_argnames="network")
    distance = functools.partial(compiled, weights["vgg"], network="vgg")
    np.testing.assert_array_equal(distance(x, x), [0.0, 0.0])
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-5)
    # Leading axes are kept.
    np.testing.assert_allclose(distance(x[None], y[None]), distance(x, y)[None], rtol=1e-5)
    # One colour stands for three.
    grey, other = x[..., :1], y[..., :1]
    thrice = distance(jnp.repeat(grey, 3, -1), jnp.repeat(other, 3, -1))
    np.testing.assert_allclose(distance(grey, other), thrice, rtol=1e-5)
    # Where nothing is active there is no direction, and no NaN.
    dead = {k: np.zeros_like(v) if "features" in k else v for k, v in weights["vgg"].items()}
    gradient = jax.jit(jax.grad(lambda w, x: lpips(w, x, y, "vgg").sum(), argnums=1))
    np.testing.assert_array_equal(gradient(dead, x), jnp.zeros_like(x))
    assert 0 < jnp.abs(gradient(weights["vgg"], x)).max() < jnp.inf


def test_small_images_are_refused(weights: dict) -> None:
    x = images(8)
    with pytest.raises(ValueError, match=r"images of 8x8 are too small for LPIPS \(vgg\)"):
        jax.eval_shape(lambda w, x: lpips(w, x, x, "vgg"), weights["vgg"], x)


def test_weights_are_read_as_they_were_written(weights: dict, tmp_path: Path) -> None:
    path = tmp_path / "lpips.npz"
    np.savez(path, **weights["alex"], other=np.zeros(3))
    loaded = load_lpips(path, "alex")
    assert list(loaded) == list(weights["alex"])
    assert all(np.array_equal(loaded[name], weights["alex"][name]) for name in loaded)
    with pytest.raises(ValueError, match=r"lacks 22 of the 31 arrays of LPIPS \(vgg\)"):
        load_lpips(path, "vgg")
