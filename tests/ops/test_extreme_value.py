"""The extreme value loss by hand, its derivatives at the ends, and laws of extremes by scipy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from worldmodels_jax.ops.extreme_value import (
    evl,
    evl_weights,
    gev_cdf,
    gpd_cdf,
    gpd_fit,
    reduce_evl,
)


def loss(u: float, v: float, gamma: float = 1.0, weights: tuple[float, float] = (0.95, 0.05)):
    return float(evl(jnp.float32(u), jnp.float32(v), gamma, *weights))


def test_by_hand() -> None:
    # 0.95 * 0.5 * ln 2 and 0.05 * 0.5 * ln 2.
    assert loss(0.5, 1) == pytest.approx(0.32925, abs=1e-5)
    assert loss(0.5, 0) == pytest.approx(0.01733, abs=1e-5)
    # (1 - 0.8 / 2)^2 (-ln 0.8) and (1 - 0.8 / 2)^2 (-ln 0.8) of the other class.
    assert loss(0.8, 1, 2.0, (1.0, 0.0)) == pytest.approx(0.36 * 0.2231436, rel=1e-5)
    assert loss(0.2, 0, 2.0, (0.0, 1.0)) == pytest.approx(0.36 * 0.2231436, rel=1e-5)
    # What is right costs nothing with gamma = 1.
    assert loss(1.0, 1) == pytest.approx(0, abs=1e-6)
    assert loss(0.0, 0) == pytest.approx(0, abs=1e-6)
    # Nothing of the other class is in it.
    assert loss(0.3, 1, weights=(0.0, 1.0)) == 0
    assert loss(0.3, 0, weights=(1.0, 0.0)) == 0


def test_large_gamma_is_a_cross_entropy_times_an_exponential() -> None:
    for u in (0.1, 0.7):
        assert loss(u, 1, 1e4, (1, 1)) == pytest.approx(math.exp(-u) * -math.log(u), rel=2e-3)
        other = 1 - u
        assert loss(u, 0, 1e4, (1, 1)) == pytest.approx(
            math.exp(-other) * -math.log(other), rel=2e-3
        )


@pytest.mark.parametrize("gamma", [1.0, 1.5, 3.0])
def test_derivatives_are_finite_and_point_the_right_way(gamma: float) -> None:
    u = jnp.array([0.0, 1e-7, 0.5, 1 - 1e-7, 1.0])
    for v, sign in ((1.0, -1), (0.0, 1)):
        slope = jax.vmap(jax.grad(lambda x, v=v: evl(x, jnp.float32(v), gamma, 0.9, 0.1)))(u)
        assert np.isfinite(slope).all()
        assert sign * slope[2] > 0


def test_gamma_below_one_is_cut_off_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"gamma=0.5 is below 1"):
        value, slope = jax.value_and_grad(lambda u: evl(u, jnp.float32(1.0), 0.5, 1.0, 1.0))(
            jnp.float32(0.75)
        )
    assert (value, slope) == (0, 0)
    with pytest.raises(ValueError, match=r"gamma=0 .*at least 1"):
        loss(0.5, 1, 0)


def test_weights() -> None:
    assert evl_weights(0.05) == (0.95, 0.05)
    assert evl_weights(0.05, "proportional") == (0.05, 0.95)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"p_extreme={share}"):
            evl_weights(share)
    with pytest.raises(ValueError, match="'both' is not known"):
        evl_weights(0.1, "both")  # type: ignore[arg-type]


def test_reductions() -> None:
    losses, v = jnp.array([4.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 0.0, 0.0])
    assert reduce_evl(losses, v) == 2.5
    assert reduce_evl(losses, v, "class_mean") == 4 + 2
    where = jnp.array([True, True, False, True])
    assert reduce_evl(losses, v, where=where) == pytest.approx(8 / 3)
    assert reduce_evl(losses, v, "class_mean", where=where) == 4 + 2
    # Without extremes there is nothing to divide by.
    assert reduce_evl(losses, jnp.zeros(4), "class_mean") == 2.5
    with pytest.raises(ValueError, match="'sum' is not known"):
        reduce_evl(losses, v, "sum")  # type: ignore[arg-type]


def test_reductions_over_devices() -> None:
    """Extremes on one of two devices: the mean over devices is that of the whole."""
    losses = jnp.array([[4.0, 1.0], [2.0, 3.0]])
    v = jnp.array([[1.0, 0.0], [0.0, 0.0]])

    def part(loss: jax.Array, v: jax.Array) -> jax.Array:
        return jax.lax.pmean(reduce_evl(loss, v, "class_mean", "device"), "device")

    both = jax.vmap(part, axis_name="device")(losses, v)
    np.testing.assert_allclose(both, 4 + 2, rtol=1e-6)


@pytest.mark.parametrize("xi", [-0.5, -1e-5, 0.0, 1e-5, 0.2, 1.0])
def test_laws_of_extremes(xi: float) -> None:
    x = np.linspace(-6, 12, 37)
    # scipy's shape of the generalised extreme value law has the other sign.
    expected: Any = stats.genextreme(-xi, loc=1.0, scale=2.0).cdf(x)
    np.testing.assert_allclose(gev_cdf(x, 1.0, 2.0, xi), expected, atol=2e-6)
    expected = stats.genpareto(xi, scale=2.0).cdf(x)
    np.testing.assert_allclose(gpd_cdf(x, 2.0, xi), expected, atol=2e-6)


def test_gumbel_is_the_limit() -> None:
    x = np.linspace(-2, 5, 9)
    gumbel = np.exp(-np.exp(-x))
    np.testing.assert_allclose(gev_cdf(x, 0.0, 1.0, 1e-9), gumbel, atol=1e-6)
    np.testing.assert_allclose(gev_cdf(x, 0.0, 1.0, -1e-9), gumbel, atol=1e-6)


def test_the_bracket_of_the_loss_is_an_extreme_value_law() -> None:
    """G_gamma(y) = exp(-(1 - y / gamma)^gamma) is the law of shape -1 / gamma (eq. 3.20)."""
    y, gamma = np.linspace(-1, 1.9, 7), 2.0
    np.testing.assert_allclose(
        gev_cdf(y, 0.0, 1.0, -1 / gamma), np.exp(-((1 - y / gamma) ** gamma)), rtol=1e-5
    )


def test_link_of_the_two_laws() -> None:
    """H = 1 + ln G for location 0 and one scale."""
    y = np.linspace(0.1, 5, 7)
    linked = 1 + np.log(np.asarray(gev_cdf(y, 0.0, 1.5, 0.3), np.float64))
    np.testing.assert_allclose(gpd_cdf(y, 1.5, 0.3), linked, atol=1e-5)


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.25])
def test_fit_finds_the_law(shape: float) -> None:
    drawn = stats.genpareto(shape, scale=1.7).rvs(40_000, random_state=0)
    sigma, xi = gpd_fit(drawn)
    assert sigma == pytest.approx(1.7, rel=0.03)
    assert xi == pytest.approx(shape, abs=0.03)


def test_fit_by_hand() -> None:
    # Of 0, 1, 5: l1 = 2, l2 = 2 (0*0 + 1*1 + 2*5) / 6 - 2 = 5/3, xi = 2 - 6/5, sigma = 2 * 0.2.
    assert gpd_fit([5.0, 0.0, 1.0]) == pytest.approx((0.4, 0.8))
    for wrong in ([1.0], [2.0, 2.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="two different excesses"):
            gpd_fit(wrong)
