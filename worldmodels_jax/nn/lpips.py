"""LPIPS, the learned perceptual distance of images, for inference with trained weights.

Zhang et al. (2018), "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
version 0.1: features of a classifier of ImageNet, VGG-16 or AlexNet, after five of its layers,

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) - f_lc(y))^2

with f_l normalised over channels. The weights do not come with this library. They are read from an
``.npz`` file with the arrays of ``lpips_weight_shapes``, which PyTorch makes of torchvision's
``vgg16-397923af.pth`` (or ``alexnet-owt-7be5be79.pth``) and of ``weights/v0.1/vgg.pth`` (or
``alex.pth``) of the package lpips by

    states = [torch.load(file, map_location="cpu") for file in (classifier, distance)]
    names = lpips_weight_shapes("vgg")
    np.savez("lpips.npz", **{k: v.numpy() for s in states for k, v in s.items() if k in names})
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from worldmodels_jax.types import PyTree
from worldmodels_jax.weights import read_weights

Network = Literal["vgg", "alex"]

COLLECTION = "lpips"  # where a model that is trained with the distance keeps its weights

_SHIFT = (-0.030, -0.088, -0.188)  # of the three colours, in [-1, 1]
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class _Layer(NamedTuple):
    """A convolution and its ReLU, perhaps after a max-pooling and before a tap."""

    number: int  # in torchvision's list of layers
    channels: int
    size: int
    stride: int
    pad: int
    pool: int  # window of the pooling before it, 0 for none; its stride is 2
    tap: bool


def _vgg() -> list[_Layer]:
    layers: list[_Layer] = []
    number = 0
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for i in range(count):
            pool = 2 if i == 0 and layers else 0
            layers.append(_Layer(number, channels, 3, 1, 1, pool, i == count - 1))
            number += 2
        number += 1  # the pooling
    return layers


_LAYERS: dict[str, list[_Layer]] = {
    "vgg": _vgg(),
    "alex": [
        _Layer(0, 64, 11, 4, 2, 0, True),
        _Layer(3, 192, 5, 1, 2, 3, True),
        _Layer(6, 384, 3, 1, 1, 3, True),
        _Layer(8, 256, 3, 1, 1, 0, True),
        _Layer(10, 256, 3, 1, 1, 0, True),
    ],
}


def lpips_weight_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array, as PyTorch has them.

    Kernels are (channels out, channels in, height, width). VGG-16 has 14,714,688 parameters and
    1,472 weights of channels, AlexNet 2,469,696 and 1,152.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    before, taps = 3, 0
    for layer in _LAYERS[network]:
        name = f"features.{layer.number}"
        shapes[f"{name}.weight"] = (layer.channels, before, layer.size, layer.size)
        shapes[f"{name}.bias"] = (layer.channels,)
        before = layer.channels
        if layer.tap:
            shapes[f"lin{taps}.model.1.weight"] = (1, layer.channels, 1, 1)
            taps += 1
    return shapes


def load_lpips(path: str | Path, network: Network) -> dict[str, np.ndarray]:
    """Read the weights of LPIPS from an ``.npz`` file.

    Args:
      path: of the file; see above for what it holds.
      network: whose features are compared.

    Returns:
      The arrays by name, float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no ``.npz`` file, or arrays are missing or of another shape.
    """
    return read_weights(
        path,
        lpips_weight_shapes(network),
        what=f"LPIPS ({network})",
        how="make it of PyTorch's files as worldmodels_jax/nn/lpips.py says",
    )


def as_collection(weights: Mapping[str, np.ndarray] | None) -> PyTree:
    """The part of a model's variables that holds the weights, which nothing trains.

    What a compiled function closes over is copied into its code; so they are variables.

    Args:
      weights: of ``load_lpips``, or None of a model that is not trained with the distance.
    """
    return {} if weights is None else {COLLECTION: jax.tree.map(jnp.asarray, dict(weights))}


def lpips(
    weights: Mapping[str, ArrayLike], x: jax.Array, y: jax.Array, network: Network
) -> jax.Array:
    """The distance of images.

    Args:
      weights: of ``load_lpips``.
      x: ``(..., H, W, C)`` in [-1, 1], of three colours or of one, which is taken for all three.
      y: like x.
      network: whose weights these are.

    Returns:
      ``(...)`` float32, at least 0.

    Raises:
      ValueError: for another number of colours, or images so small that nothing of them is left
        for the last layer.
    """
    chex.assert_equal_shape([x, y])
    shape = x.shape[-3:]
    if shape[-1] not in (1, 3):
        raise ValueError(
            f"LPIPS compares images of 1 or 3 colours, not of {shape[-1]} channels: take another "
            "distance."
        )
    features = _features(weights, jnp.concatenate([_flat(x), _flat(y)]), network)
    total = jnp.zeros(())
    for i, feature in enumerate(features):
        if 0 in feature.shape:
            raise ValueError(
                f"images of {shape[0]}x{shape[1]} are too small for LPIPS ({network}): nothing is "
                f"left of them after its layers; resize them, or take another distance."
            )
        a, b = jnp.split(_normalised(feature), 2)
        weight = jnp.asarray(weights[f"lin{i}.model.1.weight"]).reshape(-1)
        total += jnp.mean(((a - b) ** 2) @ weight, axis=(1, 2))
    return total.reshape(x.shape[:-3])


def _flat(x: jax.Array) -> jax.Array:
    """(B, H, W, 3) on the scale of the classifiers."""
    x = x.astype(jnp.float32).reshape(-1, *x.shape[-3:])
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    return (x - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)


def _features(weights: Mapping[str, ArrayLike], x: jax.Array, network: Network) -> list[jax.Array]:
    taps = []
    for layer in _LAYERS[network]:
        if layer.pool:
            window, strides = (1, layer.pool, layer.pool, 1), (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")
        name = f"features.{layer.number}"
        x = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(weights[f"{name}.weight"]),
            (layer.stride, layer.stride),
            [(layer.pad, layer.pad)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        x = jax.nn.relu(x + jnp.asarray(weights[f"{name}.bias"]))
        if layer.tap:
            taps.append(x)
    return taps


def _normalised(x: jax.Array) -> jax.Array:
    """Channels of unit length; the gradient is 0, not NaN, where all of them are 0."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where(square > 0, x / (length + _EPSILON), 0.0)
