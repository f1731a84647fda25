"""Dreams beside reality: panels of real and dreamed frames, written as GIF or contact sheet."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from worldmodels_jax.files import replacing

CONTEXT_COLOUR = (64, 128, 255)  # blue: the model saw this frame
DREAM_COLOUR = (255, 144, 32)  # orange: the model made the frame up
_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_HEADER, _BORDER, _GAP = 14, 3, 4  # pixels
_READABLE_HEIGHT, _LABEL_WIDTH = 160, 60  # pixels; the width holds the longest label

# The first seven are Okabe and Ito's, told apart by colour-blind readers as well.
_PLANE_COLOURS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
    (255, 255, 255),
    (150, 80, 230),
    (150, 150, 150),
)


def dream_panels(
    real: np.ndarray, dream: np.ndarray, *, context: int = 0, scale: int | None = None
) -> np.ndarray:
    """Sets real frames, dreamed frames and their absolute difference side by side.

    Each panel is enlarged without smoothing, labelled "real", "dream" or "difference", and has a
    border: blue while the model was still shown the real frames, orange once it dreams.

    Args:
      real: (T, H, W, C) uint8, what happened.
      dream: (T, H, W, C) uint8, what the model decoded: reconstructions first, then the dream.
      context: how many of the T frames the model saw.
      scale: pixels per pixel; None makes a panel at least 160 pixels high and wide enough for its
        label.

    Returns:
      (T, H', W', 3) uint8 RGB, for ``write_gif`` or ``write_contact_sheet``.

    Raises:
      ValueError: frames that are not uint8 or differ in shape, a context beyond T, a scale below 1.
    """
    _check_frames(real, rank=4)
    _check_frames(dream, rank=4)
    if real.shape != dream.shape:
        raise ValueError(f"real frames are {real.shape}, dreamed ones {dream.shape}; align them")
    T, H, W, _ = real.shape
    if not 0 <= context <= T:
        raise ValueError(f"context is {context}; of {T} frames the model saw between 0 and {T}")
    if scale is None:
        scale = max(-(-_READABLE_HEIGHT // H), -(-_LABEL_WIDTH // W))
    if scale < 1:
        raise ValueError(f"scale is {scale}; give a whole number of at least 1, or None")
    difference = np.abs(real.astype(np.int16) - dream).astype(np.uint8)
    seen = np.arange(T)[:, None] < context
    borders = np.where(seen, CONTEXT_COLOUR, DREAM_COLOUR).astype(np.uint8)
    panels = [
        _panel(_enlarge(to_rgb(frames), scale), label, borders)
        for label, frames in (("real", real), ("dream", dream), ("difference", difference))
    ]
    gap = np.full((*panels[0].shape[:2], _GAP, 3), _BACKGROUND, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=2)


def to_rgb(frames: np.ndarray) -> np.ndarray:
    """Makes any frames visible.

    Three channels are RGB and stay, one is grey. Any other number are object planes, each with a
    colour of its own: a pixel has the mean of its planes' colours, weighted by their intensities,
    and the brightness of the strongest. Soft, decoded planes are thus dimmer, not of another hue.

    Args:
      frames: (..., H, W, C) uint8.

    Returns:
      (..., H, W, 3) uint8.

    Raises:
      ValueError: frames that are not uint8, have fewer than three axes or no channel.
    """
    _check_frames(frames)
    channels = frames.shape[-1]
    if channels == 3:
        return frames
    if channels == 1:
        return np.repeat(frames, 3, axis=-1)
    weights = frames.astype(np.float32) / 255
    total = weights.sum(axis=-1, keepdims=True)
    hue = weights @ _palette(channels) / np.where(total > 0, total, 1)
    return np.rint(hue * weights.max(axis=-1, keepdims=True)).astype(np.uint8)


def write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes an endlessly repeated GIF; if interrupted, an earlier file stays whole.

    Args:
      path: the file; its directory is made if missing.
      frames: (T, H, W, C) uint8, shown as by ``to_rgb``.
      fps: frames per second. A GIF counts time in hundredths of a second; viewers slow anything
        faster than 50 down.

    Raises:
      ValueError: no frames, not of that kind, or fps out of range.
    """
    _check_frames(frames, rank=4)
    if not 0 < fps <= 50:
        raise ValueError(f"fps is {fps}; a GIF plays more than 0 and at most 50 frames per second")
    images = [Image.fromarray(frame) for frame in to_rgb(frames)]
    with replacing(path) as temporary:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=10 * round(100 / fps),
            loop=0,
        )


def write_contact_sheet(path: Path, frames: np.ndarray, columns: int) -> None:
    """Writes all frames into one PNG, row by row; if interrupted, an earlier file stays whole.

    Args:
      path: the file; its directory is made if missing.
      frames: (T, H, W, C) uint8, shown as by ``to_rgb``.
      columns: frames in a row.

    Raises:
      ValueError: no frames, not of that kind, or fewer columns than one.
    """
    _check_frames(frames, rank=4)
    if columns < 1:
        raise ValueError(f"columns is {columns}; a row has at least 1 frame")
    T, H, W, _ = frames.shape
    columns = min(columns, T)
    rows = -(-T // columns)
    size = (rows * (H + _GAP) - _GAP, columns * (W + _GAP) - _GAP, 3)
    sheet = np.full(size, _BACKGROUND, np.uint8)
    for t, frame in enumerate(to_rgb(frames)):
        top, left = t // columns * (H + _GAP), t % columns * (W + _GAP)
        sheet[top : top + H, left : left + W] = frame
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def _check_frames(frames: np.ndarray, rank: int | None = None) -> None:
    right_rank = frames.ndim >= 3 if rank is None else frames.ndim == rank
    if frames.dtype != np.uint8 or not right_rank or frames.size == 0:
        wanted = "(..., H, W, C)" if rank is None else "(T, H, W, C)"
        raise ValueError(
            f"frames are {frames.dtype} of shape {frames.shape}; give at least one frame, "
            f"{wanted} uint8 in 0..255"
        )


def _palette(channels: int) -> np.ndarray:
    """(C, 3) float32 in 0..255; beyond the table, hues a golden section apart never meet."""
    extra = max(0, channels - len(_PLANE_COLOURS))
    hues = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.6, 1.0) for k in range(extra)]
    colours = [*_PLANE_COLOURS, *(tuple(255 * part for part in hue) for hue in hues)]
    return np.array(colours[:channels], np.float32)


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _panel(frames: np.ndarray, label: str, borders: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) with a border of colour (T, 3), under a header with the label."""
    T, H, W, _ = frames.shape
    panel = np.empty((T, _HEADER + H + 2 * _BORDER, W + 2 * _BORDER, 3), np.uint8)
    panel[:] = borders[:, None, None]
    panel[:, _HEADER + _BORDER : -_BORDER, _BORDER:-_BORDER] = frames
    header = Image.new("RGB", (W + 2 * _BORDER, _HEADER), _BACKGROUND)
    ImageDraw.Draw(header).text((_BORDER, 1), label, fill=_TEXT)
    panel[:, :_HEADER] = np.asarray(header)
    return panel
