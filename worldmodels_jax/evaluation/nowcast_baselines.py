"""Forecasts of rain without learning: persistence at a place, persistence along the motion, STEPS.

NumPy. Fields are rain rates in mm/h. Axis letters here: E events, C observed frames, L lead times,
H rows from north to south, W columns from west to east.
"""

import contextlib
import importlib
import io
from typing import Any, Literal

import chex
import numpy as np
from scipy import ndimage

Boundary = Literal["open", "periodic"]

LEAST_RATE = 0.1  # mm/h, below which it is dry
_FINE = 0.05  # pixels, to which the motion between two frames is told
_SMOOTH = 2.0  # pixels: coarser structures live longer, and tell more of the motion


def eulerian_persistence(context: np.ndarray, leads: int) -> np.ndarray:
    """The last frame, again and again.

    Args:
      context: ``(E, C, H, W)``.
      leads: L.

    Returns:
      ``(E, L, H, W)``.
    """
    return np.repeat(context[:, -1:], leads, axis=1)


def lagrangian_persistence(
    context: np.ndarray, leads: int, boundary: Boundary = "open"
) -> np.ndarray:
    """The last frame, carried along by one velocity per event.

    The velocity is that of the last two frames. Semi-Lagrangian, with linear interpolation.

    Args:
      context: ``(E, C, H, W)``, at least two frames, with the time between them that is between
        lead times.
      leads: L.
      boundary: what comes in at a border: with ``"open"`` nothing, with ``"periodic"`` what went
        out at the other.

    Returns:
      ``(E, L, H, W)`` float64.

    Raises:
      ValueError: for fewer than two frames or another boundary.
    """
    if context.ndim != 4 or context.shape[1] < 2:
        raise ValueError(
            f"motion is told from two frames: the context is of shape {context.shape}, give "
            "(events, at least 2, rows, columns)."
        )
    out = np.empty((len(context), leads, *context.shape[2:]))
    for event, (before, last) in enumerate(context[:, -2:]):
        velocity = motion(before, last, boundary)
        for lead in range(leads):
            out[event, lead] = moved(last, (lead + 1) * velocity, boundary)
    return out


def moved(field: np.ndarray, by: np.ndarray, boundary: Boundary = "open") -> np.ndarray:
    """A field that was moved down and to the right.

    Args:
      field: ``(H, W)``.
      by: ``(2,)`` rows and columns, in pixels.
      boundary: see ``lagrangian_persistence``.

    Returns:
      ``(H, W)`` float64.
    """
    mode = {"open": "constant", "periodic": "grid-wrap"}[_checked(boundary)]
    return ndimage.shift(np.asarray(field, np.float64), by, order=1, mode=mode)


def motion(before: np.ndarray, after: np.ndarray, boundary: Boundary = "open") -> np.ndarray:
    """How far the rain moved between two frames, by phase correlation (Kuglin & Hines, 1975).

    Logarithms of rates are correlated, so that one downpour does not decide; waves are weighted
    towards the long ones. The peak is refined on the continuous correlation around it. Frames with
    an open boundary fade out towards it.

    Args:
      before: ``(H, W)``.
      after: the same, later.
      boundary: see ``lagrangian_persistence``.

    Returns:
      ``(2,)`` rows and columns, in pixels, to a twentieth; at most half of the frame's sides. 0
      where a frame is dry or uniform.
    """
    chex.assert_rank([before, after], 2)
    chex.assert_equal_shape([before, after])
    height, width = before.shape
    window = np.ones(())
    if _checked(boundary) == "open":
        window = np.outer(*(np.hanning(side + 2)[1:-1] for side in before.shape))
    transforms = []
    for field in (before, after):
        level = np.log(np.maximum(field, LEAST_RATE))
        if np.ptp(level) == 0:
            return np.zeros(2)
        transforms.append(np.fft.fft2(window * (level - level.mean())))
    cross = transforms[0].conj() * transforms[1]
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    # The mean moves nowhere.
    size = np.abs(cross)
    cross = np.where(size > 1e-9 * size.max(), cross / np.maximum(size, 1e-300), 0.0)
    cross[0, 0] = 0.0
    cross *= np.exp(-(_SMOOTH**2) * (rows**2 + columns**2))
    peak = np.unravel_index(np.fft.ifft2(cross).real.argmax(), cross.shape)
    start = [at - side if at > side / 2 else at for at, side in zip(peak, cross.shape, strict=True)]
    steps = np.arange(-1, 1 + _FINE / 2, _FINE)
    near_row, near_column = (at + steps for at in start)
    fine = (
        np.exp(2j * np.pi * near_row[:, None] * rows[:, 0])
        @ cross
        @ np.exp(2j * np.pi * columns[0][:, None] * near_column)
    ).real
    i, j = np.unravel_index(fine.argmax(), fine.shape)
    return np.array([near_row[i], near_column[j]])


def pysteps_steps(
    maps: np.ndarray,
    steps: int,
    *,
    pixel_km: float,
    members: int = 20,
    minutes: float = 5.0,
    motion_method: str = "LK",
    seed: int = 0,
) -> np.ndarray:
    """The probabilistic nowcast STEPS of pySTEPS (Pulkkinen et al., 2019), for one event.

    Rates above 0.1 mm/h in decibels, a cascade of 8 levels with an autoregression of order 2 along
    the motion, non-parametric noise, incremental mask and matching of distributions.

    Args:
      maps: ``(3, H, W)``, the latest of which is that of the start.
      steps: maps to forecast; every sixth of 5 minutes is a frame of 30.
      pixel_km: side of a pixel.
      members: M.
      minutes: between maps.
      motion_method: LK is Lucas and Kanade's, which needs opencv-python-headless; VET does not.
      seed: of the noise.

    Returns:
      ``(M, steps, H, W)`` mm/h.

    Raises:
      ModuleNotFoundError: if pysteps is not installed.
      ValueError: for another number of maps, or maps without rain.
    """
    if maps.ndim != 3 or len(maps) != 3:
        raise ValueError(
            f"maps are of shape {maps.shape}: give (3, rows, columns), for an autoregression of "
            "order 2."
        )
    if not (maps[-1] >= LEAST_RATE).any():
        raise ValueError(
            f"the last map has no rain of {LEAST_RATE} mm/h: there is nothing to forecast from."
        )
    transformation, motions, nowcasts = (
        _pysteps(name) for name in ("utils.transformation", "motion", "nowcasts")
    )
    dry = 10 * np.log10(LEAST_RATE)
    levels, _ = transformation.dB_transform(
        np.asarray(maps, np.float64), threshold=LEAST_RATE, zerovalue=-15.0
    )
    # It tells its progress on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        velocity = motions.get_method(motion_method)(levels)
        forecast = nowcasts.get_method("steps")(
            levels,
            velocity,
            steps,
            n_ens_members=members,
            n_cascade_levels=8,
            precip_thr=dry,
            kmperpixel=pixel_km,
            timestep=minutes,
            noise_method="nonparametric",
            noise_stddev_adj="auto",
            mask_method="incremental",
            probmatching_method="cdf",
            seed=seed,
        )
    rates, _ = transformation.dB_transform(forecast, threshold=dry, inverse=True)
    return np.nan_to_num(rates, nan=0.0)


def _checked(boundary: Boundary) -> Boundary:
    if boundary not in ("open", "periodic"):
        raise ValueError(f"boundary={boundary!r} is not known: choose 'open' or 'periodic'.")
    return boundary


def _pysteps(name: str) -> Any:
    try:
        return importlib.import_module(f"pysteps.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"STEPS needs pysteps and what that needs ({error.name} is not installed): run `pip "
            "install worldmodels_jax[nowcast]`, with a C compiler at hand."
        ) from error
