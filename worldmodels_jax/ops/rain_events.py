"""Which sequences and which patches of rain count as extreme."""

import jax
import jax.numpy as jnp

HOURS = 3.0  # over which accumulations are told


def sequence_label(rates: jax.Array, threshold: float, region: tuple[int, ...] = ()) -> jax.Array:
    """Whether the mean accumulation over a region is above a threshold.

    Args:
      rates: ``(..., T, H, W)`` mm/h, frames spread evenly over 3 hours.
      threshold: mm in 3 hours.
      region: (first column, last column + 1, first row, last row + 1); empty for all pixels.

    Returns:
      ``(...)`` float32, 0 or 1.
    """
    if region:
        left, right, top, bottom = region
        rates = rates[..., top:bottom, left:right]
    return (HOURS * rates.mean((-3, -2, -1)) > threshold).astype(jnp.float32)


def token_labels(rates: jax.Array, threshold: float, cells: tuple[int, int]) -> jax.Array:
    """Whether it rains above a threshold in each patch of frames.

    Args:
      rates: ``(..., H, W)`` mm/h.
      threshold: mm in 3 hours, of rain that stays as it is.
      cells: h and w, patches along the sides.

    Returns:
      ``(..., h w)`` float32, 0 or 1, row by row.
    """
    *leading, height, width = rates.shape
    rows, columns = cells
    patches = rates.reshape(*leading, rows, height // rows, columns, width // columns)
    means = patches.mean((-3, -1)).reshape(*leading, rows * columns)
    return (HOURS * means > threshold).astype(jnp.float32)
