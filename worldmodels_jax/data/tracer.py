"""Pictures of solids by sphere tracing: a camera, rays, and distances to simple bodies.

World coordinates: x to the right, y away from a camera at yaw 0, z up. A signed distance is a
function of points (..., 3) that is negative inside a body and outside at most the distance to it:
a ray may go on by so much without missing anything.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from worldmodels_jax.data.factors import to_uint8

Scalar = jax.Array | np.floating | float  # ()
Vector = jax.Array | np.ndarray | tuple[float, float, float]  # (3,)
Distance = Callable[[jax.Array], jax.Array]  # points (..., 3) -> (...)

SIZE = 64  # pixels of a picture's side
LIGHT = np.array([-0.4, -0.6, 0.7]) / np.linalg.norm([-0.4, -0.6, 0.7])
_STEPS = 40
_HIT = 5e-3  # distance from the surface at which a ray has met it
_NORMAL_STEP = 1e-3
_FIELD = np.deg2rad(45.0)  # of view, vertical


class Angle(NamedTuple):
    """An angle by what pictures need of it."""

    cosine: Scalar
    sine: Scalar


class Angles(NamedTuple):
    """A table of angles."""

    cosines: np.ndarray  # (n,) float32
    sines: np.ndarray  # (n,) float32

    def at(self, index: jax.Array) -> Angle:
        """The angle of an index ()."""
        return Angle(jnp.asarray(self.cosines)[index], jnp.asarray(self.sines)[index])


def angles(radians: ArrayLike) -> Angles:
    """A table (n,) of angles."""
    exact = np.asarray(radians, np.float64)
    return Angles(np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32))


class Hits(NamedTuple):
    """Where rays end."""

    point: jax.Array  # (64, 64, 3)
    hit: jax.Array  # (64, 64) bool, on the body
    normal: jax.Array  # (64, 64, 3), of the body; meaningful where it is hit


def camera(
    target: tuple[float, float, float], distance: float, yaw: Angle, pitch: Angle
) -> tuple[jax.Array, jax.Array]:
    """Looks at a point from around it.

    Args:
      target: the point.
      distance: from it.
      yaw: around the z axis; at 0 the camera looks along y.
      pitch: above the horizon, below 90 degrees.

    Returns:
      Where the camera is (3,), and the unit rays (64, 64, 3) through the centres of pixels.
    """
    backward = jnp.stack(
        [
            yaw.sine * pitch.cosine,
            -yaw.cosine * pitch.cosine,
            jnp.full_like(yaw.sine, pitch.sine),
        ]
    )
    right = jnp.stack([yaw.cosine, yaw.sine, jnp.zeros_like(yaw.sine)])
    up = jnp.cross(backward, right)
    line = (2 * (np.arange(SIZE) + 0.5) / SIZE - 1) * np.tan(_FIELD / 2)
    across, down = (jnp.asarray(a, jnp.float32)[..., None] for a in np.meshgrid(line, line))
    rays = across * right - down * up - backward
    rays /= jnp.linalg.norm(rays, axis=-1, keepdims=True)
    return jnp.asarray(target) + distance * backward, rays


def trace(distance: Distance, origin: jax.Array, rays: jax.Array, farthest: ArrayLike) -> Hits:
    """Follows rays until they meet a body.

    Args:
      distance: to the body.
      origin: (3,) of all rays.
      rays: (64, 64, 3) unit vectors.
      farthest: (64, 64) or () length of each ray, e.g. to what is behind the body.
    """
    depth = jax.lax.fori_loop(
        0,
        _STEPS,
        lambda _, t: jnp.minimum(t + distance(origin + t[..., None] * rays), farthest),
        jnp.zeros(rays.shape[:-1]),
    )
    point = origin + depth[..., None] * rays
    hit = (jnp.abs(distance(point)) < _HIT) & (depth < farthest)
    return Hits(point, hit, _normal(distance, point))


def _normal(distance: Distance, point: jax.Array) -> jax.Array:
    steps = _NORMAL_STEP * jnp.eye(3)
    slope = jnp.stack([distance(point + s) - distance(point - s) for s in steps], axis=-1)
    return slope / jnp.maximum(jnp.linalg.norm(slope, axis=-1, keepdims=True), 1e-12)


def lambert(normal: jax.Array, ambient: float) -> jax.Array:
    """Brightness (...) of surfaces with normals (..., 3): ``a + (1 - a) max(0, n . l)``."""
    return ambient + (1 - ambient) * jnp.maximum(0.0, normal @ jnp.asarray(LIGHT, jnp.float32))


def picture(
    bodies: Distance,
    colours: jax.Array,
    background: Vector,
    origin: jax.Array,
    rays: jax.Array,
    farthest: float,
) -> jax.Array:
    """Bodies of one colour each before an even background.

    Args:
      bodies: points (..., 3) -> distances (P, ...) to P bodies.
      colours: (P, 3) in [0, 1].
      background: (3,) in [0, 1].
      origin: (3,), of the camera.
      rays: (64, 64, 3).
      farthest: length of the rays.

    Returns:
      (64, 64, 3) uint8.
    """
    met = trace(lambda point: jnp.min(bodies(point), axis=0), origin, rays, farthest)
    colour = colours[jnp.argmin(bodies(met.point), axis=0)]
    shaded = lambert(met.normal, 0.35)[..., None] * colour
    return to_uint8(jnp.where(met.hit[..., None], shaded, jnp.asarray(background)))


# Bodies: distances (...) from points (..., 3), or from how far these are beyond bounds.


def corner(excess: jax.Array) -> jax.Array:
    """Of what is bounded along each axis, from how far a point is beyond each bound, (..., n)."""
    outside = jnp.linalg.norm(jnp.maximum(excess, 0.0), axis=-1)
    return outside + jnp.minimum(jnp.max(excess, axis=-1), 0.0)


def box(point: jax.Array, half: Vector) -> jax.Array:
    """Of a box around the origin with half extents (3,)."""
    return corner(jnp.abs(point) - jnp.asarray(half))


def cylinder(along: jax.Array, across: jax.Array, radius: ArrayLike, half: ArrayLike) -> jax.Array:
    """Of a cylinder around the origin.

    Args:
      along: (...) coordinate along its axis.
      across: (...) distance from its axis.
      radius: its own.
      half: half of its length.
    """
    return corner(jnp.stack([across - radius, jnp.abs(along) - half], axis=-1))


def capsule(point: jax.Array, start: Vector, end: Vector, radius: float) -> jax.Array:
    """Of all points at most a radius from the line between two points (3,)."""
    line = jnp.asarray(end) - jnp.asarray(start)
    offset = point - jnp.asarray(start)
    share = jnp.clip(offset @ line / jnp.sum(line**2), 0.0, 1.0)
    return jnp.linalg.norm(offset - share[..., None] * line, axis=-1) - radius


def planes(point: jax.Array, normals: np.ndarray, offsets: np.ndarray) -> jax.Array:
    """Of the points with ``n . p <= o`` for all of some unit normals (n, 3) and offsets (n,).

    Beyond an edge it is less than the distance.
    """
    sides = point @ jnp.asarray(normals, jnp.float32).T - jnp.asarray(offsets, jnp.float32)
    return jnp.max(sides, axis=-1)


def ellipsoid(point: jax.Array, half: tuple[float, float, float]) -> jax.Array:
    """Of an ellipsoid around the origin with semi-axes (3,), to first order near its surface."""
    scaled = point / jnp.asarray(half)
    size = jnp.linalg.norm(scaled, axis=-1)
    slope = jnp.linalg.norm(scaled / jnp.asarray(half), axis=-1)
    # At the centre, where the slope is 0, the distance is some negative number.
    return size * (size - 1.0) / jnp.maximum(slope, 1e-6)


def smooth_minimum(a: jax.Array, b: jax.Array, width: float) -> jax.Array:
    """The minimum of two distances; bodies that are nearer than a width to each other melt."""
    overlap = jnp.maximum(width - jnp.abs(a - b), 0.0)
    return jnp.minimum(a, b) - overlap**2 / (4 * width)
