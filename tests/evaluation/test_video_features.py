"""The random-feature distance: fixed, 0 for equal sets, growing with what space and time lack."""

import itertools

import numpy as np
import pytest

from worldmodels_jax.evaluation import video_features
from worldmodels_jax.evaluation.frechet import frechet_distance
from worldmodels_jax.evaluation.video_features import random_video_features

B, T, SIDE = 64, 12, 16


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    """A bright square that moves by a pixel a frame in a direction of its own, on a dark ground."""
    rng = np.random.default_rng(0)
    out = np.full((B, T, SIDE, SIDE, 3), 30, np.uint8)
    velocity = rng.choice([-1, 1], (B, 2))
    place = rng.integers(0, SIDE, (B, 2))
    for b in range(B):
        for t in range(T):
            rows, columns = ((place[b] + t * velocity[b])[:, None] + np.arange(4)) % SIDE
            out[b, t, rows[:, None], columns] = [220, 120, 40]
    return out


@pytest.fixture(scope="module")
def real(videos: np.ndarray) -> np.ndarray:
    """Features of the videos as they are."""
    return random_video_features(videos)


@pytest.fixture(scope="module")
def floor(real: np.ndarray) -> float:
    """What two halves of the same kind of videos differ by."""
    return frechet_distance(real[::2], real[1::2])


def distance(real: np.ndarray, videos: np.ndarray) -> float:
    return frechet_distance(real, random_video_features(videos))


def test_distance_grows_with_noise_and_is_zero_for_equal_sets(
    videos: np.ndarray, real: np.ndarray, floor: float
) -> None:
    noise = np.random.default_rng(1).normal(size=videos.shape)

    def noisy(scale: float) -> np.ndarray:
        return np.clip(videos + scale * noise, 0, 255).astype(np.uint8)

    distances = [distance(real, noisy(scale)) for scale in (0, 8, 16, 32)]
    assert distances[0] < 1e-6
    assert all(3 * low < high for low, high in itertools.pairwise(distances))
    assert distances[-1] > 3 * floor


def test_distance_grows_with_frames_frozen(
    videos: np.ndarray, real: np.ndarray, floor: float
) -> None:
    def frozen(count: int) -> np.ndarray:
        """The last frames are copies of the one before them."""
        return videos[:, np.minimum(np.arange(T), T - 1 - count)]

    distances = [distance(real, frozen(count)) for count in (3, 6, 11)]
    assert all(2 * low < high for low, high in itertools.pairwise(distances))
    assert distances[-1] > 3 * floor


def test_distance_grows_with_time_shuffled(
    videos: np.ndarray, real: np.ndarray, floor: float
) -> None:
    """The same frames in another order: nothing that looks at single frames could tell."""
    swapped = [1, 0, *range(2, T)]
    half = [3, 0, 4, 1, 5, 2, *range(6, T)]
    all_of_it = [8, 3, 5, 11, 4, 7, 0, 6, 1, 9, 2, 10]
    distances = [distance(real, videos[:, order]) for order in (swapped, half, all_of_it)]
    assert all(2 * low < high for low, high in itertools.pairwise(distances))
    assert distances[-1] > 2 * floor


def test_weights_are_the_same_everywhere() -> None:
    """Literals: numbers of one version must stay comparable with those of the next."""
    kernels, projection = video_features._weights(3)
    assert [k.shape for k in kernels] == [(3, 3, 3, 6, 32), (3, 3, 3, 32, 64), (3, 3, 3, 64, 128)]
    np.testing.assert_allclose(projection.T @ projection, np.eye(64), atol=1e-6)
    # The projection comes first in the stream, so that it is one for any number of channels.
    tall = np.random.default_rng(0).random((448, 64)) - 0.5
    np.testing.assert_allclose(projection @ (projection.T @ tall), tall, atol=1e-5)
    np.testing.assert_allclose(kernels[0].ravel()[:2], [0.0036961, -0.04813053], rtol=1e-4)
    for kernel in kernels:
        variance = 2 / (27 * kernel.shape[3])  # He's
        np.testing.assert_allclose(kernel.var(), variance, rtol=0.05)
        np.testing.assert_allclose(kernel.mean(), 0.0, atol=0.05 * variance**0.5)


def test_features_equal_a_slow_network() -> None:
    video = np.random.default_rng(3).integers(0, 256, (1, 3, 4, 5, 2), np.uint8)
    kernels, projection = video_features._weights(2)
    x = video[0] / 127.5 - 1
    following = np.concatenate([x[1:], x[-1:]])
    x = np.concatenate([x, following - x], axis=-1)
    statistics = []
    for kernel in kernels:
        size = (x.shape[0], -(-x.shape[1] // 2), -(-x.shape[2] // 2))
        # "SAME": as many zeros as the last window needs, the odd one at the end.
        pads = [2, *(max(2 * m + 1 - n, 0) for m, n in zip(size[1:], x.shape[1:], strict=False))]
        padded = np.pad(x, [*((p // 2, p - p // 2) for p in pads), (0, 0)])
        out = np.zeros((*size, kernel.shape[-1]))
        for t, h, w in np.ndindex(*size):
            window = padded[t : t + 3, 2 * h : 2 * h + 3, 2 * w : 2 * w + 3]
            out[t, h, w] = np.maximum(np.tensordot(window, kernel, 4), 0)
        x = out
        statistics += [x.mean((0, 1, 2)), x.std((0, 1, 2))]
    expected = np.concatenate(statistics) @ projection
    np.testing.assert_allclose(random_video_features(video)[0], expected, rtol=1e-3, atol=1e-5)


def test_videos_of_another_kind_are_refused(videos: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        random_video_features(videos[0])
    with pytest.raises(AssertionError):
        random_video_features(videos.astype(np.float32))
