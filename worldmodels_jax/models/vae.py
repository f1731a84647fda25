"""α-TCVAE and its siblings: Gaussian autoencoders of images that differ in how they regularise.

α-TCVAE (Meo, 2026, chapter 1) weighs a KL to the product of the image's own posteriors against the
usual KL; VAE, β-VAE, FactorVAE, β-TCVAE, β-VAE with HFS and the annealed β-VAE are what it is
compared with. ``vae_losses.VaeLossConfig`` has all their equations.

What to expect: the product's KL has a positive floor and pulls the means of an image together. The
equation of the text spreads information over all latents, and pays for it in reconstruction,
diversity and DCI; other readings (``loss.ceb``) do not. On 16x16 sprites none of the readings
showed everything that the thesis reports at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.models.offline import Batch, LossConfig, PartLoss, Samples, SystemConfig
from worldmodels_jax.models.vae_losses import (
    Posterior,
    VaeLossConfig,
    gather,
    pixel_nll,
    regulariser,
    validate_loss,
)
from worldmodels_jax.nn import vae_networks
from worldmodels_jax.ops import total_correlation as tc
from worldmodels_jax.ops.frames import from_uint8
from worldmodels_jax.types import DataSpec, Metrics, PyTree

__all__ = ["SHIFTS", "Vae", "VaeConfig", "VaeLossConfig", "make_vae"]

SHIFTS = (-10, -8, -6, -4, -2, -1, 0, 1, 2, 4, 6, 8, 10)  # of a traversal, in deviations
_SHOWN = 8  # images in a row of samples


@dataclasses.dataclass(frozen=True)
class VaeConfig(SystemConfig):
    """Encoder, decoder and, for FactorVAE, discriminator.

    Attributes:
      network: mlp sees all pixels at once, for images of up to about 16x16; conv is for larger
        ones, whose sides can be halved by each of its levels.
      num_latents: K.
      widths: of the hidden layers of mlp.
      channels: of the levels of conv.
      hidden: units of the dense layer of conv.
      discriminator_width: units of each layer of FactorVAE's discriminator.
      discriminator_depth: layers of it.
    """

    network: Literal["mlp", "conv"] = "mlp"
    num_latents: int = 10
    widths: tuple[int, ...] = (256, 128)
    channels: tuple[int, ...] = (32, 32, 64, 64)
    hidden: int = 256
    discriminator_width: int = 1000
    discriminator_depth: int = 6

    def make(self, loss: LossConfig, data: DataSpec, axis_name: str | None, dtype: Any) -> "Vae":
        """See ``SystemConfig``."""
        if not isinstance(loss, VaeLossConfig):
            raise ValueError(
                f"loss is a {type(loss).__name__}, which VaeConfig does not minimise: give a "
                "VaeLossConfig."
            )
        return make_vae(self, loss, data, axis_name, dtype)


class Vae(NamedTuple):
    """An autoencoder as pure functions; an ``OfflineSystem``.

    Attributes:
      init: ``(key) -> variables``, of which ``params`` are ``{"model": {"encoder", "decoder"}}``
        and FactorVAE's ``"discriminator"``.
      losses: of ``"model"`` and, for FactorVAE, ``"discriminator"``: the model learns from the
        first half of a batch, the discriminator from it against the permuted latents of the second.
      samples: ``reconstruction``: images over their reconstructions from the mean; ``prior``:
        decoded noise; ``traversal``: a row a latent, the first image with that latent shifted by
        ``SHIFTS`` of its posterior's deviations.
      encode: ``(variables, image (B, H, W, C) uint8) -> mean, log_variance``, (B, K) float32 each;
        the mean is the representation.
      decode: ``(variables, z (B, K)) -> logits (B, H, W, C)`` float32, whose sigmoid is the image.
    """

    init: Callable[[jax.Array], PyTree]
    losses: Mapping[str, PartLoss]
    samples: Samples
    encode: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]]
    decode: Callable[[PyTree, jax.Array], jax.Array]


class _Parts(NamedTuple):
    config: VaeConfig
    loss: VaeLossConfig
    data: DataSpec
    axis_name: str | None
    encoder: Any
    decoder: Any
    discriminator: Any


def make_vae(
    config: VaeConfig,
    loss: VaeLossConfig,
    data: DataSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Vae:
    """An autoencoder of a data set's ``image``.

    Args:
      config: sizes.
      loss: the objective.
      data: shape of the images; the number of them is a weight of the batch's estimates.
      axis_name: mapped axis that batches are split over; keys differ between devices then. What
        is estimated from a batch is so from all of it.
      dtype: of the computation; parameters, losses and statistics are float32.

    Returns:
      The pure functions.

    Raises:
      ValueError: for sizes that do not fit, or fields without effect, naming them.
    """
    shape = _image_shape(data)
    _validate(config, loss, shape)
    K = config.num_latents
    if config.network == "conv":
        sizes = (config.channels, config.hidden, dtype)
        encoder, decoder = (
            vae_networks.ConvEncoder(K, *sizes),
            vae_networks.ConvDecoder(shape, *sizes),
        )
    else:
        encoder = vae_networks.MlpEncoder(K, config.widths, dtype)
        decoder = vae_networks.MlpDecoder(shape, config.widths, dtype)
    discriminator = None
    if loss.kind == "factor_vae":
        discriminator = vae_networks.factor_discriminator(
            config.discriminator_width, config.discriminator_depth, dtype
        )
    m = _Parts(config, loss, data, axis_name, encoder, decoder, discriminator)
    losses: dict[str, PartLoss] = {"model": functools.partial(_model_loss, m)}
    if discriminator is not None:
        losses["discriminator"] = functools.partial(_discriminator_loss, m)
    return Vae(
        functools.partial(_init, m),
        losses,
        functools.partial(_samples, m),
        functools.partial(_encode, m),
        functools.partial(_decode, m),
    )


def _image_shape(data: DataSpec) -> tuple[int, ...]:
    shape = data.shapes.get("image", ())
    if len(shape) != 3:
        raise ValueError(
            f"an autoencoder of images needs an array image of (H, W, C), but {data.name} has "
            f"{dict(data.shapes)}: choose a data set of images."
        )
    return tuple(shape)


def _validate(config: VaeConfig, loss: VaeLossConfig, shape: tuple[int, ...]) -> None:
    uses = {
        "widths": ("model.network=mlp", config.network == "mlp"),
        "channels": ("model.network=conv", config.network == "conv"),
        "hidden": ("model.network=conv", config.network == "conv"),
        "discriminator_width": ("loss.kind=factor_vae", loss.kind == "factor_vae"),
        "discriminator_depth": ("loss.kind=factor_vae", loss.kind == "factor_vae"),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, (condition, used) in uses.items():
        value = getattr(config, name)
        if not used and value != defaults[name]:
            raise ValueError(
                f"model.{name} is {value}, which only {condition} uses: leave it at "
                f"{defaults[name]}, or set {condition}."
            )
    for name, value in dataclasses.asdict(config).items():
        if (
            name != "network"
            and min(value if isinstance(value, tuple) else (value,), default=1) < 1
        ):
            raise ValueError(f"model.{name} is {value}: give sizes of at least 1.")
    factor = 2 ** len(config.channels)
    if config.network == "conv" and (not config.channels or any(s % factor for s in shape[:2])):
        raise ValueError(
            f"images of {shape[0]}x{shape[1]} cannot be halved {len(config.channels)} times: set "
            "model.channels to fewer levels, at least one, or model.network=mlp."
        )
    validate_loss(loss, config.num_latents)


def _init(m: _Parts, key: jax.Array) -> PyTree:
    key_encoder, key_decoder, key_discriminator = jax.random.split(key, 3)
    z = jnp.zeros((1, m.config.num_latents))
    image = jnp.zeros((1, *_image_shape(m.data)))
    params = {
        "model": {
            "encoder": m.encoder.init(key_encoder, image)["params"],
            "decoder": m.decoder.init(key_decoder, z)["params"],
        }
    }
    if m.discriminator is not None:
        params["discriminator"] = m.discriminator.init(key_discriminator, z)["params"]
    return {"params": params}


def _encode(m: _Parts, variables: PyTree, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    chex.assert_shape(image, (None, *_image_shape(m.data)))
    chex.assert_type(image, jnp.uint8)
    params = variables["params"]["model"]["encoder"]
    mean, log_variance = jnp.split(m.encoder.apply({"params": params}, from_uint8(image)), 2, -1)
    if m.loss.logvar_clip is not None:
        log_variance = jnp.clip(log_variance, *m.loss.logvar_clip)
    return mean, log_variance


def _decode(m: _Parts, variables: PyTree, z: jax.Array) -> jax.Array:
    chex.assert_shape(z, (None, m.config.num_latents))
    return m.decoder.apply({"params": variables["params"]["model"]["decoder"]}, z)


def _discriminate(m: _Parts, variables: PyTree, z: jax.Array) -> jax.Array:
    return m.discriminator.apply({"params": variables["params"]["discriminator"]}, z)


def _posterior(m: _Parts, variables: PyTree, image: jax.Array, key: jax.Array) -> Posterior:
    mean, log_variance = _encode(m, variables, image)
    noise = jax.random.normal(key, mean.shape)
    return Posterior(mean, log_variance, mean + jnp.exp(0.5 * log_variance) * noise)


def _halves(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    if len(image) % 2:
        raise ValueError(
            f"FactorVAE's discriminator compares the halves of a batch, but a device has "
            f"{len(image)} images: set training.batch_size to an even number for each device."
        )
    return image[: len(image) // 2], image[len(image) // 2 :]


def _model_loss(
    m: _Parts, variables: PyTree, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
    key_sample, key_regulariser = jax.random.split(key)
    image, adversary = batch["image"], None
    if m.discriminator is not None:
        image, _ = _halves(image)
    posterior = _posterior(m, variables, image, key_sample)
    if m.discriminator is not None:
        adversary = _discriminate(m, variables, posterior.sample)
    logits = _decode(m, variables, posterior.sample)
    reconstruction = jnp.mean(pixel_nll(m.loss.likelihood, logits, from_uint8(image)))
    rest, metrics = regulariser(
        m.loss, posterior, adversary, key_regulariser, step, m.data.num_train, m.axis_name
    )
    loss = reconstruction + rest
    return loss, ({}, {"loss": loss, "reconstruction": reconstruction, **metrics})


def _discriminator_loss(
    m: _Parts, variables: PyTree, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
    del step
    key_sample, key_permute = jax.random.split(key)
    posterior = _posterior(m, variables, batch["image"], key_sample)
    joint, other = _halves(jax.lax.stop_gradient(posterior.sample))
    # Permuted over all devices, of which each takes as many as it brought.
    permuted = tc.permute_dims(key_permute, gather(other, m.axis_name))[: len(other)]
    loss = tc.discriminator_loss(
        _discriminate(m, variables, joint), _discriminate(m, variables, permuted)
    )
    return loss, ({}, {"loss": loss})


def _samples(m: _Parts, variables: PyTree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
    image = batch["image"][:_SHOWN]
    mean, log_variance = _encode(m, variables, image)
    deviation = jnp.exp(0.5 * log_variance[0])
    shifts = jnp.asarray(SHIFTS, jnp.float32)[:, None, None] * jnp.diag(deviation)  # (Q, K, K)
    traversals = (mean[0] + shifts).swapaxes(0, 1)  # a row a latent

    def show(z: jax.Array) -> jax.Array:
        pixels = jax.nn.sigmoid(_decode(m, variables, z.reshape(-1, z.shape[-1])))
        return pixels.reshape(*z.shape[:-1], *pixels.shape[1:])

    noise = jax.random.normal(key, (2, _SHOWN, m.config.num_latents))
    return {
        "reconstruction": jnp.stack([from_uint8(image), show(mean)]),
        "prior": show(noise),
        "traversal": show(traversals),
    }
