"""Inception-v3 against a slow one in NumPy, and its published size."""

import math

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from worldmodels_jax.nn.inception import inception_features, inception_weight_shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    out = {}
    for name, shape in inception_weight_shapes().items():
        if name.endswith("conv.weight"):
            value = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        elif name.endswith(("bn.weight", "running_var")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.2, shape)
        out[name] = value.astype(np.float32)
    return out


class Slow:
    """One image (H, W, C), the layers written out as the paper's figures 5 to 8 have them."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights

    def unit(self, x: np.ndarray, name: str, stride: int = 1, pad: tuple = (0, 0)) -> np.ndarray:
        w = self.weights
        kernel = w[f"{name}.conv.weight"].astype(np.float64)
        padded = np.pad(x, ((pad[0], pad[0]), (pad[1], pad[1]), (0, 0)))
        windows = sliding_window_view(padded, kernel.shape[2:], (0, 1))[::stride, ::stride]
        y = np.tensordot(windows, kernel, ([2, 3, 4], [1, 2, 3]))
        scale, offset = w[f"{name}.bn.weight"], w[f"{name}.bn.bias"]
        mean, variance = w[f"{name}.bn.running_mean"], w[f"{name}.bn.running_var"]
        return np.maximum(
            (y - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) * scale + offset, 0
        )

    def halve(self, x: np.ndarray) -> np.ndarray:
        return sliding_window_view(x, (3, 3), (0, 1))[::2, ::2].max((-1, -2))

    def around(self, x: np.ndarray, how: object) -> np.ndarray:
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
        return how(sliding_window_view(padded, (3, 3), (0, 1)), axis=(-1, -2))

    def a(self, x: np.ndarray, b: str) -> np.ndarray:
        five = self.unit(self.unit(x, f"{b}.branch5x5_1"), f"{b}.branch5x5_2", 1, (2, 2))
        three = self.unit(self.unit(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", 1, (1, 1))
        three = self.unit(three, f"{b}.branch3x3dbl_3", 1, (1, 1))
        pooled = self.unit(self.around(x, np.nanmean), f"{b}.branch_pool")
        return np.concatenate([self.unit(x, f"{b}.branch1x1"), five, three, pooled], -1)

    def c(self, x: np.ndarray, b: str) -> np.ndarray:
        wide, tall = (0, 3), (3, 0)
        y = self.unit(x, f"{b}.branch7x7_1")
        y = self.unit(self.unit(y, f"{b}.branch7x7_2", 1, wide), f"{b}.branch7x7_3", 1, tall)
        z = self.unit(x, f"{b}.branch7x7dbl_1")
        for i, pad in enumerate((tall, wide, tall, wide), start=2):
            z = self.unit(z, f"{b}.branch7x7dbl_{i}", 1, pad)
        pooled = self.unit(self.around(x, np.nanmean), f"{b}.branch_pool")
        return np.concatenate([self.unit(x, f"{b}.branch1x1"), y, z, pooled], -1)

    def e(self, x: np.ndarray, b: str, how: object) -> np.ndarray:
        y = self.unit(x, f"{b}.branch3x3_1")
        z = self.unit(self.unit(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", 1, (1, 1))
        maps = [self.unit(x, f"{b}.branch1x1")]
        for name, last in (("branch3x3_2", y), ("branch3x3dbl_3", z)):
            maps += [
                self.unit(last, f"{b}.{name}a", 1, (0, 1)),
                self.unit(last, f"{b}.{name}b", 1, (1, 0)),
            ]
        return np.concatenate([*maps, self.unit(self.around(x, how), f"{b}.branch_pool")], -1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = self.unit(self.unit(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = self.halve(self.unit(x, "Conv2d_2b_3x3", 1, (1, 1)))
        x = self.halve(self.unit(self.unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"))
        for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, b)
        y = self.unit(self.unit(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", 1, (1, 1))
        y = self.unit(y, "Mixed_6a.branch3x3dbl_3", 2)
        x = np.concatenate([self.unit(x, "Mixed_6a.branch3x3", 2), y, self.halve(x)], -1)
        for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.c(x, b)
        y = self.unit(self.unit(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", 2)
        z = self.unit(self.unit(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", 1, (0, 3))
        z = self.unit(
            self.unit(z, "Mixed_7a.branch7x7x3_3", 1, (3, 0)), "Mixed_7a.branch7x7x3_4", 2
        )
        x = np.concatenate([y, z, self.halve(x)], -1)
        x = self.e(x, "Mixed_7b", np.nanmean)
        return self.e(x, "Mixed_7c", np.nanmax).mean((0, 1))


def test_the_published_size() -> None:
    shapes = inception_weight_shapes()
    assert len(shapes) == 94 * 5
    trained = [s for name, s in shapes.items() if "running" not in name]
    # torchvision's 27,161,264 less the auxiliary classes (3,326,696) and the classes (2,049,000).
    assert sum(map(math.prod, trained)) == 21_785_568
    assert shapes["Mixed_6e.branch7x7dbl_2.conv.weight"] == (192, 192, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


def test_against_a_slow_one(weights: dict) -> None:
    # The last maps of an image 107 pixels wide and 139 high are 2x3: all paddings are in use.
    x = np.random.default_rng(1).uniform(-1, 1, (1, 139, 107, 3)).astype(np.float32)
    features = jax.jit(inception_features)(weights, x)
    assert features.shape == (1, 2048)
    expected = Slow(weights)(x[0])[None]
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_small_images_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"images of 64x64 are too small .* resize them to 299x299"
    ):
        inception_features({}, np.zeros((1, 64, 64, 3), np.float32))
