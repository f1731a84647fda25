"""Frames as networks see them: floats in [0, 1], square where grids of tokens must be."""

import jax
import jax.numpy as jnp


def to_square(frames: jax.Array, size: int) -> jax.Array:
    """Pads frames ``(..., H, W, C)`` with zeros, below and to the right, to ``(..., S, S, C)``."""
    height, width = frames.shape[-3:-1]
    pad = [(0, 0)] * (frames.ndim - 3) + [(0, size - height), (0, size - width), (0, 0)]
    return jnp.pad(frames, pad)


def from_square(frames: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of ``to_square`` for frames of ``shape``, (H, W, ...)."""
    height, width = shape[:2]
    return frames[..., :height, :width, :]


def from_uint8(frames: jax.Array) -> jax.Array:
    """Pixels 0..255 as float32 in [0, 1]."""
    return frames.astype(jnp.float32) / 255.0


def to_uint8(frames: jax.Array) -> jax.Array:
    """The nearest pixels 0..255 of frames in [0, 1]; what lies outside is cut off."""
    return jnp.round(jnp.clip(frames, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def to_pixels(frames: jax.Array) -> jax.Array:
    """Frames confined to [0, 1] and rounded to what uint8 can tell apart, still float32."""
    return jnp.round(jnp.clip(frames, 0.0, 1.0) * 255.0) / 255.0
