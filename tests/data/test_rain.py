"""The rain simulator against slow NumPy, SciPy's laws and what can be said by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from worldmodels_jax.data import rain

TOY = rain.toy_physics()
# An even side and an odd one, of different lengths; pixels of 4 km.
UNEVEN = dataclasses.replace(TOY, columns=9)
FROZEN = dataclasses.replace(UNEVEN, lifetime_minutes=1e13)
PIXEL_A_STEP = 48.0  # km/h: 4 km in 5 minutes


def fields(physics: rain.RainPhysics, velocity: tuple[float, float], num: int, num_steps: int):
    keys = jax.random.split(jax.random.key(0), num)
    many = jax.vmap(lambda key: rain.gaussian_field(key, physics, jnp.array(velocity), num_steps))
    return np.asarray(jax.jit(many)(keys))


def waves(physics: rain.RainPhysics) -> tuple[np.ndarray, np.ndarray]:
    """Power (summing to 1) and rho of all waves, wave by wave: the specification read aloud."""
    H, W, dx = physics.rows, physics.columns, physics.pixel_km
    power, rho = np.zeros((H, W)), np.zeros((H, W))
    for i, j in np.ndindex(H, W):
        m, n = (i if i <= H / 2 else i - H), (j if j <= W / 2 else j - W)
        if (m, n) == (0, 0) or 2 * abs(m) == H or 2 * abs(n) == W:
            continue
        k = np.hypot(2 * np.pi * m / (H * dx), 2 * np.pi * n / (W * dx))
        power[i, j] = (k**2 + (2 * np.pi / physics.outer_scale_km) ** 2) ** (-physics.slope / 2)
        tau = physics.lifetime_minutes * (2 * np.pi / k / physics.reference_scale_km) ** 0.8
        rho[i, j] = np.exp(-5 / tau)
    return power / power.sum(), rho


@pytest.mark.parametrize("velocity", [(PIXEL_A_STEP, 0.0), (0.0, PIXEL_A_STEP)])
def test_east_is_to_the_right_and_north_is_up(velocity: tuple[float, float]) -> None:
    (field,) = fields(FROZEN, velocity, 1, 4)
    # A step to the right is to the next column; a step northward to the row before.
    shift, axis = (1, 1) if velocity[0] else (-1, 0)
    for step in range(4):
        np.testing.assert_allclose(field[step], np.roll(field[0], step * shift, axis), atol=1e-4)


def test_motion_by_fractions_of_pixels_loses_nothing() -> None:
    (field,) = fields(FROZEN, (PIXEL_A_STEP / 4, -PIXEL_A_STEP / 2), 1, 9)
    # In between a wave of two pixels could not be represented, and would lose its power.
    power = (field**2).mean((1, 2))
    np.testing.assert_allclose(power, power[0], rtol=1e-4)
    np.testing.assert_allclose(field[8], np.roll(field[0], (4, 2), (0, 1)), atol=2e-4)


def test_variance_spectrum_and_lifetimes() -> None:
    power, rho = waves(UNEVEN)
    field = fields(UNEVEN, (20.0, 10.0), 6000, 7)
    first, last = field[:, 0], field[:, 6]
    assert (field**2).mean((0, 2, 3)) == pytest.approx(np.ones(7), abs=0.01)
    assert stats.kurtosis(first, axis=None) == pytest.approx(0.0, abs=0.05)
    # 6000 draws of a power, exponentially distributed: 1.3 % of standard error, 63 waves.
    transforms = [np.fft.fft2(x) / x[0].size for x in (first, last)]
    estimated = (np.abs(transforms[1]) ** 2).mean(0)
    np.testing.assert_allclose(estimated, power, rtol=0.08, atol=1e-8)
    # Every wave's correlation with its past, turned back by the motion of 30 minutes: 10 km
    # eastward and 5 km northward.
    k_rows = 2 * np.pi * np.fft.fftfreq(8, 4.0)[:, None]
    k_columns = 2 * np.pi * np.fft.fftfreq(9, 4.0)[None]
    back = np.exp(1j * (10 * k_columns - 5 * k_rows))
    cross = (np.conj(transforms[0]) * transforms[1]).mean(0) * back
    np.testing.assert_allclose(cross, power * rho**6, atol=0.003)
    # Both in one number each: along the motion, and at a place.
    assert cross.real.sum() == pytest.approx((power * rho**6).sum(), abs=0.01)
    eulerian = (power * rho**6 * np.conj(back)).sum().real
    assert (first * last).mean() == pytest.approx(eulerian, abs=0.01)
    assert eulerian < 0.5 * (power * rho**6).sum()


def test_rates_by_hand() -> None:
    g = jnp.array([-3.0, 0.0, special.ndtri(0.75), 6.0])
    rates = np.asarray(rain.rain_rate(g, jnp.float32(0.5), TOY))
    # Half of it is dry. Phi = 0.75 is the median of the wet half: 5 (0.5^-0.2 - 1) = 0.743492.
    # At six deviations Phi is 1 in float32; 1 - Phi = 9.8659e-10: 5 ((2 * 9.8659e-10)^-0.2 - 1).
    np.testing.assert_allclose(rates, [0.0, 0.0, 0.743492, 270.38], rtol=1e-4, atol=1e-6)


def test_wet_rates_are_generalised_pareto() -> None:
    g = jax.random.normal(jax.random.key(3), (20_000,))
    rates = np.asarray(rain.rain_rate(g, jnp.float32(0.6), dataclasses.replace(TOY, scale=2.0)))
    assert (rates == 0).mean() == pytest.approx(0.6, abs=0.015)
    assert stats.kstest(rates[rates > 0], stats.genpareto(0.2, scale=2.0).cdf).pvalue > 0.01


def test_storms_follow_their_laws() -> None:
    physics = rain.full_physics()
    draw = jax.jit(jax.vmap(lambda key: rain.draw_storm(key, physics)))
    storm = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(5), 4000)))
    east, north = storm.velocity.T
    laws = [
        (np.hypot(east, north), stats.uniform(7.2, 21.6)),  # 2 to 8 m/s in km/h
        (np.arctan2(north, east), stats.vonmises(2.0)),
        (np.log(storm.amplitude), stats.norm(-0.08, 0.4)),
        (storm.growth, stats.norm(0.0, 0.25)),
        (storm.dry_fraction, stats.uniform(0.5, 0.35)),
    ]
    for values, law in laws:
        assert stats.kstest(values, law.cdf).pvalue > 0.01
    assert np.abs(np.corrcoef([values for values, _ in laws]) - np.eye(5)).max() < 0.06


def test_an_event_is_its_maps_and_its_key() -> None:
    calm = dataclasses.replace(TOY, growth_spread=0.0)
    one = jax.jit(rain.simulate, static_argnums=1, static_argnames="every_step")
    event = one(jax.random.key(1), TOY, every_step=True)
    steps = np.asarray(event.steps)
    assert steps.shape == (49, 8, 8)
    assert (steps >= 0).all()
    assert (steps == 0).any()
    np.testing.assert_array_equal(event.frames, steps[[0, 6, 12, 18, 24, 30, 36, 42, 48]])
    # After T, which is 60 minutes from the start: 36 maps of 5 minutes, mm/h to mm.
    np.testing.assert_allclose(event.accumulation, steps[13:49].sum(0) / 12, rtol=1e-5)

    same = one(jax.random.key(1), TOY)
    assert same.steps is None
    np.testing.assert_allclose(same.frames, event.frames, rtol=1e-5)
    other = one(jax.random.key(2), TOY)
    assert not np.allclose(other.frames, event.frames)

    # Growth is an exponential around T.
    flat = np.asarray(one(jax.random.key(1), calm).frames)
    wet = flat.min((1, 2), initial=np.inf, where=flat > 0.01)
    at = np.array([(frame == low).nonzero() for frame, low in zip(flat, wet, strict=True)])[..., 0]
    grown = np.asarray(event.frames)[np.arange(9), at[:, 0], at[:, 1]] / wet
    growth = float(event.storm.growth)
    assert abs(growth) > 0.02
    np.testing.assert_allclose(grown, np.exp(growth * np.arange(-1, 3.5, 0.5)), rtol=1e-3)


def test_rates_and_motion_are_those_of_a_radar() -> None:
    """Bulk statistics against the specification's, and the motion found in the frames."""
    coarse = dataclasses.replace(rain.full_physics(), rows=32, columns=32, pixel_km=4.0)
    # Rates do not depend on lifetimes, and motion is easier to see in what lives longer.
    physics = dataclasses.replace(coarse, lifetime_minutes=240.0)
    many = jax.jit(jax.vmap(lambda key: rain.simulate(key, physics)))
    event = jax.tree.map(np.asarray, many(jax.random.split(jax.random.key(7), 128)))
    frames = event.frames
    assert (frames > 0.1).mean() == pytest.approx(0.29, abs=0.03)
    assert frames.mean() == pytest.approx(0.42, abs=0.05)
    assert np.quantile(frames, 0.99) == pytest.approx(6.0, abs=0.8)

    # The generalised Pareto shape by L-moments, 2 - l1 / l2: 0 for an exponential tail.
    wet = np.sort(frames[frames > 0])
    l1 = wet.mean()
    l2 = 2 * (wet * np.arange(len(wet))).mean() / (len(wet) - 1) - l1
    assert 0.15 < 2 - l1 / l2 < 0.45

    # 30 minutes of U km/h are U / 8 pixels of 4 km; rows count southward.
    moves = event.storm.velocity * np.array([1, -1]) / 8
    errors = np.abs(phase_correlation(frames[:, 2], frames[:, 3]) - moves)
    assert np.median(errors) < 0.2
    assert (errors < 0.5).mean() > 0.9


def phase_correlation(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(E, H, W) twice -> (E, 2) columns and rows by which what is large has moved."""
    side = before.shape[1]
    cross = np.conj(np.fft.fft2(before)) * np.fft.fft2(after)
    # Whitened up to the waves that outlive half an hour.
    low = np.abs(np.fft.fftfreq(side)) < 0.16
    cross = np.where(low[:, None] & low, cross / (np.abs(cross) + 1e-9), 0.0)
    moves = np.arange(-8, 8.01, 0.25)
    waves = np.exp(2j * np.pi * moves[:, None] * np.fft.fftfreq(side))
    surface = (waves @ cross @ waves.T).real
    rows, columns = np.divmod(surface.reshape(len(surface), -1).argmax(1), len(moves))
    return np.stack([moves[columns], moves[rows]], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 2}, "2x8 pixels has no wave"),
        ({"tail": 0.0}, "tail=0.0: it must be above 0"),
        ({"growth_spread": -0.1}, "growth_spread=-0.1: it must be at least 0"),
        ({"dry_fraction": (0.4, 1.0)}, r"dry_fraction=\(0.4, 1.0\): give a range low <= high"),
        ({"speed": (6.0, 3.0)}, r"speed=\(6.0, 3.0\): give a range"),
    ],
)
def test_physics_that_make_no_rain_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TOY, **change)
