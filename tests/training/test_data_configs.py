"""Data sets of files and of random video: what ``fit`` gets of them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from worldmodels_jax import envs
from worldmodels_jax.config import from_dict, to_dict
from worldmodels_jax.data import factor_files
from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.data.rows import Rows
from worldmodels_jax.training.data_config import (
    DataConfig,
    FactorsConfig,
    RainConfig,
    load_data,
)
from worldmodels_jax.training.data_files import FactorFilesConfig
from worldmodels_jax.training.data_video import VideoConfig, random_sequences
from worldmodels_jax.training.input import gather

SIZES = (2, 3, 4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MPI3D with 24 images, each of one colour: its number."""
    small = dataclasses.replace(
        factor_files.FILES["mpi3d_real"],
        image_shape=(2, 2, 3),
        factor_names=("a", "b", "c"),
        factor_sizes=SIZES,
    )
    monkeypatch.setattr(factor_files, "FILES", {"mpi3d_real": small})
    images = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None, None], (24, 2, 2, 3))
    np.savez(tmp_path / small.path, images=images)
    return tmp_path


def numbers(arrays: dict[str, Any]) -> np.ndarray:
    """Which images these are, by what they show; their factors must say the same."""
    found = np.asarray(arrays["image"])[:, 0, 0, 0]
    np.testing.assert_array_equal(found, np.ravel_multi_index(arrays["factors"].T, SIZES))
    return found


@pytest.mark.parametrize("unpack", [False, True])
def test_files_are_drawn_and_split(folder: Path, unpack: bool) -> None:
    config = FactorFilesConfig(name="mpi3d_real", unpack=unpack)
    whole = config.load(folder)
    assert isinstance(whole.train["image"], Rows)
    train, test = numbers(whole.train), numbers(whole.test)
    assert (len(train), len(test)) == (20, 4)
    assert sorted([*train, *test]) == list(range(24))
    assert whole.spec.shapes == {"image": (2, 2, 3), "factors": (3,)}
    assert whole.source.factor_sizes == SIZES

    some = dataclasses.replace(config, count=10, seed=3).load(folder)
    drawn = [*numbers(some.train), *numbers(some.test)]
    assert len(set(drawn)) == len(drawn) == 10
    other = dataclasses.replace(config, count=10, seed=4).load(folder)
    assert set(drawn) != {*numbers(other.train), *numbers(other.test)}


def test_batches_are_gathered_from_files(folder: Path) -> None:
    data = FactorFilesConfig(name="mpi3d_real").load(folder)
    batches = gather(data.train, 4, [0], first_step=0, num_steps=5)  # an epoch
    assert batches["image"].shape == (5, 4, 2, 2, 3)
    shown = numbers({name: x.reshape(20, *x.shape[2:]) for name, x in batches.items()})
    assert sorted(shown) == sorted(numbers(data.train))
    assert sorted(shown) != list(shown)


def test_files_need_a_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dsprites is read from files: .*--data_dir=FOLDER"):
        FactorFilesConfig().load(None)
    with pytest.raises(ValueError, match=r"data\.count=25 images cannot be drawn from the 24"):
        FactorFilesConfig(name="mpi3d_real", count=25).load(folder)


@pytest.fixture(scope="module")
def catch() -> Dataset:
    """Catch lasts 9 steps, so that sequences of 6 records cross into the next episode."""
    return VideoConfig(env="Catch-bsuite", count=70, test_count=3, length=6).load(None)


def test_video_is_sequences_of_records(catch: Dataset) -> None:
    shapes = {name: x.shape for name, x in catch.train.items()}
    scalars = ("action", "reward", "terminated", "truncated", "is_first")
    assert shapes == {"observation": (70, 6, 10, 5, 1)} | dict.fromkeys(scalars, (70, 6))
    assert catch.test["reward"].shape == (3, 6)
    assert catch.train["observation"].dtype == np.uint8
    assert catch.train["action"].dtype == np.int32
    assert catch.name == catch.source.spec.name == "Catch-bsuite"
    assert set(np.unique(catch.train["action"])) == {0, 1, 2}


def test_sequences_follow_one_another(catch: Dataset) -> None:
    """70 sequences are the first of 64 environments, then the second of 6 of them."""
    first = catch.train["is_first"]
    assert first[:64, 0].all()
    assert first[:64].sum() == 64
    assert not first[64:, 0].any()
    # An episode of 9 steps is 10 records: the next begins with the fifth of a second sequence.
    np.testing.assert_array_equal(first[64:, 4], True)
    joined = np.concatenate([catch.train["terminated"][:6], catch.train["terminated"][64:]], axis=1)
    np.testing.assert_array_equal(joined, np.tile(np.arange(12) == 9, (6, 1)))
    # The ball falls by a row a step, across the cut and until it is caught or lost.
    frames = catch.train["observation"][..., 0]
    fall = np.concatenate([frames[:6], frames[64:]], axis=1).any(axis=-1).argmax(axis=-1)
    np.testing.assert_array_equal(fall[:, :9], np.tile(np.arange(9), (6, 1)))


def test_frames_follow_from_actions(catch: Dataset) -> None:
    """The paddle, in the last row, goes where the recorded action says."""
    frames, actions = catch.train["observation"][:64, :, :, :, 0], catch.train["action"][:64]
    paddle = frames[:, :, -1].argmax(axis=-1)
    expected = np.clip(paddle[:, :-1] + actions[:, :-1] - 1, 0, 4)
    np.testing.assert_array_equal(paddle[:, 1:], expected)


def test_test_sequences_are_others(catch: Dataset) -> None:
    again = VideoConfig(env="Catch-bsuite", count=70, test_count=3, length=6).load(None)
    jax.tree.map(np.testing.assert_array_equal, again.train, catch.train)
    assert (catch.train["action"][:3] != catch.test["action"]).any()


def test_continuous_actions_are_in_their_range() -> None:
    env = envs.make("Pendulum-v1")
    records = random_sequences(env, jax.random.key(0), count=3, length=4)
    assert records.action.shape == (3, 4, 1)
    assert records.observation.shape == (3, 4, *env.spec.observation_shape)
    assert records.action.min() < 0 < records.action.max()
    assert abs(records.action).max() <= 1


def test_impossible_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"video of SpriteJump is made, not read: leave out"):
        VideoConfig().load(tmp_path)
    with pytest.raises(ValueError, match=r"data\.length=0 must be at least 1"):
        VideoConfig(length=0).load(None)
    with pytest.raises(ValueError, match="SpriteJumb"):
        VideoConfig(env="SpriteJumb").load(None)


@pytest.mark.parametrize(
    "config", [FactorFilesConfig(name="cars3d", unpack=True), VideoConfig(length=3)]
)
def test_a_saved_config_is_found_again(config: DataConfig) -> None:
    assert from_dict(DataConfig, to_dict(config)) == config


def test_a_made_set_is_kept_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FactorsConfig(count=20)
    made = load_data(config)
    kept = load_data(config, cache_dir=tmp_path)
    monkeypatch.setattr(FactorsConfig, "make", lambda self: pytest.fail("made again"))
    read = load_data(config, cache_dir=tmp_path)
    for other in (kept, read):
        assert other.config == config
        for name, x in made.train.items():
            np.testing.assert_array_equal(other.train[name], x)
    assert read.source.factor_names == made.source.factor_names
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"keeps sprites16, is damaged .*: delete it"):
        load_data(config, cache_dir=tmp_path)


def test_another_set_is_another_file(tmp_path: Path) -> None:
    for config in (FactorsConfig(count=20), FactorsConfig(count=20, seed=1)):
        load_data(config, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_sets_of_files_are_not_kept(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--cache_dir=.* keeps data sets that are made"):
        load_data(FactorFilesConfig(name="mpi3d_real"), folder, tmp_path / "cache")


def test_rain_is_made_for_training_and_evaluation() -> None:
    data = load_data(RainConfig(count=3, test_count=2, rows=4, columns=4))
    assert data.train["rain"].shape == (3, 9, 4, 4)
    assert data.test["accumulation"].shape == (2, 4, 4)
    assert (data.train["rain"] >= 0).all()
    assert data.source.rows == 4
    with pytest.raises(ValueError, match=r"data\.test_count=0 must be at least 1"):
        load_data(RainConfig(test_count=0))
