"""A teapot, a robot arm and cars, after Teapots, MPI3D and Cars3D: 64x64, by sphere tracing.

Factors and grids are those of the public sets, Teapots' continuous factors at ten values each. What
is shown is alike in kind, not in looks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data import tracer
from worldmodels_jax.data.factors import FactorSet, hue_to_rgb

_WHITE = (1.0, 1.0, 1.0)
_GREY = (0.5, 0.5, 0.5)
_FRONT = tracer.Angle(np.float32(1.0), np.float32(0.0))  # the camera's yaw at 0


def teapots_like() -> FactorSet:
    """A teapot of any colour before white, seen from all sides and from its height to above.

    Returns:
      100,000 combinations, ten values each: azimuth (36 degrees apart), elevation (0 to 88 degrees)
      and the shares of red, green and blue (0 to 1).
    """
    azimuths = tracer.angles(2 * np.pi * np.arange(10) / 10)
    elevations = tracer.angles(np.linspace(0.0, 0.49 * np.pi, 10))

    def render_one(factors: jax.Array) -> jax.Array:
        azimuth, elevation = azimuths.at(factors[0]), elevations.at(factors[1])
        origin, rays = tracer.camera((0.0, 0.0, 0.0), 2.6, azimuth, elevation)
        colour = factors[2:] / 9
        return tracer.picture(
            lambda point: _teapot(point)[None], colour[None], _WHITE, origin, rays, 4.0
        )

    names = ("azimuth", "elevation", "red", "green", "blue")
    return FactorSet("teapots_like", names, (10,) * 5, render_one)


def _teapot(point: jax.Array) -> jax.Array:
    body = tracer.ellipsoid(point, (0.5, 0.5, 0.4))
    lid = jnp.linalg.norm(point - jnp.array([0.0, 0.0, 0.45]), axis=-1) - 0.08
    spout = tracer.capsule(point, (0.4, 0.0, 0.0), (0.75, 0.0, 0.3), 0.07)
    x, y, z = point[..., 0] + 0.5, point[..., 1], point[..., 2] - 0.05
    handle = jnp.hypot(jnp.hypot(x, z) - 0.22, y) - 0.05  # a torus in the plane y = 0
    whole = body
    for part in (lid, spout, handle):
        whole = tracer.smooth_minimum(whole, part, 0.05)
    return whole


def mpi3d_like() -> FactorSet:
    """A grey robot arm that holds a coloured body, before an even background of another hue.

    The arm turns from side to side and rises; the body turns with it. Backgrounds have half the
    brightness of a full colour, which tells them from bodies of the same hue.

    Returns:
      1,036,800 combinations, MPI3D's grid: colour 6; shape 6 (cube, cylinder, sphere, cone,
      hexagonal prism, pyramid); size 2; camera height 3; background 3; horizontal axis 40 (yaw, -60
      to 60 degrees) and vertical axis 40 (10 to 80 degrees above the horizon).
    """
    heights = tracer.angles(np.deg2rad([10.0, 30.0, 50.0]))
    yaws = tracer.angles(np.deg2rad(np.linspace(-60.0, 60.0, 40)))
    pitches = tracer.angles(np.deg2rad(np.linspace(10.0, 80.0, 40)))
    sizes = np.array([0.12, 0.2], np.float32)

    def render_one(factors: jax.Array) -> jax.Array:
        colour, shape, size, height, background, horizontal, vertical = factors
        yaw, pitch = yaws.at(horizontal), pitches.at(vertical)
        top = jnp.array([0.0, 0.0, 0.5])
        # Towards a camera at yaw 0, then turned.
        ahead = jnp.stack([yaw.sine * pitch.cosine, -yaw.cosine * pitch.cosine, pitch.sine])
        side = jnp.stack([yaw.cosine, yaw.sine, jnp.zeros_like(yaw.sine)])
        tip = top + 0.9 * ahead
        axes = jnp.stack([side, jnp.cross(ahead, side), ahead], axis=-1)  # of the body

        def bodies(point: jax.Array) -> jax.Array:
            post = tracer.capsule(point, (0.0, 0.0, 0.0), top, 0.05)
            arm = tracer.capsule(point, top, tip, 0.04)
            own = (point - tip) @ axes / jnp.asarray(sizes)[size]
            body = jnp.asarray(sizes)[size] * _held(own)[shape]
            return jnp.stack([jnp.minimum(post, arm), body])

        origin, rays = tracer.camera((0.0, 0.0, 0.7), 3.0, _FRONT, heights.at(height))
        colours = jnp.stack([jnp.array(_GREY), hue_to_rgb(colour / 6)])
        return tracer.picture(bodies, colours, 0.5 * hue_to_rgb(background / 3), origin, rays, 5.0)

    names = ("colour", "shape", "size", "camera_height", "background")
    return FactorSet(
        "mpi3d_like",
        (*names, "horizontal_axis", "vertical_axis"),
        (6, 6, 2, 3, 3, 40, 40),
        render_one,
    )


def _held(point: jax.Array) -> jax.Array:
    """Distances (6, ...) to the bodies, half as large as 1; their third axis is the arm's."""
    x, y, z = point[..., 0], point[..., 1], point[..., 2]
    across = jnp.hypot(x, y)
    cube = tracer.box(point, (1.0, 1.0, 1.0))
    cylinder = tracer.cylinder(z, across, 1.0, 1.0)
    sphere = jnp.linalg.norm(point, axis=-1) - 1.0
    # Tips at 1, bases of half width 1 at -1: sides fall by 2 over 1.
    cone = jnp.maximum((2 * across + z - 1) / 5**0.5, -z - 1)
    thirds = np.deg2rad([0.0, 60.0, 120.0, 180.0, 240.0, 300.0])
    hexagon = [[np.cos(a), np.sin(a), 0] for a in thirds] + [[0, 0, 1], [0, 0, -1]]
    prism = tracer.planes(point, np.array(hexagon), np.array([0.87] * 6 + [1.0, 1.0]))
    slopes = np.array([[2, 0, 1], [-2, 0, 1], [0, 2, 1], [0, -2, 1]]) / 5**0.5
    pyramid = tracer.planes(
        point, np.concatenate([slopes, [[0, 0, -1]]]), np.array([1 / 5**0.5] * 4 + [1.0])
    )
    return jnp.stack([cube, cylinder, sphere, cone, prism, pyramid])


class _Cars(NamedTuple):
    """Sizes in world units; cabin and its offset as shares of the length."""

    length: Any
    width: Any
    height: Any
    cabin: Any
    offset: Any
    hue: Any


_CAR_RANGES = _Cars((0.8, 1.2), (0.4, 0.55), (0.18, 0.3), (0.35, 0.7), (-0.15, 0.15), (0.0, 1.0))
_WHEEL, _CLEARANCE = 0.11, 0.07  # radius of a wheel, height of the body's underside


def cars3d_like() -> FactorSet:
    """Cars of 183 types before white: a body, a darker cabin, and four wheels.

    The types' sizes and hues are drawn once and for all.

    Returns:
      17,568 combinations, Cars3D's grid: elevation 4 (10 to 40 degrees), azimuth 24 (15 degrees
      apart) and car type 183.
    """
    rng = np.random.default_rng(0)
    low, high = np.array(_CAR_RANGES).T
    cars = _Cars(*rng.uniform(low, high, (183, 6)).astype(np.float32).T)
    elevations = tracer.angles(np.deg2rad([10.0, 20.0, 30.0, 40.0]))
    azimuths = tracer.angles(np.deg2rad(15.0 * np.arange(24)))

    def render_one(factors: jax.Array) -> jax.Array:
        elevation, azimuth, kind = factors
        car = _Cars(*(jnp.asarray(column)[kind] for column in cars))
        paint = hue_to_rgb(car.hue)
        colours = jnp.stack([paint, 0.5 * paint, jnp.full(3, 0.15)])
        origin, rays = tracer.camera(
            (0.0, 0.0, 0.25), 2.4, azimuths.at(azimuth), elevations.at(elevation)
        )
        return tracer.picture(lambda point: _car(point, car), colours, _WHITE, origin, rays, 4.0)

    names = ("elevation", "azimuth", "car_type")
    return FactorSet("cars3d_like", names, (4, 24, 183), render_one)


def _car(point: jax.Array, car: _Cars) -> jax.Array:
    """Distances (3, ...) to body, cabin and wheels of a car along x."""

    def block(x: jax.Array, bottom: jax.Array, length: jax.Array, width: jax.Array) -> jax.Array:
        centre = jnp.stack([x, jnp.zeros_like(x), bottom + car.height / 2])
        return tracer.box(point - centre, jnp.stack([length, width, car.height]) / 2)

    zero = jnp.zeros_like(car.length)
    body = block(zero, zero + _CLEARANCE, car.length, car.width)
    cabin = block(
        car.offset * car.length,
        _CLEARANCE + car.height,
        car.cabin * car.length,
        0.85 * car.width,
    )
    # Four wheels are one, mirrored.
    x, y = jnp.abs(point[..., 0]) - 0.3 * car.length, jnp.abs(point[..., 1]) - car.width / 2
    wheels = tracer.cylinder(y, jnp.hypot(x, point[..., 2] - _WHEEL), _WHEEL, 0.04)
    return jnp.stack([body, cabin, wheels])
