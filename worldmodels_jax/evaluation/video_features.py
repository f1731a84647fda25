"""Features of videos by fixed random 3D convolutions: a declared stand-in for those of FVD.

Distances between them rank corruptions of the same videos, in space and in time, but they are not
FVD and no number of theirs can be compared with a published one. Outputs name them
``frechet_random``.
"""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.evaluation.batches import in_batches

FEATURES = 64
_SEED = 0  # part of the definition
_CHANNELS = (32, 64, 128)
_STRIDES = (1, 2, 2)
_BATCH = 8


def random_video_features(videos: np.ndarray) -> np.ndarray:
    """Statistics of videos under a fixed random network.

    A frame and its difference to the next (0 for the last) are stacked as channels: most of a frame
    is what does not move, and would drown what does. Three layers of 3x3x3 convolution (32, 64, 128
    channels, strides (1, 2, 2), no bias, kernels uniform with He's variance), each with ReLU; mean
    and standard deviation over space and time of every channel of every layer; a fixed random
    orthonormal projection of these 448 numbers to 64.

    Args:
      videos: ``(B, T, H, W, C)`` uint8, of any size and number of channels.

    Returns:
      ``(B, 64)`` float32, the same in every version of JAX but for rounding.
    """
    chex.assert_rank(videos, 5)
    chex.assert_type(videos, np.uint8)
    kernels, projection = _weights(videos.shape[-1])
    return in_batches(lambda batch: _statistics(kernels, batch), videos, _BATCH) @ projection


@jax.jit
def _statistics(kernels: list[jax.Array], videos: jax.Array) -> jax.Array:
    """``(B, T, H, W, C) -> (B, 448)``."""
    frames = videos.astype(jnp.float32) / 127.5 - 1.0
    x = jnp.concatenate([frames, jnp.diff(frames, axis=1, append=frames[:, -1:])], -1)
    statistics = []
    for kernel in kernels:
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            _STRIDES,
            "SAME",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision=jax.lax.Precision.HIGHEST,  # GPUs would round to 10 bits
        )
        x = jax.nn.relu(x)
        statistics += [x.mean((1, 2, 3)), x.std((1, 2, 3))]
    return jnp.concatenate(statistics, -1)


@functools.cache
def _weights(channels: int) -> tuple[list[jax.Array], np.ndarray]:
    """Kernels (3, 3, 3, I, O) for videos of C channels, and the projection (448, 64)."""
    bits = np.random.PCG64(_SEED)

    def uniform(*shape: int) -> np.ndarray:
        # From the raw bits, which NumPy keeps as they are; its distributions may change.
        return (bits.random_raw(math.prod(shape)) >> 11).reshape(shape) * 2.0**-53

    tall = uniform(2 * sum(_CHANNELS), FEATURES) - 0.5
    # Fréchet distances do not depend on the signs and rotations that QR leaves open.
    projection = np.linalg.qr(tall)[0].astype(np.float32)
    kernels = []
    for inputs, outputs in itertools.pairwise((2 * channels, *_CHANNELS)):
        bound = math.sqrt(6 / (27 * inputs))
        kernel = (2 * uniform(3, 3, 3, inputs, outputs) - 1) * bound
        kernels.append(jnp.asarray(kernel, jnp.float32))
    return kernels, projection
