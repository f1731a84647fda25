"""Masks, errors and perplexity by hand; scikit-image is asked, not tested."""

from typing import Any

import numpy as np
import pytest

from worldmodels_jax.evaluation import video
from worldmodels_jax.types import Record


def records(is_first: list[list[int]]) -> Record:
    first = np.array(is_first, bool)
    return Record(*[np.zeros(first.shape)] * 5, is_first=first)


def test_episodes_end_where_the_next_begins() -> None:
    rows = [[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert video.episode_lengths(records(rows)).tolist() == [3, 5, 1, 4]


def test_psnr_by_hand_and_ssim_of_equal_frames() -> None:
    real = np.full((1, 3, 8, 8, 3), 100, np.uint8)
    predicted = real.copy()
    predicted[0, 1] += 10  # an error of 10 everywhere: 20 log10(255 / 10)
    predicted[0, 2, 0, 0, 0] += 48  # one value of 192: mean square 12
    errors = video.frame_errors(real, predicted)
    assert errors.psnr[0, 0] == video.PSNR_OF_EQUAL_FRAMES
    assert errors.psnr[0, 1] == pytest.approx(20 * np.log10(25.5))
    assert errors.psnr[0, 2] == pytest.approx(10 * np.log10(255**2 / 12))
    assert errors.ssim[0, 0] == pytest.approx(1.0)
    assert errors.ssim[0, 1] < 1.0


def test_ssim_has_a_window_that_fits() -> None:
    assert [video.ssim_window((n, 20, 3)) for n in (64, 7, 6, 5, 3)] == [7, 7, 5, 5, 3]
    with pytest.raises(ValueError, match=r"\(2, 9, 1\) are too small for SSIM"):
        video.ssim_window((2, 9, 1))


def test_means_are_over_what_is_valid() -> None:
    values = np.array([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    valid = np.array([[1, 1, 0], [1, 0, 0]], bool)
    np.testing.assert_array_equal(video.masked_curve(values, valid), [2.0, 2.0, np.nan])


def test_perplexity_is_that_of_tokens_that_count() -> None:
    log_p = np.log(np.array([[[0.5, 0.125], [1e-9, 1e-9]]]))
    valid = np.array([[True, False]])
    # The geometric mean of 2 and 8.
    assert video.token_perplexity(log_p, valid) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no frame is valid"):
        video.token_perplexity(log_p, ~valid & False)


def test_every_episode_is_predicted_for_itself(
    world_model: Any, model_variables: Any, records: Any
) -> None:
    import jax

    key = jax.random.key(0)
    both = video.predict(world_model, model_variables, records, key, context=3)
    assert both.frames.shape == records.observation.shape
    assert both.frames.dtype == np.uint8
    assert both.log_likelihood is not None
    batch, length = records.reward.shape
    assert both.log_likelihood.shape[:2] == (batch, length - 1)
    assert (both.log_likelihood <= 0).all()
    without = world_model._replace(log_likelihood=None)
    assert video.predict(without, model_variables, records, key, context=3).log_likelihood is None
