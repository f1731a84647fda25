"""Area interpolation as two small tables of overlaps, exact to the last bit."""

import functools
import math

import numpy as np


@functools.cache
def overlaps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which input pixels each output pixel covers, and how much of each in whole units.

    Both rows of pixels span the same length, on which an input pixel is ``size_out / g`` units
    long and an output pixel ``size_in / g`` (g their greatest common divisor): all overlaps are
    integers, and those of an output pixel add up to ``size_in / g``.

    Args:
      size_in: the number of input pixels along this axis.
      size_out: the number of output pixels along this axis.

    Returns:
      indices and weights, (size_out, K) int32 each, K the most input pixels that an output pixel
      touches; where it touches fewer, the weight is 0. Read-only, since they are cached.
    """
    common = math.gcd(size_in, size_out)
    unit_in, unit_out = size_out // common, size_in // common
    start_out = np.arange(size_out, dtype=np.int32)[:, None] * unit_out
    first, last = start_out // unit_in, (start_out + unit_out - 1) // unit_in
    touched = first + np.arange((last - first).max() + 1, dtype=np.int32)
    start_in = touched * unit_in
    shared = np.minimum(start_in + unit_in, start_out + unit_out) - np.maximum(start_in, start_out)
    indices, weights = np.minimum(touched, size_in - 1), np.maximum(shared, 0)
    indices.setflags(write=False)
    weights.setflags(write=False)
    return indices, weights


def area_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages the pixels that each output pixel covers, weighted by area.

    Sums and division are of integers, so the result is the exact average, rounded to the nearest
    integer with halves going up, on any machine. (Few input pixels meet one output pixel, so
    gathering them beats a dense matrix product, whose threads would fight with the learner's.)

    Args:
      image: (H, W, C) uint8.
      size: the output's height and width.

    Returns:
      (*size, C) uint8.

    Raises:
      ValueError: if the sizes are so large and awkward that the sums could pass 2^31.
    """
    rows, columns = overlaps(image.shape[0], size[0]), overlaps(image.shape[1], size[1])
    area = int(rows[1][0].sum()) * int(columns[1][0].sum())
    if (2 * 255 + 1) * area >= 2**31:
        raise ValueError(
            f"Resizing {image.shape[0]}x{image.shape[1]} to {size[0]}x{size[1]} needs sums beyond "
            "32 bits; choose a size that shares factors with the input."
        )
    sums = _weighted_sum(_weighted_sum(image, *rows, axis=0), *columns, axis=1)
    return ((2 * sums + area) // (2 * area)).astype(np.uint8)


def _weighted_sum(
    image: np.ndarray, indices: np.ndarray, weights: np.ndarray, axis: int
) -> np.ndarray:
    column = (-1, *[1] * (image.ndim - 1 - axis))
    return sum(
        np.take(image, index, axis=axis) * weight.reshape(column)
        for index, weight in zip(indices.T, weights.T, strict=True)
    )
