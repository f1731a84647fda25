"""What of NowcastingGPT's config does not fit together, and what would have no effect."""

import dataclasses
from typing import Any

import pytest
from nowcasting_toys import CONFIG, DATA, LOSS, SMALL_CLASSIFIER, system, with_head

from worldmodels_jax.config import apply_overrides, from_dict, to_dict
from worldmodels_jax.models.nowcasting_config import (
    ExtremeEventConfig,
    NowcastingConfig,
    NowcastingLossConfig,
    RainPatchConfig,
    RainVQGANConfig,
)
from worldmodels_jax.models.offline import LossConfig
from worldmodels_jax.types import DataSpec


def config(**changes: Any) -> NowcastingConfig:
    return dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (config(context_frames=5), LOSS, r"context_frames=5 .* of 5 frames: give 1 to 4"),
        (config(scale=0.0), LOSS, r"model.scale=0.0"),
        (config(max_rate=-1.0), LOSS, r"model.max_rate=-1.0"),
        (config(tokenizer=RainPatchConfig(patch=3)), LOSS, r"8x8 .* model.tokenizer.patch=3"),
        (config(tokenizer=RainVQGANConfig()), LOSS, r"8x8 cannot be halved by the 5 levels"),
        (
            config(tokenizer=RainPatchConfig(reseed_every=0, reseed_below=3)),
            LOSS,
            r"model.tokenizer.reseed_below=3 has no effect with reseed_every=0",
        ),
        (
            config(transformer=dataclasses.replace(CONFIG.transformer, heads=3)),
            LOSS,
            r"model.transformer.heads=3 does not divide",
        ),
        (config(event=ExtremeEventConfig(region=(0, 9, 0, 4))), LOSS, r"no box in frames of 8x8"),
        (config(event=ExtremeEventConfig(region=(0, 4))), LOSS, r"model.event.region=\(0, 4\)"),
        (config(classifier=SMALL_CLASSIFIER), LOSS, r"model.classifier.layers=1 has no effect"),
        (CONFIG, NowcastingLossConfig(gamma=2.0), r"loss.gamma=2.0 has no effect with loss.evl=f"),
        (
            CONFIG,
            NowcastingLossConfig(evl=True, head="token_table", fixed_codes=3),
            r"loss.fixed_codes=3 has no effect with loss.head=token_table",
        ),
        (
            CONFIG,
            NowcastingLossConfig(evl=True, head="fixed_tokens", fixed_codes=99),
            r"loss.fixed_codes=99: there are 12 codes",
        ),
        (
            CONFIG,
            NowcastingLossConfig(
                evl=True, head="fixed_tokens", fixed_codes=3, reduction="class_mean"
            ),
            r"loss.reduction=class_mean has no effect with loss.head=fixed_tokens",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    model: NowcastingConfig, loss: NowcastingLossConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        system(model, loss)


def test_classifier_heads_must_divide_its_width() -> None:
    model, loss = with_head("frame_vit")
    model = dataclasses.replace(model, classifier=dataclasses.replace(model.classifier, heads=3))
    with pytest.raises(ValueError, match=r"model.classifier.heads=3 does not divide"):
        system(model, loss)


def test_other_data_and_other_losses_are_refused() -> None:
    images = DataSpec("sprites", {"image": (8, 8, 3)}, 10)
    with pytest.raises(ValueError, match="sprites has no sequences of rain"):
        CONFIG.make(LOSS, images, None, "float32")
    with pytest.raises(ValueError, match="LossConfig, which is another system's"):
        CONFIG.make(LossConfig(), DATA, None, "float32")


def test_kinds_of_tokenizer_survive_a_file() -> None:
    for tokenizer in (RainPatchConfig(patch=2), RainVQGANConfig(blocks=3)):
        saved = config(tokenizer=tokenizer)
        assert from_dict(NowcastingConfig, to_dict(saved)) == saved
    changed = apply_overrides(CONFIG, {"tokenizer.patch": "8", "event.region": "(0,2,0,2)"})
    assert changed.tokenizer == dataclasses.replace(CONFIG.tokenizer, patch=8)
    assert changed.event.region == (0, 2, 0, 2)
