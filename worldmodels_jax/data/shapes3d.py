"""A room with one object, after 3DShapes: its factors and grid, rendered by sphere tracing.

World coordinates: x to the right, y away from the camera at yaw 0, z up; the floor is z = 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data.factors import FactorSet, hue_to_rgb, to_uint8

_SIZE = 64
_WALL = 2.5  # of the walls x = -2.5, x = 2.5 and y = 2.5
_STEPS = 40  # of sphere tracing
_HIT = 5e-3  # distance from the surface at which a ray has met it
_NORMAL_STEP = 1e-3
_TARGET = (0.0, 0.0, 0.45)
_DISTANCE, _PITCH, _FIELD = 3.6, np.deg2rad(18.0), np.deg2rad(45.0)  # _FIELD: of view, vertical
_LIGHT = np.array([-0.4, -0.6, 0.7]) / np.linalg.norm([-0.4, -0.6, 0.7])
_UP = (0.0, 0.0, 1.0)


def shapes3d_like() -> FactorSet:
    """The grid of 3DShapes, 64x64: a box, cylinder, sphere or capsule on the floor of a room.

    Returns:
      480,000 combinations: floor hue 10, wall hue 10, object hue 10, scale 8, shape 4 and
      orientation 15 (the camera's yaw, -30 to 30 degrees).
    """
    scales = np.linspace(0.75, 1.25, 8, dtype=np.float32)
    yaws = np.linspace(-np.pi / 6, np.pi / 6, 15, dtype=np.float32)

    def render_one(factors: jax.Array) -> jax.Array:
        hues = hue_to_rgb(factors[:3] / 10)
        scale = jnp.asarray(scales)[factors[3]]
        return _room(hues, scale, factors[4], jnp.asarray(yaws)[factors[5]])

    return FactorSet(
        "shapes3d_like",
        ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"),
        (10, 10, 10, 8, 4, 15),
        render_one,
    )


def _room(colours: jax.Array, scale: jax.Array, shape: jax.Array, yaw: jax.Array) -> jax.Array:
    """The image (64, 64, 3) uint8, from the colours (3, 3) of floor, walls and object."""
    origin, rays = _camera(yaw)
    background, normal, floor = _background(origin, rays)

    def distance(point: jax.Array) -> jax.Array:
        return _object_distance(point, scale, shape)

    # No ray needs to go on behind the background.
    depth = jax.lax.fori_loop(
        0,
        _STEPS,
        lambda _, t: jnp.minimum(t + distance(origin + t[..., None] * rays), background),
        jnp.zeros(rays.shape[:-1]),
    )
    point = origin + depth[..., None] * rays
    hit = (jnp.abs(distance(point)) < _HIT) & (depth < background)
    normal = jnp.where(hit[..., None], _normal(distance, point), normal)
    colour = jnp.where(floor[..., None], colours[0], colours[1])
    colour = jnp.where(hit[..., None], colours[2], colour)
    shade = 0.45 + 0.55 * jnp.maximum(0.0, normal @ jnp.asarray(_LIGHT, jnp.float32))
    from_centre = point[..., 0] ** 2 + point[..., 1] ** 2
    contact = 1.0 - 0.35 * jnp.exp(-from_centre / (0.5 * scale) ** 2)
    shade = shade * jnp.where(floor & ~hit, contact, 1.0)
    return to_uint8(shade[..., None] * colour)


def _camera(yaw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where it is (3,), and the unit rays (64, 64, 3) through the centres of pixels."""
    backward = jnp.stack(
        [
            jnp.sin(yaw) * np.cos(_PITCH),
            -jnp.cos(yaw) * np.cos(_PITCH),
            jnp.full_like(yaw, np.sin(_PITCH)),
        ]
    )
    right = jnp.stack([jnp.cos(yaw), jnp.sin(yaw), jnp.zeros_like(yaw)])
    up = jnp.cross(backward, right)
    line = (2 * (np.arange(_SIZE) + 0.5) / _SIZE - 1) * np.tan(_FIELD / 2)
    across, down = (jnp.asarray(a, jnp.float32)[..., None] for a in np.meshgrid(line, line))
    rays = across * right - down * up - backward
    rays /= jnp.linalg.norm(rays, axis=-1, keepdims=True)
    return jnp.asarray(_TARGET) + _DISTANCE * backward, rays


def _background(origin: jax.Array, rays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Distance along each ray to floor or wall, the normal there, and whether it is the floor."""
    planes = ((2, 0.0), (0, -_WALL), (0, _WALL), (1, _WALL))
    normals = jnp.array([_UP, (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)])
    along = []
    for axis, place in planes:
        speed = rays[..., axis]
        # A parallel ray never arrives; dividing by its speed would make infinities.
        moving = jnp.where(jnp.abs(speed) < 1e-6, 1e-6, speed)
        t = (place - origin[axis]) / moving
        along.append(jnp.where(t > 0, t, jnp.inf))
    distances = jnp.stack(along)
    nearest = jnp.argmin(distances, axis=0)
    return jnp.min(distances, axis=0), normals[nearest], nearest == 0


def _object_distance(point: jax.Array, scale: jax.Array, shape: jax.Array) -> jax.Array:
    """Signed distance (...) of points (..., 3) to the object, which rests at the origin."""
    p = point - jnp.stack([jnp.zeros_like(scale), jnp.zeros_like(scale), 0.5 * scale])
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    radius = jnp.sqrt(x**2 + y**2)
    box = jnp.abs(p) - scale * jnp.array([0.42, 0.42, 0.5])
    cylinder = jnp.stack([radius - 0.45 * scale, jnp.abs(z) - 0.5 * scale], axis=-1)
    sphere = jnp.linalg.norm(p, axis=-1) - 0.5 * scale
    beyond = z - jnp.clip(z, -0.25 * scale, 0.25 * scale)
    capsule = jnp.sqrt(radius**2 + beyond**2) - 0.25 * scale
    return jnp.stack([_corner(box), _corner(cylinder), sphere, capsule])[shape]


def _corner(excess: jax.Array) -> jax.Array:
    """Distance of what is bounded along each axis, from how far a point is beyond each bound."""
    outside = jnp.linalg.norm(jnp.maximum(excess, 0.0), axis=-1)
    return outside + jnp.minimum(jnp.max(excess, axis=-1), 0.0)


def _normal(distance: Callable[[jax.Array], jax.Array], point: jax.Array) -> jax.Array:
    steps = _NORMAL_STEP * jnp.eye(3)
    slope = jnp.stack([distance(point + s) - distance(point - s) for s in steps], axis=-1)
    return slope / jnp.maximum(jnp.linalg.norm(slope, axis=-1, keepdims=True), 1e-12)
