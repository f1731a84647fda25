"""Images drawn from known factors of variation: what a data set of factors is, and sprites.

M is the number of factors of a set. Factors are indices into the grid of their values; the last
factor varies fastest. Rendering is pure JAX: the same factors give the same image.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

_SUBPIXELS = 4  # samples along each side of a pixel
_RENDERED_AT_ONCE = 64


class FactorImages(NamedTuple):
    """Images with the factors that they show."""

    images: jax.Array  # (B, H, W, 3) uint8
    factors: jax.Array  # (B, M) int32


@dataclasses.dataclass(frozen=True)
class FactorSet:
    """A grid of factors and the image of each of its points.

    Attributes:
      name: of the set.
      factor_names: M names.
      factor_sizes: M numbers of values, each at least 2.
      render_one: ``(M,) int32 -> (H, W, 3) uint8``, pure.
    """

    name: str
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    render_one: Callable[[jax.Array], jax.Array]

    @property
    def grid_size(self) -> int:
        """The number of combinations of factors."""
        return math.prod(self.factor_sizes)

    def index_to_factors(self, index: jax.Array) -> jax.Array:
        """The combination at a place of the grid, in row-major order.

        Args:
          index: (...) int in ``[0, grid_size)``.

        Returns:
          (..., M) int32.
        """
        unravelled = jnp.unravel_index(index, self.factor_sizes)
        return jnp.stack(unravelled, axis=-1).astype(jnp.int32)

    def sample_factors(self, key: jax.Array, num: int) -> jax.Array:
        """Independent, uniform factors, with replacement.

        Args:
          key: PRNG key.
          num: B.

        Returns:
          (B, M) int32.
        """
        sizes = jnp.asarray(self.factor_sizes)
        return jax.random.randint(key, (num, len(self.factor_sizes)), 0, sizes, jnp.int32)

    def intervene(self, factors: jax.Array, factor: int, value: jax.Array | int) -> jax.Array:
        """Sets one factor and leaves the others.

        Args:
          factors: (..., M) int32.
          factor: which of the M.
          value: (...) or scalar int, in ``[0, factor_sizes[factor])``.

        Returns:
          (..., M) int32.

        Raises:
          ValueError: if there is no such factor, or a value known now is not one of its values.
        """
        if not 0 <= factor < len(self.factor_sizes):
            raise ValueError(
                f"{self.name} has no factor {factor}: give 0 to {len(self.factor_sizes) - 1}, for "
                f"{', '.join(self.factor_names)}."
            )
        size = self.factor_sizes[factor]
        # A traced value is not known yet; JAX would clip it silently.
        if not isinstance(value, jax.core.Tracer):
            known = np.asarray(value)
            if known.min() < 0 or known.max() >= size:
                raise ValueError(
                    f"{self.factor_names[factor]} of {self.name} cannot be {value}: give 0 to "
                    f"{size - 1}."
                )
        return factors.at[..., factor].set(value)

    def render(self, factors: jax.Array) -> jax.Array:
        """The images of some factors, a few at a time: many do not need much memory.

        Args:
          factors: (..., M) int32, within the grid.

        Returns:
          (..., H, W, 3) uint8.
        """
        chex.assert_axis_dimension(factors, -1, len(self.factor_sizes))
        leading = factors.shape[:-1]
        flat = factors.reshape(-1, factors.shape[-1])
        images = jax.lax.map(self.render_one, flat, batch_size=_RENDERED_AT_ONCE)
        return images.reshape(*leading, *images.shape[1:])


def make_images(factor_set: FactorSet, key: jax.Array, num: int | None = 20_000) -> FactorImages:
    """A fixed data set of distinct combinations.

    Args:
      factor_set: what is drawn from.
      key: PRNG key; not used for the full grid.
      num: B, drawn uniformly without replacement; None takes the full grid in its order.

    Returns:
      ``(B, ...)`` images and factors.

    Raises:
      ValueError: if the grid has fewer combinations.
    """
    size = factor_set.grid_size
    if num is None:
        index = jnp.arange(size)
    elif num > size:
        raise ValueError(
            f"{factor_set.name} has {size} combinations, {num} distinct ones cannot be drawn: give "
            "fewer, or None for all."
        )
    else:
        index = jax.random.choice(key, size, (num,), replace=False)
    factors = factor_set.index_to_factors(index)
    return FactorImages(jax.jit(factor_set.render)(factors), factors)


def hue_to_rgb(hue: jax.Array) -> jax.Array:
    """The colour of a hue at full saturation and value.

    Args:
      hue: (...) in [0, 1).

    Returns:
      (..., 3) float32 in [0, 1].
    """
    k = (jnp.array([5.0, 3.0, 1.0]) + 6.0 * jnp.asarray(hue, jnp.float32)[..., None]) % 6.0
    return 1.0 - jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)


def to_uint8(image: jax.Array) -> jax.Array:
    """An image in [0, 1] as uint8, rounded to the nearest.

    Args:
      image: (...) float.

    Returns:
      (...) uint8.
    """
    return jnp.round(255.0 * jnp.clip(image, 0.0, 1.0)).astype(jnp.uint8)


def sprites(*, rgb: bool = False, binary: bool = False) -> FactorSet:
    """The grid of dSprites: shape 3, scale 6, orientation 40, x 32, y 32; 64x64, black background.

    Squares, ellipses and hearts, white or, with a factor ``hue`` of 10 values in front, coloured.
    They turn clockwise. As in dSprites the first and the last orientation are the same angle.

    Args:
      rgb: whether there is a factor hue.
      binary: whether pixels covered by half or more are full and others empty, as in dSprites;
        otherwise borders are smooth.

    Returns:
      737,280 combinations, or ten times as many.
    """
    scales = np.linspace(0.5, 1.0, 6, dtype=np.float32)
    angles = np.linspace(0.0, 2 * np.pi, 40)
    angles[-1] = 0.0  # the sine of a rounded 2 pi is not 0, and equal factors must look equal
    places = np.linspace(16.0, 48.0, 32, dtype=np.float32)
    cosines, sines = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))

    def render_one(factors: jax.Array) -> jax.Array:
        shape, scale, orientation, x, y = factors[-5:]
        centre = jnp.stack([jnp.asarray(places)[x], jnp.asarray(places)[y]])
        p = (_sample_points(64) - centre) / (10.0 * jnp.asarray(scales)[scale])
        cosine, sine = cosines[orientation], sines[orientation]
        u = cosine * p[..., 0] + sine * p[..., 1]
        v = sine * p[..., 0] - cosine * p[..., 1]  # up, where rows go down
        s, t = 1.2 * u, 1.2 * v
        inside = jnp.stack(
            [
                jnp.maximum(jnp.abs(u), jnp.abs(v)) <= 1.0,
                u**2 + (v / 0.6) ** 2 <= 1.0,
                (s**2 + t**2 - 1.0) ** 3 <= s**2 * t**3,
            ]
        )[shape]
        covered = _coverage(inside)
        if binary:
            covered = (covered >= 0.5).astype(jnp.float32)
        colour = hue_to_rgb(factors[0] / 10) if rgb else jnp.ones(3)
        return to_uint8(covered[..., None] * colour)

    hue_name, hue_size = (("hue",), (10,)) if rgb else ((), ())
    return FactorSet(
        "sprites",
        (*hue_name, "shape", "scale", "orientation", "x", "y"),
        (*hue_size, 3, 6, 40, 32, 32),
        render_one,
    )


def sprites16() -> FactorSet:
    """Small sprites for quick runs: shape 3, scale 5, x 10, y 10, hue 8; 16x16, black background.

    Squares, discs and triangles with smooth borders.

    Returns:
      12,000 combinations.
    """

    def render_one(factors: jax.Array) -> jax.Array:
        shape, scale, x, y, hue = factors
        centre = 0.25 + 0.5 * jnp.stack([x, y]) / 9
        p = (_sample_points(16) / 16 - centre) / (0.12 + 0.12 * scale / 4)
        u, v = p[..., 0], p[..., 1]
        inside = jnp.stack(
            [
                jnp.maximum(jnp.abs(u), jnp.abs(v)) < 0.85,
                u**2 + v**2 < 1.0,
                (v > -1.0) & (v < 0.75) & (jnp.abs(u) < 0.65 * (v + 1.0)),
            ]
        )[shape]
        return to_uint8(_coverage(inside)[..., None] * hue_to_rgb(hue / 8))

    names = ("shape", "scale", "x", "y", "hue")
    return FactorSet("sprites16", names, (3, 5, 10, 10, 8), render_one)


def _sample_points(size: int) -> jax.Array:
    """(4 size, 4 size, 2) coordinates (x to the right, y down) in pixels."""
    line = (jnp.arange(size * _SUBPIXELS) + 0.5) / _SUBPIXELS
    return jnp.stack(jnp.meshgrid(line, line), axis=-1)


def _coverage(inside: jax.Array) -> jax.Array:
    """(4 H, 4 W) bool to the covered share of each pixel, (H, W)."""
    height, width = (side // _SUBPIXELS for side in inside.shape)
    blocks = inside.reshape(height, _SUBPIXELS, width, _SUBPIXELS)
    return jnp.mean(blocks, axis=(1, 3), dtype=jnp.float32)
