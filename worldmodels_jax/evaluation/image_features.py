"""Features of images, in which the diversity and the fidelity of generated ones are measured.

No network trained on photographs is shipped. With a file of Inception's weights there is that of
the published distances; without, convolutions that nobody trained, and a network trained to tell
the data set's own factors. Scores bear a feature network's name, and those of different networks
cannot be compared.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.evaluation.batches import in_batches
from worldmodels_jax.evaluation.diversity import vendi_score
from worldmodels_jax.evaluation.factor_networks import fit_factor_network
from worldmodels_jax.evaluation.frechet import frechet_distance
from worldmodels_jax.nn import inception as inception_v3
from worldmodels_jax.nn.vae_networks import ConvTrunk
from worldmodels_jax.ops.frames import from_uint8
from worldmodels_jax.weights import read_weights

_SEED = 7  # of all that is random and the same for everyone
_CHANNELS = (32, 64, 128)
_TRUNK = (32, 32, 64, 64)
_CENTRED_BY = 1_000  # images
_PROJECTED = 48


class ImageFeatures(NamedTuple):
    """A feature network.

    Attributes:
      name: ends the names of its scores.
      embed: ``(B, H, W, C) in [0, 1] -> (B, D)``.
      centre: (D,), subtracted before directions are compared.
      projection: (D, D') onto what Gaussians are fitted to; None for all of D.
    """

    name: str
    embed: Callable[[jax.Array], jax.Array]
    centre: np.ndarray
    projection: np.ndarray | None = None

    def vendi(self, features: np.ndarray) -> float:
        """The Vendi score of n embedded images ``(n, D)``: how many different ones they are."""
        return vendi_score(features - self.centre)

    def frechet(self, a: np.ndarray, b: np.ndarray) -> float:
        """The Fréchet distance of embedded images, ``(n, D)`` and ``(n', D)``."""
        if self.projection is not None:
            a, b = a @ self.projection, b @ self.projection
        return frechet_distance(a, b)


def random_conv(images: np.ndarray) -> ImageFeatures:
    """``random``: three 3x3 convolutions of stride 2 with fixed random kernels, and ReLU.

    Features are the last map, flattened, behind its mean over the image. Vendi scores centre them
    by real images, for ReLU's features all point one way; Fréchet distances are those of a fixed
    random projection to 48 numbers, for which a few hundred images are enough.

    Args:
      images: (n, H, W, C) uint8, real; the first 1,000 are used.
    """
    chex.assert_rank(images, 4)
    rng = np.random.default_rng(_SEED)
    kernels, channels = [], images.shape[-1]
    for features in _CHANNELS:
        deviation = np.sqrt(2 / (9 * channels))
        kernels.append(jnp.asarray(deviation * rng.normal(size=(3, 3, channels, features)), "f4"))
        channels = features

    @jax.jit
    def embed(x: jax.Array) -> jax.Array:
        x = 2 * x - 1
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        return jnp.concatenate([x.mean((1, 2)), x.reshape(len(x), -1)], axis=-1)

    centre = embed_images(embed, images[:_CENTRED_BY]).mean(0)
    projection = rng.normal(size=(len(centre), _PROJECTED)) / np.sqrt(len(centre))
    return ImageFeatures("random", embed, centre, projection)


def factor_cnn(
    images: np.ndarray,
    factors: np.ndarray,
    key: jax.Array,
    *,
    steps: int = 2_000,
) -> ImageFeatures:
    """``factor``: the last hidden layer, 256 units, of a network trained to tell factors.

    It is the encoder's trunk of ``nn.vae_networks``, of as many of its four levels as can halve
    the images, with a softmax for each factor; trained with Adam at 0.001 on batches of 64. Train
    it once a data set: other keys are other features.

    Args:
      images: (n, H, W, C) uint8 to train on.
      factors: (n, M) int.
      key: PRNG key.
      steps: of training.

    Raises:
      ValueError: if a factor does not vary.
    """
    chex.assert_rank(images, 4)
    levels = 0
    while levels < len(_TRUNK) and not any(side % 2 ** (levels + 1) for side in images.shape[1:3]):
        levels += 1
    trunk = ConvTrunk(_TRUNK[:levels])
    key_init, key_train = jax.random.split(key)
    params = trunk.init(key_init, from_uint8(jnp.asarray(images[:1])))

    def apply(params: object, x: jax.Array) -> jax.Array:
        return trunk.apply(params, from_uint8(x))

    network = fit_factor_network(
        apply, params, images, factors, key_train, steps=steps, batch_size=64, rate=1e-3
    )
    embed = jax.jit(functools.partial(trunk.apply, network.trunk))
    return ImageFeatures("factor", embed, np.zeros(trunk.hidden))


def inception(path: str | Path) -> ImageFeatures:
    """``inception``: the 2,048 features that the Fréchet Inception distance is told in.

    Images are resized to 299x299, bilinearly, and grey ones stand for all three colours. The
    distance wants more images than there are features: 10,000 and more.

    Args:
      path: of the weights; see ``nn.inception`` for what the file holds.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no ``.npz`` file, or arrays are missing or of another shape.
    """
    # Arguments of the compiled function: what it closed over would be copied into its code.
    weights = read_weights(
        path,
        inception_v3.inception_weight_shapes(),
        what="Inception-v3",
        how="make it of PyTorch's file as worldmodels_jax/nn/inception.py says",
    )
    embed = functools.partial(_inception, jax.device_put(weights))
    return ImageFeatures("inception", embed, np.zeros(inception_v3.FEATURES))


@jax.jit
def _inception(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    side = inception_v3.RESOLUTION
    x = jax.image.resize(x, (len(x), side, side, x.shape[-1]), "bilinear", antialias=False)
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    return inception_v3.inception_features(weights, 2 * x - 1)


def embed_images(
    embed: Callable[[jax.Array], jax.Array], images: np.ndarray, batch_size: int = 100
) -> np.ndarray:
    """Features of uint8 images.

    Args:
      embed: see ``ImageFeatures``.
      images: (n, H, W, C) uint8.
      batch_size: images embedded at once.

    Returns:
      (n, D).
    """
    return in_batches(lambda x: embed(from_uint8(jnp.asarray(x))), images, batch_size)
