"""A run of every world model but GIT-STORM, with the smallest sizes: trained, resumed, used."""

import dataclasses
from pathlib import Path

import pytest

from experiments import evaluate, imagine
from experiments.configs.small import debug
from worldmodels_jax.models.dreamer_v3_config import DreamerV3Config
from worldmodels_jax.training.config import Config, validate
from worldmodels_jax.training.load import load
from worldmodels_jax.training.model_config import AnyModelConfig, max_length, system_name
from worldmodels_jax.training.run import train

SYSTEMS: dict[str, AnyModelConfig] = {
    "DreamerV3": DreamerV3Config(
        deter=16, hidden=8, num_tokens=4, num_classes=4, blocks=2, channels=(), units=8, num_bins=21
    ),
}


def config_of(model: AnyModelConfig) -> Config:
    base = debug()
    training = dataclasses.replace(
        base.training,
        dream_context=1,
        dream_starts=2,
        optimiser="laprop",
        optimiser_warmup=10,
        world_model_clip=0.3,
        agent_clip=0.3,
    )
    return dataclasses.replace(base, model=model, training=training)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_trains_resumes_and_dreams(name: str, tmp_path: Path) -> None:
    config = config_of(SYSTEMS[name])
    assert system_name(config.model) == name
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


def test_only_some_models_bound_their_sequences() -> None:
    config = config_of(SYSTEMS["DreamerV3"])
    assert max_length(config.model) is None
    longer = dataclasses.replace(
        config.training, batch_length=40, acting_context=50, horizon=60, warmup=100
    )
    validate(dataclasses.replace(config, training=longer))
    with pytest.raises(ValueError, match=r"longer than the position table"):
        validate(dataclasses.replace(debug(), training=longer))
    assert system_name(debug().model) == "GIT-STORM"
    assert max_length(debug().model) == 16
