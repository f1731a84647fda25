"""Presets of α-TCVAE on the public data sets of the thesis, read from ``--data_dir``; not run here.

Table 1.2: β of each set, 50 epochs of 80 % of it. ``--config.loss.kind=beta_vae`` and the like take
another objective in its place.
"""

from collections.abc import Callable

from worldmodels_jax.models.vae import VaeConfig, VaeLossConfig
from worldmodels_jax.training.data_files import FactorFilesConfig
from worldmodels_jax.training.fit_config import FitConfig, FitTraining, OnePart, PartTraining


def _on(data: FactorFilesConfig, beta: float, latents: int = 10) -> FitConfig:
    return FitConfig(
        preset=f"alpha_tcvae_{data.name}",
        data=data,
        model=VaeConfig(network="conv", num_latents=latents),
        loss=VaeLossConfig(kind="alpha_tcvae", beta=beta),
        parts=OnePart(PartTraining()),
        training=FitTraining(epochs=50, chunk=500, checkpoint_every=10_000),
    )


def alpha_tcvae_teapots() -> FitConfig:
    """α-TCVAE on Teapots, --data_dir=FOLDER; for a GPU, not run here."""
    return _on(FactorFilesConfig(name="teapots"), 2.0)


def alpha_tcvae_3dshapes() -> FitConfig:
    """α-TCVAE on 3DShapes, --data_dir=FOLDER; for a GPU, not run here."""
    return _on(FactorFilesConfig(name="3dshapes"), 3.0)


def alpha_tcvae_cars3d() -> FitConfig:
    """α-TCVAE on Cars3D, --data_dir=FOLDER; for a GPU, not run here."""
    return _on(FactorFilesConfig(name="cars3d"), 4.0)


def alpha_tcvae_mpi3d_real() -> FitConfig:
    """α-TCVAE on MPI3D-Real, --data_dir=FOLDER; for a GPU, not run here."""
    return _on(FactorFilesConfig(name="mpi3d_real"), 5.0)


def alpha_tcvae_celeba() -> FitConfig:
    """α-TCVAE on CelebA with its 40 attributes, --data_dir=FOLDER; for a GPU, not run here."""
    return _on(FactorFilesConfig(name="celeba"), 5.0, latents=48)


def alpha_tcvae_dsprites() -> FitConfig:
    """α-TCVAE on dSprites, which the thesis does not use, --data_dir=FOLDER; not run here."""
    return _on(FactorFilesConfig(name="dsprites"), 4.0)


PRESETS: dict[str, Callable[[], FitConfig]] = {
    make.__name__: make
    for make in (
        alpha_tcvae_teapots,
        alpha_tcvae_3dshapes,
        alpha_tcvae_cars3d,
        alpha_tcvae_mpi3d_real,
        alpha_tcvae_celeba,
        alpha_tcvae_dsprites,
    )
}
