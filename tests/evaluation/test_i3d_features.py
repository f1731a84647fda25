"""The file of I3D's weights, and how videos are made ready for it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.evaluation import i3d
from worldmodels_jax.evaluation.i3d import i3d_features, load_i3d
from worldmodels_jax.nn.i3d import i3d_weight_shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.random(s, np.float32) for n, s in i3d_weight_shapes().items()}


def test_weights_are_read_as_they_were_written(
    weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "i3d.npz"
    np.savez(path, **weights, global_step=np.int64(3))
    loaded = load_i3d(path)
    assert list(loaded) == list(weights)  # and nothing that was there besides
    assert all(np.array_equal(loaded[name], weights[name]) for name in weights)

    name = "Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w"
    np.savez(path, **{**weights, name: weights[name].T})
    with pytest.raises(ValueError, match=rf"{name}' is of shape \(64, 192, 1, 1, 1\)"):
        load_i3d(path)
    np.savez(path, **{n: a for n, a in weights.items() if not n.endswith("/b")})
    with pytest.raises(ValueError, match=r"lacks 1 of the 230 .* 'Logits/Conv3d_0c_1x1/conv_3d/b'"):
        load_i3d(path)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npz with the weights of I3D"):
        load_i3d(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match=r"text\.npz is no \.npz file"):
        load_i3d(tmp_path / "text.npz")


def test_frames_are_scaled_and_resized_without_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that returns its input: [0, 255] to [-1, 1], two pixels to four by halves."""
    monkeypatch.setattr(i3d, "i3d_logits", lambda w, v: v[..., 0].reshape(len(v), -1) * w["gain"])
    i3d._logits.clear_cache()
    video = np.zeros((5, 1, 2, 2, 3), np.uint8)
    video[..., 1, :] = 255
    out = i3d_features({"gain": np.float32(2.0)}, video, resolution=4)
    i3d._logits.clear_cache()
    row = 2 * np.array([-1.0, -0.5, 0.5, 1.0])  # half-pixel centres: 0, 1/4, 3/4, 1
    np.testing.assert_allclose(out, np.tile(row, (5, 4)), atol=1e-6)


def test_features_are_the_logits_of_every_video(weights: dict[str, np.ndarray]) -> None:
    videos = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    scaled = {n: 0.01 * a if n.endswith("/w") else a for n, a in weights.items()}
    out = i3d_features(scaled, videos, resolution=32)
    assert out.shape == (2, 400)
    assert jax.eval_shape(lambda: jnp.asarray(out)).dtype == jnp.float32
    assert np.isfinite(out).all()
    assert (out[0] != out[1]).any()
    for wrong in (videos[..., :1], videos / 255.0):
        with pytest.raises(AssertionError):
            i3d_features(scaled, wrong, resolution=32)
