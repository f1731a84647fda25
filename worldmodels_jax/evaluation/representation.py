"""All scores of an autoencoder of images with known factors: what α-TCVAE's chapter compares.

Codes are posterior means. Scores of codes are fitted to training images and taken on test images;
images are scored by how many different ones there are (Vendi) and how far they are from real ones
(Fréchet, "fid"), in the features of ``image_features``, which the scores' names tell. A number
depends on how many images there were: compare only equal settings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data.dataset import Arrays, Dataset
from worldmodels_jax.data.factors import FactorSet
from worldmodels_jax.evaluation.batches import in_batches
from worldmodels_jax.evaluation.disentanglement import (
    dci,
    fit_classifiers,
    latent_usage,
    predict_factors,
    prediction_unfairness,
    unfairness,
)
from worldmodels_jax.evaluation.factor_networks import attribute_accuracy
from worldmodels_jax.evaluation.image_features import ImageFeatures, embed_images, random_conv
from worldmodels_jax.evaluation.neuron_knockout import neuron_knockout
from worldmodels_jax.evaluation.single_latents import mig, snc
from worldmodels_jax.ops.frames import from_uint8
from worldmodels_jax.ops.posterior_kl import bernoulli_nll, standard_normal_kl
from worldmodels_jax.ops.total_correlation import decompose_kl, log_weights

Encode = Callable[[Any], tuple[Any, Any]]
Decode = Callable[[Any], Any]
Scale = Literal["posterior", "aggregate", "prior"]
Tables = dict[str, dict[str, float]]

_BATCH = 100  # images coded at once
_SHIFTS = (1, 2, 4, 6, 8, 10)  # deviations of a traversal, in both directions


class Sizes(NamedTuple):
    """How many examples scores are taken from, at most.

    Attributes:
      train: codes that classifiers are fitted to.
      test: codes that they are scored on.
      images: of each kind whose diversity and fidelity is measured.
    """

    train: int = 10_000
    test: int = 5_000
    images: int = 10_000


FAST = Sizes(2_000, 1_000, 1_000)


class Codes(NamedTuple):
    """Posteriors of n images and what these show."""

    mean: np.ndarray  # (n, K)
    log_variance: np.ndarray  # (n, K)
    factors: np.ndarray  # (n, M) int


def evaluate_representation(
    encode: Encode,
    decode: Decode,
    dataset: Dataset,
    *,
    fast: bool = False,
    seed: int = 0,
    sizes: Sizes | None = None,
    features: Sequence[ImageFeatures] | None = None,
    scale: Scale = "posterior",
) -> Tables:
    """Every table of scores.

    Args:
      encode: ``(B, H, W, C) uint8 -> mean, log_variance``, (B, K) each.
      decode: ``(B, K) -> logits (B, H, W, C)``, whose sigmoid is the image.
      dataset: with ``image`` and ``factors``; of a ``FactorSet``, unfairness is measured by
        intervention, else by what is observed.
      fast: small random forests in the place of gradient-boosted trees.
      seed: of subsets, classifiers and samples.
      sizes: how many examples; None is ``FAST`` or the full sizes. Smaller sets are used whole.
      features: networks for the images' scores; None for ``random_conv`` of the training images.
      scale: what a traversal shifts by, see ``traversal_codes``.

    Returns:
      ``disentanglement``, ``usage``, ``reconstruction`` and for each network ``vendi_{name}`` and
      ``fid_{name}``, by name of the score.

    Raises:
      ModuleNotFoundError: without scikit-learn.
      ValueError: if a factor does not vary, there are more factors than latents, or the data set
        has no factors.
    """
    if not {"image", "factors"} <= set(dataset.test):
        raise ValueError(
            f"scores of codes need arrays image and factors, but {dataset.name} has "
            f"{', '.join(dataset.test)}: give a data set with both."
        )
    sizes = sizes or (FAST if fast else Sizes())
    rng = np.random.default_rng(seed)
    train = encode_arrays(encode, _subset(dataset.train, sizes.train, rng))
    test_arrays = _subset(dataset.test, max(sizes.test, sizes.images), rng)
    every = encode_arrays(encode, test_arrays)
    test = Codes(*(x[: sizes.test] for x in every))
    if features is None:
        features = [random_conv(dataset.train["image"])]
    key_scores, key_images = jax.random.split(jax.random.key(seed))
    shown = Codes(*(x[: sizes.images] for x in every))
    real = _subset(dataset.train, len(shown.mean), rng)["image"]
    return {
        "disentanglement": score_codes(train, test, encode, dataset.source, key_scores, fast, seed),
        "usage": score_usage(every, key_scores),
        "reconstruction": score_reconstruction(encode, decode, dataset.test["image"]),
        **score_images(
            decode, real, test_arrays["image"][: sizes.images], shown, features, key_images, scale
        ),
    }


def encode_arrays(encode: Encode, arrays: Mapping[str, Any]) -> Codes:
    """The codes of images with factors."""
    mean, log_variance = in_batches(encode, arrays["image"], _BATCH)
    return Codes(mean, log_variance, np.asarray(arrays["factors"]))


def _subset(arrays: Arrays, count: int, rng: np.random.Generator) -> Arrays:
    total = len(arrays["image"])
    chosen = rng.permutation(total)[:count]
    return {name: x[chosen] for name, x in arrays.items()}


def score_codes(
    train: Codes,
    test: Codes,
    encode: Encode,
    source: Any,
    key: jax.Array,
    fast: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """How factors are laid out in codes; arguments as in ``evaluate_representation``.

    Returns:
      DCI's three scores with their arithmetic and geometric mean (``dci_*``), ``mig``, ``snc``,
      ``nk``, ``unfairness`` and ``attribute_accuracy``.
    """
    key_nk, key_accuracy = jax.random.split(key)
    classifiers = fit_classifiers(train.mean, train.factors, fast=fast, seed=seed)
    scores = dci(classifiers, test.mean, test.factors)
    pairs = (train.mean, train.factors, test.mean, test.factors)
    if isinstance(source, FactorSet):
        bias = intervened_unfairness(classifiers, encode, source, test.factors)
    else:
        bias = unfairness(predict_factors(classifiers, test.mean), test.factors)
    return {
        "dci_disentanglement": scores.disentanglement,
        "dci_completeness": scores.completeness,
        "dci_informativeness": scores.informativeness,
        "dci_arithmetic": scores.arithmetic_mean,
        "dci_geometric": scores.geometric_mean,
        "mig": mig(train.mean, train.factors),
        "snc": snc(*pairs),
        "nk": neuron_knockout(*pairs, key_nk),
        "unfairness": bias,
        "attribute_accuracy": attribute_accuracy(*pairs, key_accuracy),
    }


def intervened_unfairness(
    classifiers: Sequence[Any], encode: Encode, source: FactorSet, factors: np.ndarray
) -> float:
    """Mean unfairness over ordered pairs of factors, of images with one factor set to each value.

    As many images are rendered for each factor as there are given; all values are set in the same
    images, so that what does not depend on a factor scores exactly 0.

    Args:
      classifiers: M of ``fit_classifiers``.
      encode: see ``evaluate_representation``.
      source: renders the images.
      factors: (n, M) int, of images to start from.

    Returns:
      In [0, 1]; 0 is fair.
    """
    render = jax.jit(source.render)
    scores = []
    for j, size in enumerate(source.factor_sizes):
        base = jnp.asarray(factors[: max(1, len(factors) // size)])
        values = np.tile(np.arange(size), len(base))
        chosen = source.intervene(jnp.repeat(base, size, axis=0), j, jnp.asarray(values))
        codes, _ = in_batches(encode, np.asarray(render(chosen)), _BATCH)
        predictions = predict_factors(classifiers, codes)
        scores += [
            prediction_unfairness(predictions[:, i], values)
            for i in range(len(classifiers))
            if i != j
        ]
    return float(np.mean(scores))


def score_usage(codes: Codes, key: jax.Array) -> dict[str, float]:
    """How much the latents say, in nats; arguments as in ``evaluate_representation``.

    Returns:
      ``active_units`` and ``balance`` of ``latent_usage``; ``kl``, the mean KL to the prior; and
      ``information`` and ``total_correlation`` of q(z) with these images taken as all there are:
      the former is at most the logarithm of their number.
    """
    mean, log_variance = jnp.asarray(codes.mean), jnp.asarray(codes.log_variance)
    kl = standard_normal_kl(mean, log_variance)
    active, balance = latent_usage(np.asarray(kl))
    sample = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    count = len(mean)
    weights = log_weights("batch", count, count)
    parts = jax.jit(decompose_kl)(sample, mean, log_variance, weights)
    return {
        "active_units": float(active),
        "balance": balance,
        "kl": float(kl.sum(-1).mean()),
        "information": float(parts.information),
        "total_correlation": float(parts.total_correlation),
    }


def score_reconstruction(encode: Encode, decode: Decode, images: Any) -> dict[str, float]:
    """Errors of images decoded from their means; arguments as in ``evaluate_representation``.

    Returns:
      ``nll``, the Bernoulli negative log-likelihood in nats per image, and ``mse``, the mean
      squared error of pixels in [0, 1].
    """

    def errors(x: np.ndarray) -> tuple[jax.Array, jax.Array]:
        target = from_uint8(jnp.asarray(x))
        logits = decode(encode(x)[0])
        squared = (jax.nn.sigmoid(logits) - target) ** 2
        return bernoulli_nll(logits, target), squared.mean((1, 2, 3))

    nll, mse = in_batches(errors, images, _BATCH)
    return {"nll": float(nll.mean()), "mse": float(mse.mean())}


def score_images(
    decode: Decode,
    real: np.ndarray,
    images: np.ndarray,
    codes: Codes,
    features: Sequence[ImageFeatures],
    key: jax.Array,
    scale: Scale = "posterior",
) -> Tables:
    """Diversity and fidelity of n images each of several kinds.

    Args:
      decode: see ``evaluate_representation``.
      real: (n, H, W, C) uint8, what the others are compared with.
      images: (n, H, W, C) uint8, other real ones.
      codes: of ``images``.
      features: feature networks.
      key: PRNG key.
      scale: see ``traversal_codes``.

    Returns:
      For each network ``vendi_{name}`` and ``fid_{name}``: of ``real`` images (the distance of the
      two real sets is what none can be expected to fall below), their reconstructions ``recon``,
      decoded ``noise`` of the prior, and ``traversal``.
    """
    key_noise, key_traversal = jax.random.split(key)
    latents = {
        "recon": codes.mean,
        "noise": np.asarray(jax.random.normal(key_noise, codes.mean.shape)),
        "traversal": traversal_codes(codes, key_traversal, scale),
    }
    tables: Tables = {}
    for network in features:

        def generate(z: np.ndarray, embed: Any = network.embed) -> jax.Array:
            return embed(jax.nn.sigmoid(decode(z)))

        embedded = {"real": embed_images(network.embed, images)}
        embedded |= {name: in_batches(generate, z, _BATCH) for name, z in latents.items()}
        reference = embed_images(network.embed, real)
        tables[f"vendi_{network.name}"] = {k: network.vendi(x) for k, x in embedded.items()}
        tables[f"fid_{network.name}"] = {
            name: network.frechet(x, reference) for name, x in embedded.items()
        }
    return tables


def traversal_codes(codes: Codes, key: jax.Array, scale: Scale = "posterior") -> np.ndarray:
    """Codes with one latent each moved by ±1, 2, 4, 6, 8 or 10 deviations, all equally likely.

    Args:
      codes: n posteriors.
      key: PRNG key.
      scale: deviations of the image's own posterior, of the aggregate of these codes, or of the
        prior.

    Returns:
      (n, K) float32.
    """
    count, num_latents = codes.mean.shape
    variance = np.exp(codes.log_variance)
    if scale == "aggregate":
        variance = np.broadcast_to(codes.mean.var(0) + variance.mean(0), variance.shape)
    elif scale == "prior":
        variance = np.ones_like(variance)
    key_latent, key_shift = jax.random.split(key)
    latent = np.asarray(jax.random.randint(key_latent, (count,), 0, num_latents))
    shifts = jnp.array([sign * shift for sign in (-1, 1) for shift in _SHIFTS], jnp.float32)
    shift = np.asarray(jax.random.choice(key_shift, shifts, (count,)))
    moved = np.array(codes.mean, np.float32)
    row = np.arange(count)
    moved[row, latent] += shift * np.sqrt(variance[row, latent])
    return moved
