"""I3D's view of videos: the features of the Fréchet video distance (FVD).

Unterthiner et al. (2019), "FVD: A new Metric for Video Generation": a Fréchet distance between the
logits of I3D trained on Kinetics-400. The weights do not come with this library. They are read
from an ``.npz`` file with the arrays of ``nn.i3d.i3d_weight_shapes``, which the authors' checkpoint
``rgb_imagenet`` (github.com/google-deepmind/kinetics-i3d) is turned into by

    reader = tf.train.load_checkpoint("data/checkpoints/rgb_imagenet/model.ckpt")
    arrays = {
        name: reader.get_tensor(f"RGB/inception_i3d/{name}").reshape(shape)
        for name, shape in i3d_weight_shapes().items()
    }
    np.savez("i3d.npz", **arrays)
"""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.evaluation.batches import in_batches
from worldmodels_jax.nn.i3d import i3d_logits, i3d_weight_shapes
from worldmodels_jax.weights import read_weights

RESOLUTION = 224
_BATCH = 4  # videos at once: 48 frames of 224x224 are 0.6 GB after the first layer


def load_i3d(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of I3D from an ``.npz`` file.

    Args:
      path: of the file; see above for what it holds.

    Returns:
      The arrays by name, float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no ``.npz`` file, or arrays are missing or of another shape.
    """
    return read_weights(
        path,
        i3d_weight_shapes(),
        what="I3D",
        how="make it as worldmodels_jax/evaluation/i3d.py says, with kernels of (time, height, "
        "width, channels in, channels out), or leave FVD out",
    )


def i3d_features(
    weights: dict[str, np.ndarray], videos: np.ndarray, *, resolution: int = RESOLUTION
) -> np.ndarray:
    """Logits of videos, resized and scaled as I3D expects them.

    Args:
      weights: of ``load_i3d``.
      videos: ``(B, T, H, W, 3)`` uint8, of at least 9 frames for the last pooling to have two
        steps, as it was trained.
      resolution: height and width the frames are resized to, bilinearly with half-pixel centres
        and without antialiasing; FVD has 224.

    Returns:
      ``(B, 400)`` float32.
    """
    chex.assert_shape(videos, (None, None, None, None, 3))
    chex.assert_type(videos, np.uint8)

    on_device = jax.device_put(weights)
    return in_batches(lambda batch: _logits(on_device, batch, resolution), videos, _BATCH)


@functools.partial(jax.jit, static_argnums=2)
def _logits(weights: dict[str, jax.Array], videos: jax.Array, resolution: int) -> jax.Array:
    frames = videos.astype(jnp.float32) / 127.5 - 1.0
    shape = (*videos.shape[:2], resolution, resolution, 3)
    return i3d_logits(weights, jax.image.resize(frames, shape, "bilinear", antialias=False))
