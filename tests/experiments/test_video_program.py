"""The video program on a run of the debug preset."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import video
from experiments.configs.small import debug
from worldmodels_jax.config import apply_overrides
from worldmodels_jax.nn.i3d import i3d_weight_shapes
from worldmodels_jax.training.run import load, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Breakout's planes, whose episodes differ in length; too short to have learned anything."""
    directory = tmp_path_factory.mktemp("runs") / "breakout"
    overrides = {
        "env.name": "Breakout-MinAtar",
        "model.prior": "mlp",
        "training.steps": "40",
        "training.world_model_ratio": "0",
        "training.agent_ratio": "0",
    }
    train(apply_overrides(debug(), overrides), directory)
    return directory


def test_a_run_is_measured_and_drawn(run: Path) -> None:
    result = video.predict_video(run, episodes=6, context=2, horizon=4, seed=5)
    assert result == json.loads((run / "video.json").read_text())
    assert (result["episodes"], result["protocol"]["horizon"]) == (6, 4)
    assert 2 <= result["whole_episodes"] <= 6
    # 4 classes a token: an untrained prior is close to uniform.
    assert 2.0 < result["perplexity"] < 8.0
    assert len(result["psnr_curve"]) == len(result["ssim_curve"]) == 6
    # Only predicted frames count.
    assert min(result["psnr_curve"][2:]) <= result["psnr"] <= max(result["psnr_curve"][2:])
    assert result["frechet_random"] > 0
    assert "fvd" not in result
    text = video.describe(result)
    assert "not an FVD" in text
    assert "FVD (I3D)" not in text
    assert "context=2" in text
    with Image.open(run / "video.gif") as gif, Image.open(run / "video.png") as sheet:
        assert gif.n_frames >= 3
        assert sheet.size[0] > 100
    again = video.predict_video(run, episodes=6, context=2, horizon=4, seed=5)
    del result["minutes"], again["minutes"]
    assert again == result


def test_episodes_are_what_the_environment_shows(run: Path) -> None:
    import jax

    loaded = load(run)
    records = video.collect(loaded, jax.random.key(1), episodes=3, length=12, seed=0)
    assert records.observation.shape == (3, 12, 10, 10, 4)
    assert records.is_first[:, 0].all()
    ended = records.terminated | records.truncated
    np.testing.assert_array_equal(records.is_first[:, 1:], ended[:, :-1])


def test_what_cannot_be_predicted_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--context=16 leaves nothing .*max_length=16"):
        video.predict_video(run, episodes=2, context=16)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npz with the weights of I3D"):
        video.predict_video(run, episodes=2, i3d_weights=tmp_path / "none.npz")
    np.savez(tmp_path / "few.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match=f"of the {len(i3d_weight_shapes())} arrays of I3D"):
        video.predict_video(run, episodes=2, i3d_weights=tmp_path / "few.npz")
