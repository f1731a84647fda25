"""Video prediction: what a world model predicts of an episode's frames, and how well.

The benchmark of GIT-STORM (Meo, 2026, section 5.4 and appendix 5.7): the first frames of an episode
are shown, the following ones predicted under the recorded actions. What is beyond an episode's end
is never scored: every score takes a mask ``valid``.
"""

import functools
import importlib
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from worldmodels_jax.evaluation.batches import in_batches
from worldmodels_jax.evaluation.open_loop import open_loop
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import PyTree, Record

PSNR_OF_EQUAL_FRAMES = 100.0  # dB, in place of infinity; a wrong pixel of 2000x2000x3 is below it
_SSIM_WINDOW = 7
_BATCH = 16  # episodes predicted at once


class Prediction(NamedTuple):
    """What a model makes of E episodes of T = C + L records."""

    frames: np.ndarray  # (E, T, *observation_shape): C reconstructions, then L dreamed frames
    log_likelihood: np.ndarray | None  # (E, T-1, N) nats, of the real frames' tokens


class FrameErrors(NamedTuple):
    """Errors of single frames."""

    psnr: np.ndarray  # (E, T) dB
    ssim: np.ndarray  # (E, T) in [-1, 1]


def episode_lengths(records: Record) -> np.ndarray:
    """How many records belong to the episode that a row begins with.

    Args:
      records: ``(E, T, ...)``, consecutive in time, across resets.

    Returns:
      ``(E,)`` int, in ``[1, T]``.
    """
    later = np.asarray(records.is_first)[:, 1:]
    return 1 + (np.cumsum(later, axis=1) == 0).sum(1)


def predict(
    world_model: WorldModel, variables: PyTree, records: Record, key: jax.Array, *, context: int
) -> Prediction:
    """Predict frames from the first C, and score the real ones' tokens.

    Each episode has a key of its own: what is predicted does not depend on the others.

    Args:
      world_model: the model.
      variables: its variables.
      records: ``(E, C + L, ...)``.
      key: a PRNG key.
      context: C.

    Returns:
      The frames, and log p of the tokens given the real past, None for a model without a prior
      over tokens.

    Raises:
      ValueError: if the context leaves nothing to predict.
    """

    def one(variables: PyTree, row: tuple[Record, jax.Array]) -> tuple[Any, ...]:
        record, key = row
        key_dream, key_tokens = jax.random.split(key)
        single = jax.tree.map(lambda x: x[None], record)
        frames = open_loop(world_model, variables, single, key_dream, context=context)
        if world_model.log_likelihood is None:
            return (frames[0],)
        return frames[0], world_model.log_likelihood(variables, single, key_tokens)[0]

    # What was learned is an argument: the same program serves every checkpoint.
    every = functools.partial(jax.jit(jax.vmap(one, in_axes=(None, 0))), variables)
    keys = jax.random.split(key, records.reward.shape[0])
    frames, *log_p = in_batches(every, (records, keys), _BATCH)
    return Prediction(frames, log_p[0] if log_p else None)


def ssim_window(shape: tuple[int, ...]) -> int:
    """Side of the SSIM window for frames ``(H, W, C)``: 7, or the largest odd one that fits.

    Raises:
      ValueError: for frames below 3x3, in which no window has a structure.
    """
    side = min(_SSIM_WINDOW, *shape[:2])
    if side < 3:
        raise ValueError(
            f"frames of shape {shape} are too small for SSIM, whose smallest window is 3x3."
        )
    return side - 1 + side % 2


def frame_errors(real: np.ndarray, predicted: np.ndarray) -> FrameErrors:
    """PSNR and SSIM of every frame, by scikit-image.

    Both have a data range of 255 and average over the channels. SSIM (Wang et al., 2004) has a
    uniform window of side ``ssim_window`` and sample covariances, which are scikit-image's
    defaults. Equal frames, whose PSNR is infinite, count 100 dB.

    Args:
      real: ``(E, T, H, W, C)`` uint8.
      predicted: the same.

    Raises:
      ModuleNotFoundError: if scikit-image is not installed.
      ValueError: for frames below 3x3.
    """
    chex.assert_rank([real, predicted], 5)
    chex.assert_equal_shape([real, predicted])
    chex.assert_type([real, predicted], np.uint8)
    metrics = _metrics()
    window = ssim_window(real.shape[2:])
    psnr, ssim = np.empty(real.shape[:2]), np.empty(real.shape[:2])
    for at in np.ndindex(real.shape[:2]):
        a, b = real[at], predicted[at]
        equal = np.array_equal(a, b)
        psnr[at] = (
            PSNR_OF_EQUAL_FRAMES if equal else metrics.peak_signal_noise_ratio(a, b, data_range=255)
        )
        ssim[at] = metrics.structural_similarity(
            a, b, win_size=window, data_range=255, channel_axis=-1
        )
    return FrameErrors(psnr, ssim)


def _metrics() -> Any:
    try:
        return importlib.import_module("skimage.metrics")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PSNR and SSIM need scikit-image, which is not installed: run "
            "`pip install 'worldmodels_jax[eval]'`."
        ) from error


def masked_curve(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Means over the episodes that last, step by step.

    Args:
      values: ``(E, T)``.
      valid: ``(E, T)`` bool.

    Returns:
      ``(T,)``, NaN where no episode lasts.
    """
    chex.assert_equal_shape([values, valid])
    count = valid.sum(0)
    total = np.where(valid, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def token_perplexity(log_likelihood: np.ndarray, valid: np.ndarray) -> float:
    """exp(-mean over time and tokens of log p).

    Args:
      log_likelihood: ``(E, T, N)`` nats.
      valid: ``(E, T)`` bool, the frames that count.

    Raises:
      ValueError: if none does.
    """
    chex.assert_equal_shape_prefix([log_likelihood, valid], 2)
    if not valid.any():
        raise ValueError("no frame is valid: the perplexity needs at least one predicted frame.")
    return float(np.exp(-log_likelihood[valid].astype(np.float64).mean()))
