"""I3D: Inception-v1 inflated to video, for inference with trained weights.

Carreira & Zisserman (2017), "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset",
figure 3. Weights are a flat dict of arrays, named as in the authors' checkpoint of the RGB network
without its prefix ``RGB/inception_i3d/``; batch normalisation has an offset and no scale there.
"""

from collections.abc import Iterator, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

CLASSES = 400  # of Kinetics-400
_EPSILON = 1e-3
_DIMENSIONS = ("NDHWC", "DHWIO", "NDHWC")

# Channels of an Inception block: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; pooling then 1x1.
_Block = tuple[int, tuple[int, int], tuple[int, int], int]
_STAGES: tuple[dict[str, _Block], ...] = (
    {
        "Mixed_3b": (64, (96, 128), (16, 32), 32),
        "Mixed_3c": (128, (128, 192), (32, 96), 64),
    },
    {
        "Mixed_4b": (192, (96, 208), (16, 48), 64),
        "Mixed_4c": (160, (112, 224), (24, 64), 64),
        "Mixed_4d": (128, (128, 256), (24, 64), 64),
        "Mixed_4e": (112, (144, 288), (32, 64), 64),
        "Mixed_4f": (256, (160, 320), (32, 128), 128),
    },
    {
        "Mixed_5b": (256, (160, 320), (32, 128), 128),
        "Mixed_5c": (384, (192, 384), (48, 128), 128),
    },
)
_STAGE_POOLS = ((1, 3, 3), (3, 3, 3), (2, 2, 2))  # before each stage
_STAGE_STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
_LOGITS = "Logits/Conv3d_0c_1x1/conv_3d"


def i3d_weight_shapes(classes: int = CLASSES) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of the network.

    Kernels are (time, height, width, channels in, channels out). 12,279,984 parameters are kernels
    and offsets, 410,000 more the logits of 400 classes; moving means and variances come on top.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, kernel in _units():
        shapes[f"{name}/conv_3d/w"] = kernel
        for statistic in ("beta", "moving_mean", "moving_variance"):
            shapes[f"{name}/batch_norm/{statistic}"] = kernel[-1:]
    features = _width(_STAGES[-1]["Mixed_5c"])
    return {**shapes, f"{_LOGITS}/w": (1, 1, 1, features, classes), f"{_LOGITS}/b": (classes,)}


def i3d_logits(weights: Mapping[str, ArrayLike], video: jax.Array) -> jax.Array:
    """Class logits of videos, averaged over time.

    Args:
      weights: arrays of ``i3d_weight_shapes``.
      video: ``(B, T, H, W, 3)`` float32 in [-1, 1]; the network was trained at 224x224, and with
        64 frames. Any size is accepted: the last pooling takes two steps in time, if there are two,
        and all of the image, which at 224x224 is its published 7x7.

    Returns:
      ``(B, classes)`` float32.
    """
    chex.assert_shape(video, (None, None, None, None, 3))
    x = _unit(weights, "Conv3d_1a_7x7", video, stride=2)
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    x = _unit(weights, "Conv3d_2b_1x1", x)
    x = _unit(weights, "Conv3d_2c_3x3", x)
    for blocks, window, strides in zip(_STAGES, _STAGE_POOLS, _STAGE_STRIDES, strict=True):
        x = _max_pool(x, window, strides)
        for name in blocks:
            x = _inception(weights, name, x)
    return _head(weights, x)


def _width(block: _Block) -> int:
    first, (_, second), (_, third), fourth = block
    return first + second + third + fourth


def _second_unit(block: str, branch: int) -> str:
    # The authors' code names one unit by mistake, and so does every checkpoint.
    return "Conv3d_0a_3x3" if (block, branch) == ("Mixed_5b", 2) else "Conv3d_0b_3x3"


def _units() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and kernel shape of every convolution with batch normalisation."""
    yield "Conv3d_1a_7x7", (7, 7, 7, 3, 64)
    yield "Conv3d_2b_1x1", (1, 1, 1, 64, 64)
    yield "Conv3d_2c_3x3", (3, 3, 3, 64, 192)
    channels = 192
    for blocks in _STAGES:
        for name, block in blocks.items():
            first, *towers, last = block
            yield f"{name}/Branch_0/Conv3d_0a_1x1", (1, 1, 1, channels, first)
            for branch, (narrow, wide) in enumerate(towers, start=1):
                yield f"{name}/Branch_{branch}/Conv3d_0a_1x1", (1, 1, 1, channels, narrow)
                unit = _second_unit(name, branch)
                yield f"{name}/Branch_{branch}/{unit}", (3, 3, 3, narrow, wide)
            yield f"{name}/Branch_3/Conv3d_0b_1x1", (1, 1, 1, channels, last)
            channels = _width(block)


def _unit(weights: Mapping[str, ArrayLike], name: str, x: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution, batch normalisation with the moving statistics, ReLU."""
    x = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(weights[f"{name}/conv_3d/w"]),
        (stride, stride, stride),
        "SAME",
        dimension_numbers=_DIMENSIONS,
        precision=jax.lax.Precision.HIGHEST,  # GPUs would round to 10 bits
    )
    mean, variance, beta = (
        jnp.asarray(weights[f"{name}/batch_norm/{statistic}"])
        for statistic in ("moving_mean", "moving_variance", "beta")
    )
    return jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + _EPSILON) + beta)


def _inception(weights: Mapping[str, ArrayLike], name: str, x: jax.Array) -> jax.Array:
    branches = [_unit(weights, f"{name}/Branch_0/Conv3d_0a_1x1", x)]
    for branch in (1, 2):
        narrow = _unit(weights, f"{name}/Branch_{branch}/Conv3d_0a_1x1", x)
        unit = _second_unit(name, branch)
        branches.append(_unit(weights, f"{name}/Branch_{branch}/{unit}", narrow))
    pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
    branches.append(_unit(weights, f"{name}/Branch_3/Conv3d_0b_1x1", pooled))
    return jnp.concatenate(branches, axis=-1)


def _head(weights: Mapping[str, ArrayLike], x: jax.Array) -> jax.Array:
    """Average over windows of two steps and the whole image, logits, their average over time."""
    x = x.mean((2, 3))
    if x.shape[1] > 1:
        x = (x[:, :-1] + x[:, 1:]) / 2
    kernel, bias = (jnp.asarray(weights[f"{_LOGITS}/{name}"]) for name in "wb")
    return (x @ kernel[0, 0, 0] + bias).mean(1)


def _max_pool(
    x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int]
) -> jax.Array:
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "SAME")
