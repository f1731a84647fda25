"""What must fit together in a config, and the message when it does not."""

from typing import Any

import pytest

from experiments.configs import PRESETS
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.config import Config, updates_per_iteration, validate
from worldmodels_jax.training.parts import build

JOINT = {
    "training.joint": "true",
    "training.dream_context": "1",
    "training.dream_starts": "8",
    "training.dream_batch": "16",
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_carry_their_name(name: str) -> None:
    config = PRESETS[name]()
    validate(config)
    assert config.preset == name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.horizon": "0"}, r"training\.horizon=0 must be greater than 0"),
        ({"training.agent_ratio": "-1"}, r"training\.agent_ratio=-1\.0 must not be negative"),
        ({"training.agent_ratio": "1e-5"}, r"agent_ratio=1e-05 is no number .* at least 0\.0001"),
        ({"training.world_model_ratio": "inf"}, r"world_model_ratio=inf is no number of updates"),
        ({"env.num_envs": "0"}, r"env\.num_envs=0"),
        ({"training.tokenizer.lr": "1e-3"}, r"its ratio=0 trains the tokenizer with the rest"),
        (
            {"training.world_model_first": "5", "training.world_model_ratio": "0"},
            r"world_model_first=5 are updates beside others",
        ),
        ({"training.epoch": "7"}, r"epoch=7 .* a multiple of env\.num_envs=2"),
        ({"training.sampling_power": "1"}, r"sampling_power=1\.0 is for episodes"),
        ({"training.exploration": "1.5"}, r"exploration=1\.5 is no share"),
        (
            {"training.optimiser": "laprop", "training.world_model_decay": "0.1"},
            r"optimiser=laprop has no weight decay",
        ),
        ({"training.batch_length": "1"}, r"batch_length=1 holds no transition"),
        ({"training.batch_length": "17"}, r"batch_length = 17 .* raise model\.max_length=16 to at"),
        ({"training.horizon": "20"}, r"dream_context \+ training\.horizon = 23 .* at least 23"),
        ({"training.acting_context": "40"}, r"acting_context = 40 .* at least 40"),
        ({"training.dream_starts": "3"}, r"dream_batch=4 dreams cannot begin 3 to a sequence"),
        ({"training.dream_starts": "0"}, r"dream_starts=0 must be greater than 0"),
        (
            {"training.dream_starts": "4", "training.batch_length": "5", "training.warmup": "10"},
            r"fewer than the 6 of one sequence",
        ),
        (
            {"training.replay_value_scale": "0.3"},
            r"replay_value_scale=0\.3 .*joint=True, or the scale",
        ),
        (
            {"training.joint": "true"},
            r"but training\.dream_context=3, .*: set training\.dream_context=1, training\."
            r"dream_starts=8, training\.dream_batch=16",
        ),
        (
            {**JOINT, "training.agent_ratio": "1"},
            r"but training\.agent_ratio=1\.0: set training\.agent_ratio=0\.5",
        ),
        ({"training.replay_capacity": "10"}, r"8 records .*replay_capacity=10 records"),
        (
            {"training.warmup": "10"},
            r"training\.warmup=10 .* raise training\.warmup to at least 16",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(
    config: Config, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        validate(apply_overrides(config, overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env.name": "Ctach-bsuite"}, "Catch-bsuite"),
        ({"model.channels": "8,8,8,8,8"}, r"10x5 is too small for an encoder of 5 levels"),
        (JOINT, r"joint=True needs a world model with .* set training\.joint=False"),
        ({"model.heads": "3"}, r"model\.width=16 is not a multiple of model\.heads=3"),
        ({"model.num_tokens": "5"}, r"num_tokens=5.*model\.width=16"),
        ({"model.maskgit.revise_rounds": "9"}, r"revise_rounds=9 must lie between 1 and"),
    ],
)
def test_parts_refuse_what_they_can_not_be(
    config: Config, overrides: dict[str, str], message: str
) -> None:
    import jax

    def make() -> Any:
        parts = build(apply_overrides(config, overrides))
        return jax.eval_shape(parts.world_model.init, jax.random.key(0))

    with pytest.raises(ValueError, match=message):
        make()


def test_ratios_are_exact_fractions() -> None:
    assert updates_per_iteration(0.1, 4) == updates_per_iteration(0.4, 1)
    assert (updates_per_iteration(0.1, 4).numerator, updates_per_iteration(0.1, 4).denominator) == (
        2,
        5,
    )
