"""Feature networks for the scores of images."""

from pathlib import Path

import jax
import numpy as np
import pytest

from worldmodels_jax.evaluation import image_features
from worldmodels_jax.evaluation.diversity import vendi_score
from worldmodels_jax.evaluation.frechet import frechet_distance
from worldmodels_jax.evaluation.image_features import (
    ImageFeatures,
    embed_images,
    inception,
    random_conv,
)
from worldmodels_jax.nn import inception as inception_v3

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def test_random_features_against_slow_numpy() -> None:
    network = random_conv(IMAGES)
    rng = np.random.default_rng(7)
    x = 2 * (IMAGES[:2] / 255.0) - 1
    for features in (32, 64, 128):
        kernel = rng.normal(size=(3, 3, x.shape[-1], features)) * np.sqrt(2 / (9 * x.shape[-1]))
        side = x.shape[1] // 2
        padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        y = np.zeros((2, side, side, features))
        for i in range(side):
            for j in range(side):
                window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                y[:, i, j] = np.einsum("bhwc,hwcf->bf", window, kernel)
        x = np.maximum(y, 0)
    expected = np.concatenate([x.mean((1, 2)), x.reshape(2, -1)], axis=1)
    embedded = embed_images(network.embed, IMAGES[:2])
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-4)
    assert network.name == "random"
    assert network.projection is not None
    assert network.projection.shape == (256, 48)
    np.testing.assert_allclose(
        network.centre, embed_images(network.embed, IMAGES, 5).mean(0), rtol=1e-4, atol=1e-5
    )


def test_diversity_is_centred_and_distances_are_projected() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 4)) + 5.0
    projection = np.eye(4)[:, :2]
    network = ImageFeatures("toy", lambda x: x, np.full(4, 5.0), projection)
    assert network.vendi(a) == vendi_score(a - 5.0)
    assert network.vendi(a) > 2 * vendi_score(a)
    assert network.frechet(a, b) == pytest.approx(frechet_distance(a[:, :2], b[:, :2]))
    whole = ImageFeatures("toy", lambda x: x, np.zeros(4))
    assert whole.frechet(a, b) == pytest.approx(frechet_distance(a, b))


def test_inception_sees_large_images_of_three_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = inception_v3.inception_weight_shapes()
    np.savez(tmp_path / "w.npz", **{name: np.zeros(shape) for name, shape in shapes.items()})
    monkeypatch.setattr(inception_v3, "RESOLUTION", 4)
    monkeypatch.setattr(inception_v3, "inception_features", lambda weights, x: x)
    network = inception(tmp_path / "w.npz")
    assert network.name == "inception"
    assert network.centre.shape == (2048,)
    seen = network.embed(np.float32([[[[0.0], [1.0]], [[0.5], [0.5]]]]))
    # Halfway between the centres of two pixels are a quarter and three quarters of either.
    left = np.float32([0, 0.125, 0.375, 0.5])
    right = 1 - left
    columns = np.stack([left, 0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, right], 1)
    with pytest.raises(
        FileNotFoundError, match=r"no file .*none\.npz with the weights of Inception"
    ):
        inception(tmp_path / "none.npz")
    np.testing.assert_allclose(seen, np.repeat(2 * columns[None, ..., None] - 1, 3, -1), atol=1e-6)


def test_trained_features_tell_the_factors() -> None:
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 2, 200), rng.integers(0, 2, 200)], axis=1)
    images = rng.integers(0, 30, (200, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] += np.uint8(200) * factors[:, 0].astype(np.uint8)
    images[:, 3, 3, 0] += np.uint8(200) * factors[:, 1].astype(np.uint8)
    network = image_features.factor_cnn(images, factors, jax.random.key(0), steps=60)
    features = embed_images(network.embed, images)
    assert network.name == "factor"
    assert network.projection is None
    assert features.shape == (200, 256)
    # A linear classifier reads from them, without seeing these images, what it was trained for.
    solution, *_ = np.linalg.lstsq(
        np.c_[features[:100], np.ones(100)], 2.0 * factors[:100] - 1, rcond=1e-3
    )
    predicted = np.c_[features[100:], np.ones(100)] @ solution > 0
    assert (predicted == factors[100:]).mean() > 0.95
    # What it was not trained on, noise, is hardly there: factors explain most of the variance.
    groups = 2 * factors[:, 0] + factors[:, 1]
    means = np.stack([features[groups == g].mean(0) for g in range(4)])[groups]
    assert means.var(0).sum() > 0.7 * features.var(0).sum()
