"""A procedural radar: rain that drifts, changes and is heavy-tailed, with its true motion.

A Gaussian random field is carried along by one velocity an event while each scale of it is renewed
at its own pace, the small ones first; its values are then mapped to rain rates, of which the wet
ones are generalised Pareto. It is what precipitation nowcasting is tried on where no radar archive
is at hand: the motion, the growth and the tail that a forecast should find are known.

The domain is periodic. Axis letters here: H rows, from north to south, and W columns, from west to
east.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

STEP_MINUTES = 5
FRAME_MINUTES = 30
CONTEXT_FRAMES = 3  # at T-60, T-30 and T
FUTURE_FRAMES = 6  # at T+30 ... T+180
STEPS_PER_FRAME = FRAME_MINUTES // STEP_MINUTES
NUM_FRAMES = CONTEXT_FRAMES + FUTURE_FRAMES
NUM_STEPS = (NUM_FRAMES - 1) * STEPS_PER_FRAME + 1  # maps of 5 minutes, both ends included
FORECAST_STEP = (CONTEXT_FRAMES - 1) * STEPS_PER_FRAME  # that of T

_CIRCLE = 4096  # intervals of the table that directions are drawn from


@dataclasses.dataclass(frozen=True)
class RainPhysics:
    """What events have in common. ``full_physics`` and ``toy_physics`` are the two in use.

    Attributes:
      rows: H, at least 3.
      columns: W, at least 3.
      pixel_km: the side of a pixel.
      dry_fraction: the range of an event's share of dry area, within [0, 1).
      amplitude_spread: s, the standard deviation of the logarithm of an event's amplitude, whose
        mean is 1.
      growth_spread: the standard deviation of the growth rate, per hour.
      speed: the range of an event's speed in m/s.
      direction_concentration: kappa of the von Mises law of directions around eastward.
      outer_scale_km: L0, the scale beyond which the spectrum is flat.
      lifetime_minutes: tau0, the lifetime of structures of the reference scale, in which their
        correlation along the motion falls to 1/e.
      slope: beta, of the spectrum.
      reference_scale_km: lam0.
      lifetime_exponent: z, of the lifetime as a function of the scale.
      tail: xi, the shape of the generalised Pareto law of wet rates.
      scale: sigma, the scale of the same law in mm/h, at amplitude 1.

    Raises:
      ValueError: for a grid, a range, a scale or a tail that makes no rain.
    """

    rows: int
    columns: int
    pixel_km: float
    dry_fraction: tuple[float, float]
    amplitude_spread: float
    growth_spread: float
    speed: tuple[float, float]
    direction_concentration: float
    outer_scale_km: float
    lifetime_minutes: float
    slope: float = 3.0
    reference_scale_km: float = 32.0
    lifetime_exponent: float = 0.8
    tail: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what would divide by zero or draw from an empty range later on."""
        if min(self.rows, self.columns) < 3:
            raise ValueError(
                f"a grid of {self.rows}x{self.columns} pixels has no wave that can drift: take at "
                "least 3 rows and 3 columns."
            )
        for name in (
            "pixel_km",
            "outer_scale_km",
            "lifetime_minutes",
            "reference_scale_km",
            "tail",
            "scale",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be above 0.")
        for name in ("amplitude_spread", "growth_spread", "direction_concentration"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0.")
        for name, end in (("dry_fraction", 1.0), ("speed", np.inf)):
            low, high = getattr(self, name)
            if not 0 <= low <= high < end:
                raise ValueError(
                    f"{name}=({low}, {high}): give a range low <= high within [0, {end})."
                )


def full_physics() -> RainPhysics:
    """The physics of a radar composite: 256x256 pixels of 1 km, lifetimes of an hour."""
    return RainPhysics(
        rows=256,
        columns=256,
        pixel_km=1.0,
        dry_fraction=(0.5, 0.85),
        amplitude_spread=0.4,
        growth_spread=0.25,
        speed=(2.0, 8.0),
        direction_concentration=2.0,
        outer_scale_km=64.0,
        lifetime_minutes=60.0,
    )


def toy_physics() -> RainPhysics:
    """A small and predictable one: 8x8 pixels of 4 km, lifetimes of four hours."""
    return RainPhysics(
        rows=8,
        columns=8,
        pixel_km=4.0,
        dry_fraction=(0.4, 0.8),
        amplitude_spread=0.5,
        growth_spread=0.15,
        speed=(3.0, 6.0),
        direction_concentration=6.0,
        outer_scale_km=24.0,
        lifetime_minutes=240.0,
    )


class Storm(NamedTuple):
    """What is particular to an event."""

    velocity: jax.Array  # (2,) km/h: U eastward, V northward
    amplitude: jax.Array  # () A0, the factor of all rates at T
    growth: jax.Array  # () gamma_g, per hour
    dry_fraction: jax.Array  # () p0


class RainEvent(NamedTuple):
    """One event around the time T of its forecast; rates are those of an instant."""

    frames: jax.Array  # (9, H, W) mm/h, every 30 minutes from T-60 to T+180
    accumulation: jax.Array  # (H, W) mm, over (T, T+180] in steps of 5 minutes
    storm: Storm
    steps: jax.Array | None  # (49, H, W) mm/h, every 5 minutes from T-60 to T+180, if asked for


def simulate(key: jax.Array, physics: RainPhysics, *, every_step: bool = False) -> RainEvent:
    """Simulates one event; ``jax.vmap`` over keys simulates many.

    Working memory is 49 maps an event: at 256x256 pixels 13 MB, so that many events are better
    mapped by ``jax.lax.map`` with a ``batch_size``.

    Args:
      key: a PRNG key.
      physics: what events have in common.
      every_step: whether the maps of every 5 minutes are returned as well.

    Returns:
      The event, float32.
    """
    key_storm, key_field = jax.random.split(key)
    storm = draw_storm(key_storm, physics)
    field = gaussian_field(key_field, physics, storm.velocity, NUM_STEPS)
    hours = (jnp.arange(NUM_STEPS) - FORECAST_STEP) * STEP_MINUTES / 60
    amplitude = storm.amplitude * jnp.exp(storm.growth * hours)
    steps = amplitude[:, None, None] * rain_rate(field, storm.dry_fraction, physics)
    return RainEvent(
        frames=steps[::STEPS_PER_FRAME],
        accumulation=steps[FORECAST_STEP + 1 :].sum(0) * STEP_MINUTES / 60,
        storm=storm,
        steps=steps if every_step else None,
    )


def draw_storm(key: jax.Array, physics: RainPhysics) -> Storm:
    """Draws what is particular to an event.

    Args:
      key: a PRNG key.
      physics: what events have in common.

    Returns:
      The event's velocity, amplitude, growth rate and dry fraction.
    """
    key_dry, key_amplitude, key_growth, key_speed, key_direction = jax.random.split(key, 5)
    spread = physics.amplitude_spread
    low, high = physics.speed
    speed = 3.6 * jax.random.uniform(key_speed, minval=low, maxval=high)
    theta = _direction(key_direction, physics.direction_concentration)
    low, high = physics.dry_fraction
    return Storm(
        velocity=speed * jnp.stack([jnp.cos(theta), jnp.sin(theta)]),
        amplitude=jnp.exp(spread * jax.random.normal(key_amplitude) - spread**2 / 2),
        growth=physics.growth_spread * jax.random.normal(key_growth),
        dry_fraction=jax.random.uniform(key_dry, minval=low, maxval=high),
    )


def gaussian_field(
    key: jax.Array, physics: RainPhysics, velocity: jax.Array, num_steps: int
) -> jax.Array:
    """A stationary Gaussian field of unit variance, every 5 minutes.

    Its Fourier coefficients are first-order autoregressions along the motion,

        ghat' = rho e^(-i (kx U - ky V) dt) ghat + sqrt(1 - rho^2) sqrt(P) epshat,

    with epshat the transform of white noise: motion by any fraction of a pixel is exact, and the
    correlation of ghat with its past falls by rho(k) = exp(-dt / tau) a step, with the lifetime
    tau = tau0 (L / lam0)^z of the wavelength L.

    Args:
      key: a PRNG key.
      physics: what events have in common.
      velocity: (2,) km/h, eastward and northward.
      num_steps: T.

    Returns:
      (T, H, W) float32.
    """
    chex.assert_shape(velocity, (2,))
    shape = (physics.rows, physics.columns)
    k_rows, k_columns = _wavenumbers(physics)
    power, kept = _spectrum(physics), _kept(physics)
    root = jnp.asarray(np.sqrt(power), jnp.float32)
    renewed = jnp.asarray(np.sqrt(power * (1 - kept**2)), jnp.float32)
    east, north = velocity * STEP_MINUTES / 60
    # Rows count southward.
    phase = jnp.asarray(k_columns, jnp.float32) * east - jnp.asarray(k_rows, jnp.float32) * north
    factor = jnp.asarray(kept, jnp.float32) * jnp.exp(-1j * phase)

    def noise(key: jax.Array) -> jax.Array:
        return jnp.fft.rfft2(jax.random.normal(key, shape))

    def step(coefficients: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        coefficients = factor * coefficients + renewed * noise(key)
        return coefficients, jnp.fft.irfft2(coefficients, shape)

    key_first, key_later = jax.random.split(key)
    first = root * noise(key_first)
    _, later = jax.lax.scan(step, first, jax.random.split(key_later, num_steps - 1))
    return jnp.concatenate([jnp.fft.irfft2(first, shape)[None], later])


def rain_rate(field: jax.Array, dry_fraction: jax.Array, physics: RainPhysics) -> jax.Array:
    """Maps standard normal values to rain rates at amplitude 1, monotonically.

    The lowest values, a share p0 of them, are dry. The others follow the generalised Pareto law
    with the distribution 1 - (1 + xi R / sigma)^(-1/xi).

    Args:
      field: (...) standard normal values g.
      dry_fraction: () p0.
      physics: of which the law's shape xi and scale sigma are used.

    Returns:
      (...) mm/h.
    """
    # P(rate > R) of the wet ones, by the normal law's upper tail: 1 - Phi(g) would lose its digits.
    exceedance = jnp.minimum(jax.scipy.stats.norm.sf(field) / (1 - dry_fraction), 1.0)
    return physics.scale / physics.tail * (exceedance**-physics.tail - 1)


def _wavenumbers(physics: RainPhysics) -> tuple[np.ndarray, np.ndarray]:
    """Those of a real transform in rad/km: (H, 1) southward and (1, W//2+1) eastward."""
    rows = np.fft.fftfreq(physics.rows, physics.pixel_km)[:, None]
    columns = np.fft.rfftfreq(physics.columns, physics.pixel_km)[None]
    return 2 * np.pi * rows, 2 * np.pi * columns


def _spectrum(physics: RainPhysics) -> np.ndarray:
    """P(k) = (k^2 + (2 pi / L0)^2)^(-beta/2), (H, W//2+1), its mean over all waves being 1.

    There is no mean, and nothing at the Nyquist wavenumbers of even sides: a wave of two pixels
    cannot be moved by a fraction of a pixel, for it has no sine.
    """
    k_rows, k_columns = _wavenumbers(physics)
    outer = 2 * np.pi / physics.outer_scale_km
    power = (k_rows**2 + k_columns**2 + outer**2) ** (-physics.slope / 2)
    power[0, 0] = 0.0
    if physics.rows % 2 == 0:
        power[physics.rows // 2] = 0.0
    if physics.columns % 2 == 0:
        power[:, -1] = 0.0
    # A real transform holds every column but the first (and the empty Nyquist) for its mirror too.
    total = power[:, 0].sum() + 2 * power[:, 1:].sum()
    return power * physics.rows * physics.columns / total


def _kept(physics: RainPhysics) -> np.ndarray:
    """rho(k), (H, W//2+1): the correlation of a wave with itself one step before."""
    k = np.hypot(*_wavenumbers(physics))
    # The mean has no power; whatever is here for it is multiplied by 0.
    k[0, 0] = 1.0
    ratio = 2 * np.pi / k / physics.reference_scale_km
    lifetime = physics.lifetime_minutes * ratio**physics.lifetime_exponent
    return np.exp(-STEP_MINUTES / lifetime)


def _direction(key: jax.Array, concentration: float) -> jax.Array:
    """Von Mises around 0, in radians, by the inverse of the tabulated distribution function."""
    edges = np.linspace(-np.pi, np.pi, _CIRCLE + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = np.exp(concentration * (np.cos(middles) - 1))
    cdf = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    return jnp.interp(jax.random.uniform(key), jnp.asarray(cdf), jnp.asarray(edges))
