"""Presets of NowcastingGPT; with ``--config.loss.evl=true`` they are NowcastingGPT-EVL.

Steps 0 to k train the tokenizer, those after it the transformer, and the head with the extreme
value loss. Numbers are in the report of ``experiments.nowcasting_acceptance``.
"""

from collections.abc import Callable

from worldmodels_jax.models.nowcasting_config import (
    ExtremeEventConfig,
    NowcastingConfig,
    NowcastingLossConfig,
    RainPatchConfig,
    RainTransformerConfig,
)
from worldmodels_jax.training.data_config import RainConfig
from worldmodels_jax.training.data_knmi import KnmiConfig
from worldmodels_jax.training.fit_config import FitConfig, FitTraining, PartTraining, TokenParts


def nowcasting_gpt() -> FitConfig:
    """A small one on 8x8 pixels of simulated rain, 16 tokens a frame: minutes on two CPU cores.

    Extremes are told of the 4x4 pixels in the middle, of which three events in a hundred have 5 mm
    in 3 hours. Rain here moves by a pixel or two between frames: patches of 4x4 pixels hide that.
    """
    return FitConfig(
        preset="nowcasting_gpt",
        data=RainConfig(count=16_000, test_count=500),
        model=NowcastingConfig(
            tokenizer=RainPatchConfig(patch=2, width=64),
            transformer=RainTransformerConfig(width=64, layers=2, heads=4, dropout=0.0),
            event=ExtremeEventConfig(region=(2, 6, 2, 6)),
            scale=4.0,
        ),
        loss=NowcastingLossConfig(),
        parts=TokenParts(
            tokenizer=PartTraining(lr=1e-3, schedule="cosine", stop=1_500),
            head=PartTraining(lr=1e-3, decay=0.01, start=1_500),
            transformer=PartTraining(
                lr=3e-3, clip=1.0, decay=0.01, warmup=200, schedule="cosine", start=1_500
            ),
        ),
        training=FitTraining(steps=6_000, batch_size=16, chunk=100, checkpoint_every=2_000),
    )


def nowcasting_gpt_knmi() -> FitConfig:
    """As published, on KNMI's radar archive; for a GPU, not run here.

    Sizes, rates and batches are those of the published code: 100 epochs of the tokenizer, then 60
    of the transformer, of 30,632 sequences. Its 16 bits are bfloat16 here, and its LPIPS is a
    distance of pyramids unless there is a file of its weights, ``nn.lpips``:
    ``--config.loss.perceptual=lpips --config.loss.lpips_file=FILE``.
    """
    tokenizer_steps, transformer_steps = 47_800, 28_680  # of 478 batches an epoch
    return FitConfig(
        preset="nowcasting_gpt_knmi",
        data=KnmiConfig(),
        model=NowcastingConfig(),
        loss=NowcastingLossConfig(),
        parts=TokenParts(
            tokenizer=PartTraining(stop=tokenizer_steps),
            head=PartTraining(decay=0.01, start=tokenizer_steps),
            transformer=PartTraining(decay=0.01, start=tokenizer_steps),
        ),
        training=FitTraining(
            steps=tokenizer_steps + transformer_steps, accumulation=4, checkpoint_every=4_780
        ),
        precision="bf16",
    )


PRESETS: dict[str, Callable[[], FitConfig]] = {
    "nowcasting_gpt": nowcasting_gpt,
    "nowcasting_gpt_knmi": nowcasting_gpt_knmi,
}
