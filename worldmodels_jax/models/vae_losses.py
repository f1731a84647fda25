"""What variational autoencoders of ``models.vae`` minimise: likelihoods and regularisers."""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.models.offline import LossConfig
from worldmodels_jax.ops import posterior_kl
from worldmodels_jax.ops import total_correlation as tc
from worldmodels_jax.ops.collectives import pmean
from worldmodels_jax.types import Metrics

Likelihood = Literal["bernoulli", "gaussian"]

Kind = Literal["vae", "beta_vae", "factor_vae", "beta_tcvae", "hfs", "annealed_vae", "alpha_tcvae"]
# Fields that some kinds only use.
_USED_BY = {
    "alpha": ("alpha_tcvae",),
    "ceb": ("alpha_tcvae",),
    "ceb_reduction": ("alpha_tcvae",),
    "beta": ("beta_vae", "factor_vae", "beta_tcvae", "hfs", "alpha_tcvae"),
    "gamma": ("factor_vae", "hfs", "annealed_vae"),
    "weighting": ("beta_tcvae", "alpha_tcvae"),
    "hfs_pairs": ("hfs",),
    "hfs_points": ("hfs",),
    "capacity": ("annealed_vae",),
    "capacity_steps": ("annealed_vae",),
}


@dataclasses.dataclass(frozen=True)
class VaeLossConfig(LossConfig):
    """One of seven objectives, R + regulariser, in nats per image.

    With R the negative log-likelihood, V the KL to N(0, I), C that to the product of the image's
    posteriors, I + TC + D the parts of V estimated from the batch, w of equation 1.6.

    Attributes:
      kind: R + V (vae), R + β V (beta_vae), R + β V + γ TC of a discriminator (factor_vae), R + I +
        β TC + D (beta_tcvae), R + β V + γ Hausdorff (hfs), R + γ |V - C_t| (annealed_vae), R + β
        (w_C C + w_V V) (alpha_tcvae).
      beta: β; 1 is the published equation of α-TCVAE, though its table lists 2 to 5.
      gamma: γ.
      alpha: α in [0, 1]; 0 is beta_vae, bit by bit.
      ceb: readings of α-TCVAE: poe is the text; mi takes I for C and D for V, as its code seems to
        mean; mi_tc, which is not in the thesis, is R + w_C I + β TC + w_V D.
      ceb_reduction: C of poe as the sum over latents or as their mean, see ``alpha_tc_loss``.
      weighting: of a batch's estimates, minibatch-weighted or stratified (beta_tcvae, mi, mi_tc).
        With weighted, I of an informative encoder is ln(N B) and has no gradient.
      likelihood: of pixels: bernoulli with the decoder's logits; gaussian of variance 1 around
        their sigmoid, without its constant: dividing R by a variance is multiplying the rest by it.
      logvar_clip: bounds on the posteriors' log-variances; none for no bounds.
      hfs_pairs: pairs of latents drawn per update.
      hfs_points: points drawn per pair; none takes all B^2.
      capacity: C_t at its end, in nats.
      capacity_steps: updates over which C_t rises from 0.
    """

    kind: Kind = "alpha_tcvae"
    beta: float = 1.0
    gamma: float = 10.0
    alpha: float = 0.25
    ceb: Literal["poe", "mi", "mi_tc"] = "poe"
    ceb_reduction: posterior_kl.CebReduction = "sum"
    weighting: Literal["weighted", "stratified"] = "stratified"
    likelihood: Likelihood = "bernoulli"
    logvar_clip: tuple[float, float] | None = None
    hfs_pairs: int = 25
    hfs_points: int | None = None
    capacity: float = 25.0
    capacity_steps: int = 100_000


def validate_loss(loss: VaeLossConfig, num_latents: int) -> None:
    """Refuse values out of range, and values that the objective does not use.

    Raises:
      ValueError: naming the field.
    """
    for field in dataclasses.fields(loss):
        value = getattr(loss, field.name)
        if loss.kind not in _USED_BY.get(field.name, (loss.kind,)) and value != field.default:
            raise ValueError(
                f"loss.{field.name} is {value}, but loss.kind={loss.kind} does not use it: leave "
                f"it at {field.default}, or choose {' or '.join(_USED_BY[field.name])}."
            )
    if loss.kind == "alpha_tcvae":
        posterior_kl.alpha_weights(loss.alpha, num_latents)
        if loss.ceb == "poe" and loss.weighting != "stratified":
            raise ValueError(
                f"loss.weighting is {loss.weighting}, but loss.ceb=poe estimates nothing from the "
                "batch: leave it at stratified, or set loss.ceb to mi or mi_tc."
            )
        if loss.ceb != "poe" and loss.ceb_reduction != "sum":
            raise ValueError(
                f"loss.ceb_reduction is {loss.ceb_reduction}, but loss.ceb={loss.ceb} has no KL to "
                "the product of posteriors: leave it at sum, or set loss.ceb to poe."
            )
    if loss.kind in ("factor_vae", "hfs") and num_latents < 2:
        raise ValueError(
            f"loss.kind={loss.kind} compares latents, but model.num_latents is {num_latents}: set "
            "it to at least 2."
        )
    for name, least in {"hfs_pairs": 1, "hfs_points": 1, "capacity_steps": 1}.items():
        value = getattr(loss, name)
        if value is not None and value < least:
            raise ValueError(f"loss.{name} is {value}: give at least {least}.")
    for name in ("beta", "gamma", "capacity"):
        if getattr(loss, name) < 0:
            raise ValueError(f"loss.{name} is {getattr(loss, name)}: give a number from 0 on.")
    if loss.logvar_clip is not None and not loss.logvar_clip[0] < loss.logvar_clip[1]:
        raise ValueError(
            f"loss.logvar_clip is {loss.logvar_clip}: the first bound must be below the second."
        )


class Posterior(NamedTuple):
    """The encoder's view of a batch, and one sample of it."""

    mean: jax.Array  # (B, K) float32
    log_variance: jax.Array  # (B, K) float32
    sample: jax.Array  # (B, K) float32


def pixel_nll(likelihood: Likelihood, logits: jax.Array, target: jax.Array) -> jax.Array:
    """R, the negative log-likelihood of images.

    Args:
      likelihood: see ``VaeLossConfig``.
      logits: (B, H, W, C) of the decoder.
      target: (B, H, W, C) in [0, 1].

    Returns:
      (B,) float32, nats per image; of a Gaussian without the constant.
    """
    if likelihood == "bernoulli":
        return posterior_kl.bernoulli_nll(logits, target)
    chex.assert_equal_shape([logits, target])
    errors = jax.nn.sigmoid(logits.astype(jnp.float32)) - target.astype(jnp.float32)
    return 0.5 * jnp.sum(errors**2, axis=(1, 2, 3))


def regulariser(
    loss: VaeLossConfig,
    posterior: Posterior,
    logits: jax.Array | None,
    key: jax.Array,
    step: jax.Array,
    num_train: int,
    axis_name: str | None,
) -> tuple[jax.Array, Metrics]:
    """All of the loss but R.

    Args:
      loss: the objective.
      posterior: of a device's images.
      logits: (B, 2) of the discriminator, for factor_vae only.
      key: PRNG key; hfs draws pairs with it.
      step: () int32, updates made before.
      num_train: N.
      axis_name: mapped axis that the batch is split over: what is estimated from a batch is so from
        all of it, provided the caller averages loss and gradients over the axis.

    Returns:
      Scalar float32 in nats, and its parts.
    """
    mean, log_variance = posterior.mean, posterior.log_variance
    kl = jnp.mean(jnp.sum(posterior_kl.standard_normal_kl(mean, log_variance), axis=-1))
    metrics = {"kl": kl}
    if loss.kind == "vae":
        return kl, metrics
    if loss.kind == "beta_vae":
        return loss.beta * kl, metrics
    if loss.kind == "annealed_vae":
        distance = posterior_kl.capacity_loss(
            pmean(kl, axis_name), step, capacity=loss.capacity, steps=loss.capacity_steps
        )
        return loss.gamma * distance, {**metrics, "capacity_distance": distance}
    if loss.kind == "factor_vae":
        assert logits is not None
        estimate = tc.density_ratio_tc(logits)
        return loss.beta * kl + loss.gamma * estimate, {**metrics, "total_correlation": estimate}
    if loss.kind == "hfs":
        distance = tc.hausdorff_support_loss(
            key, gather(mean, axis_name), num_pairs=loss.hfs_pairs, num_points=loss.hfs_points
        )
        return loss.beta * kl + loss.gamma * distance, {**metrics, "hausdorff": distance}
    if loss.kind == "alpha_tcvae" and loss.ceb == "poe":
        terms = posterior_kl.alpha_tc_loss(
            mean, log_variance, alpha=loss.alpha, beta=loss.beta, reduction=loss.ceb_reduction
        )
        product = jnp.mean(jnp.sum(posterior_kl.product_kl(mean, log_variance), axis=-1))
        return jnp.mean(terms), {**metrics, "product_kl": product}
    parts = _decompose(loss, posterior, num_train, axis_name)
    metrics |= {
        "information": parts.information,
        "total_correlation": parts.total_correlation,
        "dimension_wise": parts.dimension_wise,
    }
    if loss.kind == "beta_tcvae":
        return tc.beta_tc_loss(parts, beta=loss.beta), metrics
    w_c, w_v = posterior_kl.alpha_weights(loss.alpha, mean.shape[-1])
    if loss.ceb == "mi":
        without = tc.beta_tc_loss(parts, beta=0.0, information=w_c, dimension_wise=w_v)
        return loss.beta * without, metrics
    total = tc.beta_tc_loss(parts, beta=loss.beta, information=w_c, dimension_wise=w_v)
    return total, metrics


def _decompose(
    loss: VaeLossConfig, posterior: Posterior, num_train: int, axis_name: str | None
) -> tc.Decomposition:
    whole = [gather(x, axis_name) for x in posterior]
    weights = tc.log_weights(loss.weighting, len(whole[0]), num_train)
    mean, log_variance, sample = whole
    return tc.decompose_kl(sample, mean, log_variance, weights)


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The whole batch ``(B, ...)`` on every device; the identity if there is no axis."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)
