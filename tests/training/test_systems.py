"""A run of every world model but GIT-STORM, with the smallest sizes: trained, resumed, used."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import evaluate, imagine
from experiments.configs.small import debug
from worldmodels_jax.agents.recurrent_actor_critic import RecurrentActorCriticConfig
from worldmodels_jax.models.dreamer_v3_config import DreamerV3Config
from worldmodels_jax.models.iris_config import (
    DeltaDynamicsConfig,
    DeltaIrisConfig,
    IrisConfig,
    IrisDynamicsConfig,
    ResnetTokenizerConfig,
)
from worldmodels_jax.models.world_model import ModelConfig
from worldmodels_jax.training.config import Config, TokenizerTraining, validate
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.load import load
from worldmodels_jax.training.run import train

TOKENIZER = ResnetTokenizerConfig(
    image_size=12,
    num_codes=8,
    code_size=4,
    encoder_channels=(4,),
    latent=2,
    embedder_channels=(4,),
    embedder_latent=2,
    action_channels=1,
    decoder_channels=(4,),
    halve_after=(),
    patch=2,
)
DYNAMICS: dict[str, Any] = {"width": 8, "layers": 1, "heads": 2, "max_blocks": 8, "num_bins": 21}

SYSTEMS: dict[str, ModelConfig] = {
    "DreamerV3": DreamerV3Config(
        deter=16, hidden=8, num_tokens=4, num_classes=4, blocks=2, channels=(), units=8, num_bins=21
    ),
    "Delta-IRIS": DeltaIrisConfig(
        tokenizer=TOKENIZER,
        world_model=DeltaDynamicsConfig(
            frame_channels=(4,), frame_latent=2, frame_halve_after=(), frame_patch=2, **DYNAMICS
        ),
    ),
    "IRIS": IrisConfig(
        architecture="resnet",
        resnet=dataclasses.replace(TOKENIZER, kind="frame", num_tokens=9),
        world_model=IrisDynamicsConfig(**DYNAMICS),
    ),
}


def config_of(model: ModelConfig) -> Config:
    base = debug()
    if not isinstance(model, DreamerV3Config):
        return config_of_iris(base, model)
    training = dataclasses.replace(
        base.training,
        acting_context=0,
        dream_context=1,
        dream_starts=2,
        optimiser="laprop",
        optimiser_warmup=10,
        world_model_clip=0.3,
        agent_clip=0.3,
    )
    return dataclasses.replace(base, model=model, training=training)


def config_of_iris(base: Config, model: ModelConfig) -> Config:
    """Three phases an epoch, episodes drawn by their counts, a recurrent agent."""
    agent = RecurrentActorCriticConfig(
        encoder="pool" if isinstance(model, IrisConfig) else "resnet",
        image_size=12,
        channels=(4, 4),
        latent=2,
        halve_after=(),
        width=8,
        num_bins=21,
        target="online" if isinstance(model, IrisConfig) else "ema",
    )
    training = dataclasses.replace(
        base.training,
        acting_context=0,
        exploration=0.1,
        sampling="episodes",
        sampling_power=2.0,
        epoch=20,
        batch_length=6,
        world_model_ratio=0.1,
        world_model_decay=0.01,
        agent_ratio=0.1,
        agent_start=80,
        tokenizer=TokenizerTraining(ratio=0.2, first=3, batch_size=2, batch_length=4, decay=0.01),
    )
    return dataclasses.replace(base, model=model, agent=agent, training=training)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_trains_resumes_and_dreams(name: str, tmp_path: Path) -> None:
    config = config_of(SYSTEMS[name])
    assert config.model.system == name
    first = iter([False, False, True])  # asked once a chunk
    train(config, tmp_path, seed=3, should_stop=lambda: next(first, True))
    assert load(tmp_path).step < config.training.steps
    train(config, tmp_path, seed=3)
    run = load(tmp_path)
    assert run.config == config  # its section of the union was found again
    assert run.step == config.training.steps
    result = evaluate.evaluate_run(tmp_path, episodes=2)
    assert result["protocol"]["environment"] == "Catch-bsuite"
    picture = imagine.imagine_run(tmp_path, context=2, horizon=3)
    assert picture.exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    parts = make_updates(config.training, run.parts.world_model, run.parts.agent).parts
    for part in parts:
        assert sum(row.get(f"{part}/updates", 0) for row in rows) > 0
        assert all(np.isfinite(row.get(f"{part}/gradient_norm", 0)) for row in rows)


def test_only_some_models_bound_their_sequences() -> None:
    config = config_of(SYSTEMS["DreamerV3"])
    assert config.model.longest is None
    longer = dataclasses.replace(
        config.training, batch_length=40, acting_context=50, horizon=60, warmup=100
    )
    validate(dataclasses.replace(config, training=longer))
    with pytest.raises(ValueError, match=r"longer than the position table"):
        validate(dataclasses.replace(debug(), training=longer))
    assert debug().model.system == "GIT-STORM"
    assert debug().model.longest == 16
