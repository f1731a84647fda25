"""What IRIS and Delta-IRIS have in common beside their transformers: frames and losses."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from worldmodels_jax.data import views
from worldmodels_jax.data.views import Transitions
from worldmodels_jax.models.iris_config import (
    DynamicsConfig,
    ReconstructionConfig,
    ResnetTokenizerConfig,
    VQGANConfig,
)
from worldmodels_jax.models.iris_dynamics import Slots
from worldmodels_jax.nn import lpips
from worldmodels_jax.nn.delta_tokenizer import DeltaTokenizer
from worldmodels_jax.nn.iris_tokenizer import IrisTokenizer
from worldmodels_jax.nn.quantiser import COLLECTION, tokenizer_variables
from worldmodels_jax.ops import twohot
from worldmodels_jax.ops.collectives import masked_mean, pmean
from worldmodels_jax.ops.frames import from_square, from_uint8, to_square
from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record


class Networks(NamedTuple):
    """A model's networks and what they were made for: the first argument of its functions."""

    config: Any  # DeltaIrisConfig or IrisConfig
    spec: EnvSpec
    axis_name: str | None
    tokenizer: DeltaTokenizer | IrisTokenizer
    dynamics: Any  # DeltaDynamics or IrisDynamics
    lpips: Mapping[str, np.ndarray] | None  # weights of the perceptual loss

    def frames(self, batch: Record) -> jax.Array:
        """The observations ``(B, T, S, S, C)`` in [0, 1], padded to a square."""
        return to_square(from_uint8(batch.observation), self.tokenizer.image_size)

    def tokenize(self, variables: PyTree, method: Any, *args: Any) -> Any:
        """A method of the tokenizer, by name, without update."""
        return self.tokenizer.apply(tokenizer_variables(variables), *args, method=method)


def make_tokenizer(
    config: ResnetTokenizerConfig | VQGANConfig, spec: EnvSpec, axis_name: str | None, dtype: Any
) -> DeltaTokenizer | IrisTokenizer:
    """The autoencoder that a config asks for."""
    common: dict[str, Any] = {
        "image_size": config.image_size,
        "image_channels": spec.observation_shape[-1],
        "num_tokens": config.num_tokens,
        "num_codes": config.num_codes,
        "code_size": config.code_size,
        "latent": config.latent,
        "commitment": config.commitment_weight,
        "axis_name": axis_name,
        "dtype": dtype,
    }
    if isinstance(config, VQGANConfig):
        return IrisTokenizer(
            channels=config.channels,
            blocks=config.blocks,
            attention_sizes=config.attention_sizes,
            **common,
        )
    return DeltaTokenizer(
        kind=config.kind,
        num_actions=spec.num_actions,
        encoder_channels=config.encoder_channels,
        embedder_channels=config.embedder_channels,
        embedder_latent=config.embedder_latent,
        action_channels=config.action_channels,
        decoder_channels=config.decoder_channels,
        halve_after=config.halve_after,
        patch=config.patch,
        revival_limit=config.revival_limit,
        **common,
    )


def dynamics_sizes(
    config: DynamicsConfig, tokenizer: ResnetTokenizerConfig | VQGANConfig, spec: EnvSpec
) -> dict[str, Any]:
    """The arguments that `Dynamics` takes."""
    return {
        "num_actions": spec.num_actions,
        "num_tokens": tokenizer.num_tokens,
        "num_codes": tokenizer.num_codes,
        "reward_classes": config.num_bins if config.reward == "two_hot" else 3,
        "max_blocks": config.max_blocks,
        "width": config.width,
        "layers": config.layers,
        "heads": config.heads,
        "dropout": config.dropout,
    }


# Losses


def load_perceptual(config: ReconstructionConfig) -> Mapping[str, np.ndarray] | None:
    """The weights of the perceptual loss, if the tokenizer is trained with it.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it does not hold them.
    """
    return lpips.load_lpips(config.lpips_file, "vgg") if config.lpips_weight else None


def reconstruction_loss(
    config: ReconstructionConfig,
    decoded: jax.Array,
    frames: jax.Array,
    valid: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, Metrics]:
    """The tokenizer's loss without the quantiser's (Delta-IRIS, section 3.1).

    ``l1 mean |d| + l2 mean d^2 + max_pixel mean_{B,T} max_{h,w,c} d^2``.

    Args:
      config: the weights.
      decoded: ``(B, T, H, W, C)``.
      frames: the same, in [0, 1].
      valid: ``(B, T)`` bool.
      axis_name: mapped axis the batch is split over.
    """
    error = (decoded - frames).reshape(*valid.shape, -1)
    square = error**2
    # Where the maximum is, in place of the maximum: the gradient of that compares it with squares
    # that XLA may have computed again with another rounding, and then divides 0 by 0.
    place = jnp.argmax(square, axis=-1, keepdims=True)
    largest = jnp.take_along_axis(square, place, -1)[..., 0]
    l1, l2, worst = (
        masked_mean(x, valid, axis_name)
        for x in (jnp.abs(error).mean(-1), square.mean(-1), largest)
    )
    loss = config.l1_weight * l1 + config.l2_weight * l2 + config.max_pixel_weight * worst
    return loss, {"reconstruction_l1": l1, "reconstruction_l2": l2, "max_pixel_error": worst}


def targets(config: DynamicsConfig, batch: Record) -> Transitions:
    """What the transitions of a batch are trained on; ``terminated`` is what counts as an end."""
    target = views.transitions(batch)
    if config.truncation_is_end:
        target = target._replace(terminated=batch.is_last[:, 1:])
    return target


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """``-log p(class)`` in nats: ``(..., V), (...) int32 -> (...)``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), classes)


def prediction_loss(
    config: DynamicsConfig,
    slots: Slots,
    tokens: jax.Array,
    token_valid: jax.Array,
    target: Transitions,
    axis_name: str | None,
) -> tuple[jax.Array, Metrics]:
    """The transformer's loss: cross-entropies of tokens, rewards and ends.

    Args:
      config: the weights.
      slots: the logits.
      tokens: ``(B, T', K)`` int32, T' that of the slots.
      token_valid: ``(B, T', K)`` bool.
      target: rewards and ends.
      axis_name: mapped axis the batch is split over.
    """

    def mean(x: jax.Array) -> jax.Array:
        return masked_mean(x, target.valid, axis_name)

    if config.reward == "two_hot":
        bins = twohot.symlog_bins(config.num_bins)
        reward = twohot.two_hot_symlog_loss(slots.reward, target.reward, bins)
    else:
        reward = cross_entropy(slots.reward, jnp.sign(target.reward).astype(jnp.int32) + 1)
    reward_loss = mean(reward)
    ended = target.terminated.astype(jnp.int32)
    termination_loss = mean(cross_entropy(slots.termination, ended))
    token_loss = masked_mean(cross_entropy(slots.tokens, tokens), token_valid, axis_name)
    correct = (slots.tokens.argmax(-1) == tokens).astype(jnp.float32)
    loss = (
        config.token_weight * token_loss
        + config.reward_weight * reward_loss
        + config.termination_weight * termination_loss
    )
    metrics = {
        "token_loss": token_loss,
        "token_accuracy": masked_mean(correct, token_valid, axis_name),
        "token_perplexity": jnp.exp(pmean(token_loss, axis_name)),
        "reward_loss": reward_loss,
        "termination_loss": termination_loss,
    }
    return loss, metrics


class TokenizerLoss(NamedTuple):
    """The tokenizer's loss and what else came of computing it."""

    loss: jax.Array
    state: PyTree  # the model state after the codebook's update
    metrics: Metrics
    tokens: jax.Array  # of the batch, by the codebook before the update


def tokenizer_loss(
    m: Networks,
    variables: PyTree,
    frames: jax.Array,
    previous: jax.Array | None,
    action: jax.Array | None,
    valid: jax.Array,
    key: jax.Array,
) -> TokenizerLoss:
    """Reconstruction and quantisation; the codebook follows what it has quantised.

    Args:
      m: the networks.
      variables: of the model.
      frames: ``(B, T, S, S, C)`` in [0, 1].
      previous: the frames before them, or None.
      action: ``(B, T)`` int32, that led from these to those, or None.
      valid: ``(B, T)`` bool.
      key: a PRNG key.
    """

    def run(tokenizer: Any) -> Any:
        codes = tokenizer.encode(frames, previous, action)
        decoded = tokenizer.decode(codes.vectors, previous, action)
        tokenizer.update(codes, valid, key)
        return codes, decoded, tokenizer.entropy(codes, valid)

    (codes, decoded, entropy), state = m.tokenizer.apply(
        tokenizer_variables(variables), method=run, mutable=[COLLECTION]
    )
    # What a frame was padded with is no target.
    shape = m.spec.observation_shape
    loss, metrics = reconstruction_loss(
        m.config.tokenizer,
        from_square(decoded, shape),
        from_square(frames, shape),
        valid,
        m.axis_name,
    )
    if m.lpips is not None:
        x, y = (2.0 * from_square(x, shape) - 1.0 for x in (decoded, frames))
        distance = lpips.lpips(variables[lpips.COLLECTION], x, y, "vgg")
        metrics["perceptual_loss"] = masked_mean(distance, valid, m.axis_name)
        loss = loss + m.config.tokenizer.lpips_weight * metrics["perceptual_loss"]
    quantiser = masked_mean(codes.loss, valid, m.axis_name)
    metrics |= {"quantiser_loss": quantiser, "codebook_entropy": entropy}
    loss = loss + quantiser
    return TokenizerLoss(loss, state, {"tokenizer_loss": loss, **metrics}, codes.tokens)
