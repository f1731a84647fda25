"""A room with one object, after 3DShapes: its factors and grid, rendered by sphere tracing.

World coordinates are those of ``tracer``; the floor is z = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data import tracer
from worldmodels_jax.data.factors import FactorSet, hue_to_rgb, to_uint8

_WALL = 2.5  # of the walls x = -2.5, x = 2.5 and y = 2.5
_TARGET = (0.0, 0.0, 0.45)
_DISTANCE, _PITCH = 3.6, np.deg2rad(18.0)
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
    origin, rays = tracer.camera(
        _TARGET,
        _DISTANCE,
        tracer.Angle(jnp.cos(yaw), jnp.sin(yaw)),
        tracer.Angle(np.cos(_PITCH), np.sin(_PITCH)),
    )
    background, normal, floor = _background(origin, rays)
    # No ray needs to go on behind the background.
    point, hit, own_normal = tracer.trace(
        lambda point: _object_distance(point, scale, shape), origin, rays, background
    )
    normal = jnp.where(hit[..., None], own_normal, normal)
    colour = jnp.where(floor[..., None], colours[0], colours[1])
    colour = jnp.where(hit[..., None], colours[2], colour)
    shade = tracer.lambert(normal, 0.45)
    from_centre = point[..., 0] ** 2 + point[..., 1] ** 2
    contact = 1.0 - 0.35 * jnp.exp(-from_centre / (0.5 * scale) ** 2)
    shade = shade * jnp.where(floor & ~hit, contact, 1.0)
    return to_uint8(shade[..., None] * colour)


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
    box = tracer.box(p, scale * jnp.array([0.42, 0.42, 0.5]))
    cylinder = tracer.cylinder(z, radius, 0.45 * scale, 0.5 * scale)
    sphere = jnp.linalg.norm(p, axis=-1) - 0.5 * scale
    beyond = z - jnp.clip(z, -0.25 * scale, 0.25 * scale)
    capsule = jnp.sqrt(radius**2 + beyond**2) - 0.25 * scale
    return jnp.stack([box, cylinder, sphere, capsule])[shape]
