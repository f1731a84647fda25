"""Presets of α-TCVAE and of what it is compared with, on small sprites and on shapes of 64x64.

``PRESETS`` has ``{kind}_sprites16`` and ``{kind}_shapes`` of each kind. What ``*_sprites16``
measured is in the report of ``experiments.alpha_tcvae_acceptance``; ``*_shapes`` is for a GPU.
"""

from collections.abc import Callable
from typing import Any

from worldmodels_jax.models.vae import VaeConfig, VaeLossConfig
from worldmodels_jax.models.vae_losses import Kind
from worldmodels_jax.training.data_config import FactorsConfig
from worldmodels_jax.training.fit_config import (
    AdversarialParts,
    FitConfig,
    FitTraining,
    OnePart,
    PartsConfig,
    PartTraining,
)

# The thesis compares with β = 2 to 5 and γ = 10; α-TCVAE's text has no β, but α = 0 is to be β-VAE.
_SPRITES16: dict[Kind, dict[str, Any]] = {
    "vae": {},
    "beta_vae": {"beta": 2.0},
    "factor_vae": {"beta": 2.0},
    "beta_tcvae": {"beta": 4.0},
    "hfs": {"beta": 2.0, "hfs_points": 100},
    "annealed_vae": {"gamma": 100.0, "capacity_steps": 8_000},
    "alpha_tcvae": {"beta": 2.0},
}
_SHAPES: dict[Kind, dict[str, Any]] = {
    "vae": {},
    "beta_vae": {"beta": 3.0},
    "factor_vae": {"beta": 3.0},
    "beta_tcvae": {"beta": 3.0},
    "hfs": {"beta": 3.0},
    "annealed_vae": {"gamma": 100.0},
    "alpha_tcvae": {"beta": 3.0},
}


def sprites16(kind: Kind, **loss: Any) -> FitConfig:
    """An objective on 16x16 sprites, 10,000 updates.

    On one CPU core most take about a minute; HFS several, and FactorVAE, whose discriminator has
    eleven times the model's parameters, ten.

    Args:
      kind: of the loss.
      **loss: fields of the loss, over those of the preset.
    """
    return FitConfig(
        preset=f"{kind}_sprites16",
        data=FactorsConfig(),
        model=VaeConfig(),
        loss=VaeLossConfig(kind=kind, **(_SPRITES16[kind] | loss)),
        parts=_parts(kind, PartTraining(lr=1e-3)),
        training=FitTraining(steps=10_000, batch_size=_batch_size(kind), chunk=500),
    )


def shapes(kind: Kind) -> FitConfig:
    """An objective on 20,000 images like those of 3DShapes, 50,000 updates; not run here.

    Sizes and rates are those of the comparison's published code; the gradient's norm and
    log-variances are bounded, which they are not there.

    Args:
      kind: of the loss.
    """
    loss = VaeLossConfig(kind=kind, logvar_clip=(-12.0, 6.0), **_SHAPES[kind])
    return FitConfig(
        preset=f"{kind}_shapes",
        data=FactorsConfig(name="shapes3d_like", count=20_000),
        model=VaeConfig(network="conv"),
        loss=loss,
        parts=_parts(kind, PartTraining(clip=10.0)),
        training=FitTraining(
            steps=50_000, batch_size=_batch_size(kind), chunk=500, checkpoint_every=10_000
        ),
    )


def _batch_size(kind: Kind) -> int:
    # FactorVAE's model learns from half of a batch.
    return 128 if kind == "factor_vae" else 64


def _parts(kind: Kind, model: PartTraining) -> PartsConfig:
    if kind == "factor_vae":
        return AdversarialParts(model=model)
    return OnePart(model=model)


_TITLES: dict[Kind, str] = {
    "vae": "A VAE",
    "beta_vae": "β-VAE",
    "factor_vae": "FactorVAE",
    "beta_tcvae": "β-TCVAE",
    "hfs": "β-VAE with a factorised support (HFS)",
    "annealed_vae": "The annealed β-VAE",
    "alpha_tcvae": "α-TCVAE",
}


def _preset(make: Callable[[Kind], FitConfig], kind: Kind, text: str) -> Callable[[], FitConfig]:
    def preset() -> FitConfig:
        return make(kind)

    preset.__name__ = f"{kind}_{make.__name__}"
    preset.__doc__ = f"{_TITLES[kind]} {text}"
    return preset


_MADE = [
    *(_preset(sprites16, kind, "on 16x16 sprites, minutes on a CPU core.") for kind in _TITLES),
    *(_preset(shapes, kind, "on 64x64 shapes; for a GPU, not run here.") for kind in _TITLES),
]
PRESETS: dict[str, Callable[[], FitConfig]] = {preset.__name__: preset for preset in _MADE}
