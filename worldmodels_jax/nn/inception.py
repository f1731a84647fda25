"""Inception-v3, for inference with trained weights: what the Fréchet Inception distance looks with.

Szegedy et al. (2016), "Rethinking the Inception Architecture for Computer Vision". The network of
that distance (Heusel et al., 2017) is the one of December 2015, which departs from later ones in
two places: averages leave the padding out, and the last block takes a maximum where others average.
The weights do not come with this library. They are read from an ``.npz`` file with the arrays of
``inception_weight_shapes``, which PyTorch makes of ``pt_inception-2015-12-05-6726825d.pth``
(github.com/mseitzer/pytorch-fid) by

    state = torch.load(file, map_location="cpu")
    names = inception_weight_shapes()
    np.savez("inception.npz", **{k: v.numpy() for k, v in state.items() if k in names})
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

FEATURES = 2_048
RESOLUTION = 299
SMALLEST = 75  # pixels a side, of which one is left before the average

_EPSILON = 1e-3
_DIMENSIONS = ("NHWC", "OIHW", "NHWC")

T = TypeVar("T")  # a map of features, or the number of its channels


class _Unit(NamedTuple):
    """A convolution with batch normalisation and ReLU."""

    name: str
    features: int
    kernel: tuple[int, int]
    stride: int = 1
    same: bool = True  # padded to keep the size, or not at all


_Branch = tuple[_Unit | str | tuple[_Unit, ...], ...]  # a str is a pooling, a tuple a fork


def _unit(name: str, features: int, height: int, width: int | None = None) -> _Unit:
    return _Unit(name, features, (height, width or height))


def _halving(name: str, features: int) -> _Unit:
    return _Unit(name, features, (3, 3), stride=2, same=False)


def _double(last: _Unit) -> _Branch:
    return _unit("branch3x3dbl_1", 64, 1), _unit("branch3x3dbl_2", 96, 3), last


def _a(pooled: int) -> list[_Branch]:
    return [
        (_unit("branch1x1", 64, 1),),
        (_unit("branch5x5_1", 48, 1), _unit("branch5x5_2", 64, 5)),
        _double(_unit("branch3x3dbl_3", 96, 3)),
        ("average", _unit("branch_pool", pooled, 1)),
    ]


def _c(narrow: int) -> list[_Branch]:
    return [
        (_unit("branch1x1", 192, 1),),
        (
            _unit("branch7x7_1", narrow, 1),
            _unit("branch7x7_2", narrow, 1, 7),
            _unit("branch7x7_3", 192, 7, 1),
        ),
        (
            _unit("branch7x7dbl_1", narrow, 1),
            _unit("branch7x7dbl_2", narrow, 7, 1),
            _unit("branch7x7dbl_3", narrow, 1, 7),
            _unit("branch7x7dbl_4", narrow, 7, 1),
            _unit("branch7x7dbl_5", 192, 1, 7),
        ),
        ("average", _unit("branch_pool", 192, 1)),
    ]


def _e(pooling: str) -> list[_Branch]:
    return [
        (_unit("branch1x1", 320, 1),),
        (
            _unit("branch3x3_1", 384, 1),
            (_unit("branch3x3_2a", 384, 1, 3), _unit("branch3x3_2b", 384, 3, 1)),
        ),
        (
            _unit("branch3x3dbl_1", 448, 1),
            _unit("branch3x3dbl_2", 384, 3),
            (_unit("branch3x3dbl_3a", 384, 1, 3), _unit("branch3x3dbl_3b", 384, 3, 1)),
        ),
        (pooling, _unit("branch_pool", 192, 1)),
    ]


_STEM: _Branch = (
    _halving("Conv2d_1a_3x3", 32),
    _Unit("Conv2d_2a_3x3", 32, (3, 3), same=False),
    _unit("Conv2d_2b_3x3", 64, 3),
    "halve",
    _unit("Conv2d_3b_1x1", 80, 1),
    _Unit("Conv2d_4a_3x3", 192, (3, 3), same=False),
    "halve",
)
_BLOCKS: dict[str, list[_Branch]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": [
        (_halving("branch3x3", 384),),
        _double(_halving("branch3x3dbl_3", 96)),
        ("halve",),
    ],
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": [
        (_unit("branch3x3_1", 192, 1), _halving("branch3x3_2", 320)),
        (
            _unit("branch7x7x3_1", 192, 1),
            _unit("branch7x7x3_2", 192, 1, 7),
            _unit("branch7x7x3_3", 192, 7, 1),
            _halving("branch7x7x3_4", 192),
        ),
        ("halve",),
    ],
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("maximum"),
}


def inception_weight_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every array but those of the classes, as PyTorch has them.

    Kernels are (channels out, channels in, height, width). Kernels, scales and offsets are
    21,785,568 parameters; running means and variances come on top.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(channels: int, name: str, u: _Unit) -> int:
        shapes[f"{name}.conv.weight"] = (u.features, channels, *u.kernel)
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{statistic}"] = (u.features,)
        return u.features

    _walk(3, unit, lambda channels, kind: channels, sum)
    return shapes


def inception_features(weights: Mapping[str, ArrayLike], x: jax.Array) -> jax.Array:
    """The last features before the classes, averaged over the image.

    Args:
      weights: the arrays of ``inception_weight_shapes``.
      x: ``(B, H, W, 3)`` float32 in [-1, 1]; the network was trained at 299x299.

    Returns:
      ``(B, 2048)`` float32.

    Raises:
      ValueError: for images below 75x75, of which nothing is left.
    """
    chex.assert_shape(x, (None, None, None, 3))
    if min(x.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"images of {x.shape[1]}x{x.shape[2]} are too small for Inception-v3: resize them to "
            f"{RESOLUTION}x{RESOLUTION}, as it was trained, or at least to {SMALLEST}x{SMALLEST}."
        )

    def unit(x: jax.Array, name: str, u: _Unit) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(weights[f"{name}.conv.weight"]),
            (u.stride, u.stride),
            [(k // 2, k // 2) if u.same else (0, 0) for k in u.kernel],
            dimension_numbers=_DIMENSIONS,
            precision=jax.lax.Precision.HIGHEST,  # GPUs would round to 10 bits
        )
        scale, offset, mean, variance = (
            jnp.asarray(weights[f"{name}.bn.{statistic}"])
            for statistic in ("weight", "bias", "running_mean", "running_var")
        )
        return jax.nn.relu((x - mean) * (jax.lax.rsqrt(variance + _EPSILON) * scale) + offset)

    return _walk(x, unit, _pool, lambda maps: jnp.concatenate(list(maps), -1)).mean((1, 2))


def _walk(
    x: T,
    unit: Callable[[T, str, _Unit], T],
    pool: Callable[[T, str], T],
    join: Callable[[Iterator[T]], T],
) -> T:
    """From the input to the last map: layer by layer, of maps or of their numbers of channels."""

    def along(x: T, branch: _Branch, prefix: str) -> T:
        for step in branch:
            if isinstance(step, str):
                x = pool(x, step)
            elif isinstance(step, _Unit):
                x = unit(x, prefix + step.name, step)
            else:
                before = x
                x = join(unit(before, prefix + fork.name, fork) for fork in step)
        return x

    x = along(x, _STEM, "")
    for name, branches in _BLOCKS.items():
        before = x
        x = join(along(before, branch, f"{name}.") for branch in branches)
    return x


def _pool(x: jax.Array, kind: str) -> jax.Array:
    """Over 3x3: "halve" takes maxima at stride 2, "average" and "maximum" keep the size."""
    window = (1, 3, 3, 1)
    if kind != "average":
        stride, padding = ((1, 2, 2, 1), "VALID") if kind == "halve" else ((1, 1, 1, 1), "SAME")
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, stride, padding)

    def total(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
