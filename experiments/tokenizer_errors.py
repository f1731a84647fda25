"""What tokenizers lose of frames: four tokens given the frame before, 16 and 4 without it."""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.token_training import (
    Budget,
    configuration,
    experience,
    make_reconstruct,
    train_tokenizer,
)
from worldmodels_jax.envs.scroll_grid import make_scroll_grid
from worldmodels_jax.files import replacing
from worldmodels_jax.types import Record

TOKENIZERS = {
    "delta-4": configuration("delta", 4),
    "delta-4, no max-pixel term": configuration("delta", 4, max_pixel_weight=0.0),
    "frame-16": configuration("frame", 16),
    "frame-4": configuration("frame", 4),
}


class Pairs(NamedTuple):
    """Transitions."""

    frames: np.ndarray  # (n, S, S, C) uint8, what the action led to
    previous: np.ndarray  # the same
    action: np.ndarray  # (n,)


def pairs_of(records: Record) -> Pairs:
    """All transitions of whole episodes ``(E, T, ...)``."""
    seen, action = np.asarray(records.observation), np.asarray(records.action)
    shape = seen.shape[2:]
    return Pairs(
        seen[:, 1:].reshape(-1, *shape), seen[:, :-1].reshape(-1, *shape), action[:, :-1].ravel()
    )


def frame_errors(
    reconstruct: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    pairs: Pairs,
    batch: int = 256,
) -> np.ndarray:
    """Mean squared error of every frame, of pixels in [0, 1]: ``(n,)``.

    Args:
      reconstruct: ``(frames, previous, action) -> (n, S, S, C)`` in [0, 1].
      pairs: n transitions.
      batch: how many are reconstructed at once.
    """
    errors = []
    for start in range(0, len(pairs.action), batch):
        some = [x[start : start + batch] for x in pairs]
        difference = np.asarray(reconstruct(*some), np.float64) - some[0] / 255
        errors.append((difference**2).mean((1, 2, 3)))
    return np.concatenate(errors)


def summary(errors: np.ndarray) -> dict[str, float]:
    """The mean over all frames, and over the hundredth of them that is worst."""
    worst = np.sort(errors)[-math.ceil(len(errors) / 100) :]
    return {"l2": float(errors.mean()), "worst_1_percent": float(worst.mean())}


def measure_seed(seed: int, budget: Budget, figure: Path | None) -> dict[str, Any]:
    """Train each tokenizer and measure what it loses of held-out frames.

    Args:
      seed: of the experience and of the networks.
      budget: how much to train.
      figure: path of the PNG with its reconstructions; None draws none.

    Returns:
      By tokenizer, and for repeating the frame before, what ``summary`` tells, and more.
    """
    env = make_scroll_grid()
    key_train, key_test, key_fit = jax.random.split(jax.random.key(seed), 3)
    records, _ = experience(env, key_train, budget.episodes)
    pairs = pairs_of(experience(env, key_test, budget.held_out)[0])
    copied = frame_errors(lambda frames, previous, action: previous / 255, pairs)
    row: dict[str, Any] = {"copy-last-frame": summary(copied)}
    drawn: dict[str, tuple[Any, Any, Any]] = {}
    for name, config in TOKENIZERS.items():
        started = time.process_time()
        variables, metrics = train_tokenizer(config, env.spec, records, key_fit, budget)
        seconds = time.process_time() - started
        reconstruct = functools.partial(make_reconstruct(config, env.spec), variables)
        errors = frame_errors(reconstruct, pairs)
        row[name] = {
            **summary(errors),
            "training_l2": metrics["reconstruction_l2"],
            "codebook_entropy": metrics["codebook_entropy"],
            "cpu_seconds": seconds,
        }
        worst = np.argsort(errors)[::-1][:4]
        drawn[name] = (errors, pairs.frames[worst], reconstruct(*(x[worst] for x in pairs)))
        print(f"seed {seed}, {name}: {summary(errors)}", flush=True)
    if figure is not None:
        drawn["copy-last-frame"] = (copied, None, None)
        draw_reconstructions(figure, drawn)
    return row


def conclude(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and ``passed``, which is of every seed.

    Acceptance: Delta-4 < frame-16 < frame-4, and Delta-4 below half of what repeating the frame
    before loses. Figure 5 of the paper: Delta-4's worst hundredth below frame-16's.
    """
    return {
        "means": {
            name: {
                kind: float(np.mean([row[name][kind] for row in rows]))
                for kind in ("l2", "worst_1_percent")
            }
            for name in rows[0]
        },
        "passed": {
            "l2: delta-4 < frame-16 < frame-4": all(
                row["delta-4"]["l2"] < row["frame-16"]["l2"] < row["frame-4"]["l2"] for row in rows
            ),
            "l2: delta-4 < 0.5 copy-last-frame": all(
                row["delta-4"]["l2"] < 0.5 * row["copy-last-frame"]["l2"] for row in rows
            ),
            "worst 1 %: delta-4 < frame-16": all(
                row["delta-4"]["worst_1_percent"] < row["frame-16"]["worst_1_percent"]
                for row in rows
            ),
        },
    }


def draw_reconstructions(path: Path, drawn: dict[str, tuple[Any, Any, Any]]) -> None:
    """Quantiles of the errors of frames, and the worst ones beside their reconstructions.

    Errors below 1e-5 are drawn as that.

    Args:
      path: the PNG.
      drawn: by tokenizer its errors ``(n,)``, and frames (uint8) and reconstructions (in [0, 1])
        ``(4, S, S, C)``, or None for both.
    """
    figure: Any = Figure(figsize=(11, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    shown = {name: images for name, images in drawn.items() if images[1] is not None}
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    axes = left.subplots()
    for name, (errors, _, _) in drawn.items():
        share = np.linspace(0, 100, 400)
        axes.semilogy(share, np.maximum(np.percentile(errors, share), 1e-5), label=name)
    axes.set(xlabel="% of held-out frames with a lower error", ylabel="squared error of a frame")
    axes.legend(fontsize=7)
    columns = right.subfigures(1, len(shown))
    for column, (name, (errors, frames, decoded)) in zip(columns, shown.items(), strict=True):
        column.suptitle(name.replace(", ", ",\n"), fontsize=8)
        cells = column.subplots(len(frames), 2)
        for row, frame, image, error in zip(
            cells, frames, decoded, np.sort(errors)[::-1], strict=False
        ):
            row[0].imshow(frame)
            row[1].imshow(np.asarray(image))
            row[1].set_title(f"{error:.3f}", fontsize=6, pad=1)
            for cell in row:
                cell.set_axis_off()
    with replacing(path) as temporary:
        canvas.print_figure(temporary, format="png", dpi=100)
