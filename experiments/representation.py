"""Evaluate autoencoders of images with known factors: tables of scores, and what each latent does.

``experiments.evaluate`` comes here with runs of α-TCVAE and its siblings.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.evaluation.image_features import (
    ImageFeatures,
    factor_cnn,
    inception,
    random_conv,
)
from worldmodels_jax.evaluation.representation import (
    Sizes,
    Tables,
    encode_arrays,
    evaluate_representation,
)
from worldmodels_jax.models.vae import SHIFTS, Vae
from worldmodels_jax.ops.posterior_kl import standard_normal_kl
from worldmodels_jax.training.fit_load import LoadedFit
from worldmodels_jax.types import PyTree
from worldmodels_jax.viz.traversals import plot_traversals

_CODED = 1_000  # images that a latent's KL is averaged over


def evaluate_run(
    vae: Vae,
    variables: PyTree,
    dataset: Dataset,
    *,
    fast: bool,
    seed: int,
    sizes: Sizes | None = None,
    features: Sequence[ImageFeatures] | None = None,
    inception_file: Path | None = None,
) -> Tables:
    """All scores of a trained autoencoder.

    Args:
      vae: the system.
      variables: what it learned.
      dataset: with ``image`` and ``factors``.
      fast: fewer examples, and random forests in the place of gradient-boosted trees.
      seed: of the evaluation.
      sizes: see ``evaluate_representation``.
      features: see there; None for ``random``, and without ``fast`` also ``factor``, the same for
        all runs on the same data.
      inception_file: weights of Inception-v3, whose features are then taken too.

    Returns:
      The tables by name, each of scores by name.

    Raises:
      ModuleNotFoundError: without scikit-learn.
      FileNotFoundError: if there is no file of weights.
      ValueError: for a data set without factors, more factors than latents, or other weights.
    """
    if features is None:
        features = [random_conv(dataset.train["image"])]
        if not fast and "factors" in dataset.train:
            examples = dataset.train["image"], dataset.train["factors"]
            features.append(factor_cnn(*examples, jax.random.key(0)))
    if inception_file is not None:
        features = [*features, inception(inception_file)]
    return evaluate_representation(
        functools.partial(jax.jit(vae.encode), variables),
        functools.partial(jax.jit(vae.decode), variables),
        dataset,
        fast=fast,
        seed=seed,
        sizes=sizes,
        features=features,
    )


def describe(result: Mapping[str, Mapping[str, float]]) -> str:
    """The tables as text: scores of codes line by line, those of images side by side.

    Args:
      result: of ``evaluate_run``.
    """
    lines = []
    images = [name for name in result if name.startswith(("vendi_", "fid_"))]
    for name, table in result.items():
        if name not in images:
            lines.append(f"  {name}")
            lines += [f"    {score:<20} {value:>9.3f}" for score, value in table.items()]
    if images:
        lines.append("  " + f"{'images':<22}" + "".join(f"{name:>14}" for name in images))
        for kind in result[images[0]]:
            row = "".join(f"{result[name][kind]:>14.3f}" for name in images)
            lines.append(f"    {kind:<20}{row}")
    return "\n".join(lines)


def draw(run: LoadedFit, directory: Path) -> list[Path]:
    """Draw what each latent does to a test image, ``traversals.png``.

    Args:
      run: of an autoencoder.
      directory: of the figure.

    Returns:
      Its path.
    """
    vae: Any = run.system
    batch = {name: np.asarray(x[:_CODED]) for name, x in run.dataset.test.items()}
    codes = encode_arrays(functools.partial(jax.jit(vae.encode), run.variables), batch)
    posterior = (jnp.asarray(codes.mean), jnp.asarray(codes.log_variance))
    kl = np.asarray(standard_normal_kl(*posterior)).mean(0)
    images = jax.jit(vae.samples)(run.variables, batch, jax.random.key(run.seed))["traversal"]
    path = directory / "traversals.png"
    plot_traversals(
        path,
        np.asarray(images),
        rows=[f"z{k}: {value:.2f} nats" for k, value in enumerate(kl)],
        columns=[f"{shift:+d}σ" if shift else "mean" for shift in SHIFTS],
        title=f"{run.config.preset}, seed {run.seed}: posterior mean, one latent moved",
    )
    return [path]
