"""Tiny networks and a tiny budget for the experiments on tokens, and how a part is run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from experiments import token_experiments, token_training
from worldmodels_jax.models.iris_config import (
    DeltaIrisConfig,
    IrisConfig,
    delta_iris_tiny16,
    iris_tiny16,
)

BUDGET = token_training.Budget(
    episodes=3, held_out=2, tokenizer_updates=2, world_model_updates=2, chunk=1
)


def delta_toy() -> DeltaIrisConfig:
    """The networks of ``tiny16``, as small as they get."""
    config = delta_iris_tiny16()
    small: dict[str, Any] = {"encoder_channels": (4,), "decoder_channels": (4,), "latent": 2}
    small |= {"embedder_channels": (4,), "embedder_latent": 2, "num_codes": 6, "code_size": 3}
    sizes = {"width": 8, "layers": 1, "heads": 2, "num_bins": 21}
    return dataclasses.replace(
        config,
        tokenizer=dataclasses.replace(config.tokenizer, **small),
        world_model=dataclasses.replace(
            config.world_model, frame_channels=(4,), frame_latent=2, **sizes
        ),
    )


def iris_toy(num_tokens: int) -> IrisConfig:
    config = iris_tiny16(num_tokens)
    small: dict[str, Any] = {"encoder_channels": (4,), "decoder_channels": (4,), "latent": 2}
    return dataclasses.replace(
        config,
        resnet=dataclasses.replace(config.resnet, num_codes=6, code_size=3, **small),
        world_model=dataclasses.replace(config.world_model, width=8, layers=1, heads=2),
    )


def run_part(part: str, directory: Path) -> dict[str, Any]:
    result = token_experiments.run_part(part, 1, BUDGET, directory / "out", directory / "images")
    stored = json.loads((directory / "out" / f"{part}.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["seeds"] == [0]
    assert stored["budget"]["tokenizer_updates"] == 2
    assert stored["command"].startswith("python -m experiments.token_experiments")
    assert stored["minutes"] > 0
    assert stored["machine"]["backend"] == jax.default_backend()
    return stored
