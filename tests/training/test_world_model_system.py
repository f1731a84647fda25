"""Any world model as a system of ``fit``: the loss is its own, the pictures are its dreams."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.small import debug
from experiments.configs.video_models import PRESETS
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.models.offline import LossConfig
from worldmodels_jax.models.world_model import Prediction, WorldModel
from worldmodels_jax.training.data_video import VideoConfig
from worldmodels_jax.training.fit import fit, load_fit
from worldmodels_jax.training.fit_config import FitConfig, FitTraining
from worldmodels_jax.training.world_model_system import (
    WorldModelLossConfig,
    WorldModelSystem,
    WorldModelSystemConfig,
    make_world_model_system,
)
from worldmodels_jax.types import DataSpec, EnvSpec, Record

MODEL = debug().model
LOSS = WorldModelLossConfig()
SHAPES: dict[str, tuple[int, ...]] = {
    "observation": (6, 12, 12, 1),
    **dict.fromkeys(("action", "reward", "terminated", "truncated", "is_first"), (6,)),
}


def data_of(name: str = "SpriteJump", **shapes: tuple[int, ...]) -> DataSpec:
    return DataSpec(name, {**SHAPES, **shapes}, 10)


def make(data: DataSpec, **fields: Any) -> WorldModelSystem:
    return WorldModelSystemConfig(**{"model": MODEL, **fields}).make(LOSS, data, None, jnp.float32)


# What it knows of the environment


def test_the_environment_is_told_by_its_records() -> None:
    spec = make(data_of()).spec
    assert spec == EnvSpec("SpriteJump", (12, 12, 1), "uint8", 9, True, 6)
    own = make(data_of("my recordings", observation=(6, 5)), num_actions=3).spec
    assert own == EnvSpec("my recordings", (5,), "float32", 3, True, 6)
    vectors = make(data_of("my recordings", action=(6, 2))).spec
    assert (vectors.num_actions, vectors.discrete) == (2, False)


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (data_of("mine"), {}, "'mine' is not named after .* give model.num_actions"),
        (data_of(action=(6, 2)), {"num_actions": 2}, r"model\.num_actions=2 .* vectors of 2"),
        (DataSpec("sprites", {"image": (4, 4, 3)}, 9), {}, "sprites has .* without observation, "),
        (data_of(), {"context": 6}, r"model\.context=6 .* SpriteJump have 6: give 1 to 5"),
        (data_of(), {"context": 0}, r"model\.context=0"),
        (
            data_of(),
            {"model": dataclasses.replace(MODEL, max_length=5)},
            r"have 6 records, .* only 5: raise model\.model\.max_length to at least 6",
        ),
    ],
)
def test_what_does_not_fit_is_refused(data: DataSpec, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(data, **fields)


def test_another_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss is a LossConfig, .* give a WorldModelLossConfig"):
        WorldModelSystemConfig(model=MODEL).make(LossConfig(), data_of(), None, jnp.float32)


# Toy models, whose frames tell what they saw


class Carry(NamedTuple):
    frame: jax.Array  # (B, H, W, C)


def counting(shape: tuple[int, ...]) -> WorldModel:
    """Reconstructs perfectly; a step adds 10 times the action to all pixels."""

    def loss(variables: Any, batch: Record, key: jax.Array) -> Any:
        assert isinstance(batch, Record)
        value = variables["params"]["w"] * batch.reward.mean() + jax.random.uniform(key)
        return value, ({"state": variables["state"] + 1}, {"loss": value})

    def observe(variables: Any, context: Record, key: Any, horizon: int, starts: int = 1) -> Any:
        return Carry(context.observation[:, -1]), None

    def imagine(variables: Any, carry: Carry, action: jax.Array, key: Any) -> Any:
        added = (10 * action).reshape(-1, *[1] * len(shape)).astype(jnp.uint8)
        return Carry(carry.frame + added), Prediction(None, None, None)  # type: ignore[arg-type]

    def init(key: jax.Array) -> Any:
        return {"params": {"w": jnp.ones(())}, "state": jnp.zeros(())}

    return WorldModel(init, loss, observe, imagine, lambda variables, carry: carry.frame, 1)


def records(shape: tuple[int, ...], dtype: Any = jnp.uint8) -> dict[str, jax.Array]:
    """Two sequences of five frames, whose pixels are all equal but for their channels."""
    level = jnp.array([[0, 1, 2, 3, 4], [100, 100, 101, 101, 102]])
    pixels = jnp.broadcast_to(level.reshape(2, 5, *[1] * len(shape)), (2, 5, *shape))
    flags = jnp.zeros((2, 5), bool)
    return Record(
        observation=(pixels + 30 * jnp.arange(shape[-1])).astype(dtype),
        action=jnp.array([[5, 1, 2, 0, 7], [7, 0, 1, 3, 7]]),
        reward=jnp.full((2, 5), 3.0),
        terminated=flags,
        truncated=flags,
        is_first=flags,
    )._asdict()


def system_of(shape: tuple[int, ...]) -> WorldModelSystem:
    spec = EnvSpec("toy", shape, "uint8", 8, True, 5)
    return make_world_model_system(counting(shape), spec, context=2)


def test_the_loss_is_the_models_own() -> None:
    system = system_of((2, 2, 1))
    key, variables = jax.random.key(3), system.init(jax.random.key(0))
    value, (state, metrics) = system.losses["model"](
        variables, records((2, 2, 1)), key, jnp.int32(0)
    )
    np.testing.assert_allclose(value, 3.0 + jax.random.uniform(key))
    assert state == {"state": 1.0}
    assert metrics == {"loss": value}


@pytest.mark.parametrize(("channels", "offsets"), [(1, [0]), (3, [0, 30, 60]), (4, [90])])
def test_pictures_are_real_rows_over_dreams(channels: int, offsets: list[int]) -> None:
    shape = (2, 3, channels)
    system = system_of(shape)
    rows = system.samples(system.init(jax.random.key(0)), records(shape), jax.random.key(1))[
        "dream"
    ]
    assert rows.shape == (4, 5, 2, 3, len(offsets))
    assert rows.dtype == jnp.float32
    # Two frames are shown; the second's action leads to the third.
    expected = np.array(
        [
            [0, 1, 2, 3, 4],
            [0, 1, 1 + 10, 1 + 30, 1 + 30],
            [100, 100, 101, 101, 102],
            [100, 100, 100, 100 + 10, 100 + 40],
        ]
    )
    for channel, offset in enumerate(offsets):
        shown = np.round(255 * np.asarray(rows[..., channel]))
        np.testing.assert_array_equal(
            shown, np.broadcast_to((expected + offset)[..., None, None], shown.shape)
        )


def test_there_are_no_pictures_of_vectors() -> None:
    system = system_of((3,))
    batch = records((3,), jnp.float32)
    assert system.samples(system.init(jax.random.key(0)), batch, jax.random.key(1)) == {}


# Runs


@pytest.mark.parametrize("prior", ["mlp", pytest.param("maskgit", marks=pytest.mark.slow)])
def test_a_world_model_is_fitted_to_video(prior: str, tmp_path: Path) -> None:
    assert isinstance(MODEL, GitStormConfig)
    config = FitConfig(
        data=VideoConfig(count=8, test_count=3, length=6),
        model=WorldModelSystemConfig(model=dataclasses.replace(MODEL, prior=prior), context=2),
        loss=LOSS,
        training=FitTraining(steps=4, batch_size=4, chunk=2, checkpoint_every=2),
    )
    shown = {}
    fit(config, tmp_path, show=lambda step, pictures: shown.update({step: pictures}))
    assert shown[4]["dream"].shape == (6, 6, 12, 12, 1)
    run = load_fit(tmp_path)
    assert run.config == config  # its sections were found again
    np.testing.assert_array_equal(
        np.round(255 * shown[4]["dream"][::2]), run.dataset.test["observation"]
    )
    before = run.system.init(jax.random.key(0))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, run.variables)
    assert all(jax.tree.leaves(moved["batch_stats"]))  # the loss' new model state was kept


def test_presets_differ_by_their_prior_alone() -> None:
    git_storm, storm = (PRESETS[f"{name}_sprite_jump_video"]() for name in ("git_storm", "storm"))
    assert git_storm.model.model.system == "GIT-STORM"
    assert storm.model.model.system == "STORM"
    assert git_storm.preset == "git_storm_sprite_jump_video"
    same = {"preset": git_storm.preset, "model.model.prior": "maskgit"}
    assert apply_overrides(storm, same) == git_storm
    for config in (git_storm, storm):
        data = data_of(**{k: (16, *v[1:]) for k, v in SHAPES.items()})
        assert config.model.make(config.loss, data, None, jnp.float32).spec.num_actions == 9


def test_own_recordings_are_fitted_too() -> None:
    """Not named after an environment, as a set of the caller's own."""
    arrays = {name: np.asarray(x) for name, x in records((2, 2, 1)).items()}
    system = make(Dataset("mine", arrays, arrays).spec, num_actions=8, context=2)
    assert system.spec.num_actions == 8
