"""Video prediction of a run: Fréchet distance, token perplexity, PSNR, SSIM, contact sheet, GIF.

  python -m experiments.video --run=runs/pong --episodes=256 --context=8 --horizon=48

Episodes are played by the trained agent; of each the first frames are shown and the following ones
predicted under the recorded actions. FVD needs the weights of I3D (--i3d_weights; see
worldmodels_jax/evaluation/i3d.py). Without them a distance under fixed random features is told,
which is no FVD.
"""

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common
from experiments.record import record
from worldmodels_jax.evaluation import video
from worldmodels_jax.evaluation.frechet import frechet_distance
from worldmodels_jax.evaluation.i3d import i3d_features, load_i3d
from worldmodels_jax.evaluation.video_features import random_video_features
from worldmodels_jax.files import replacing
from worldmodels_jax.training.parts import EnvSource
from worldmodels_jax.training.run import LoadedRun, load
from worldmodels_jax.types import Record
from worldmodels_jax.viz.dream import dream_panels, to_rgb, write_contact_sheet, write_gif


def collect(run: LoadedRun, key: jax.Array, *, episodes: int, length: int, seed: int) -> Record:
    """The beginnings of episodes that the run's agent plays.

    Args:
      run: the trained agent.
      key: of its actions.
      episodes: E.
      length: T, records of each; what follows an episode's end is the next episode.
      seed: of host environments.

    Returns:
      ``(E, T, ...)`` NumPy arrays.
    """
    at_once = episodes
    if run.parts.open_host is not None:
        at_once = min(max(4, run.config.env.num_envs), episodes)
    rounds = [
        record(
            run, jax.random.fold_in(key, i), steps=length, num_envs=at_once, seed=seed + i * at_once
        )
        for i in range(-(-episodes // at_once))
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:episodes], *rounds)


def predict_video(
    directory: Path,
    *,
    episodes: int = 256,
    context: int = 8,
    horizon: int = 48,
    i3d_weights: Path | None = None,
    seed: int = 2_000_000,
    trained_seed: int | None = None,
    step: int | None = None,
    env: EnvSource | None = None,
) -> dict[str, Any]:
    """Measure a run's video prediction; writes ``video.json``, ``video.gif`` and ``video.png``.

    Args:
      directory: of the run.
      episodes: E.
      context: C, frames shown.
      horizon: L, frames predicted; fewer where the model's position table holds fewer.
      i3d_weights: the ``.npz`` file, for FVD.
      seed: of episodes and predictions.
      trained_seed: which of the run's seeds; by default the first.
      step: agent steps of the checkpoint; by default the newest.
      env: the environment of the caller's own that the run was trained with, if it was.

    Returns:
      What ``video.json`` holds.

    Raises:
      ValueError: for vector observations, or a context that leaves nothing to predict.
      FileNotFoundError: if there are no such weights.
    """
    started = time.monotonic()
    weights = None if i3d_weights is None else load_i3d(i3d_weights)
    run = load(directory, seed=trained_seed, step=step, env=env)
    spec = run.parts.spec
    if len(spec.observation_shape) != 3:
        raise ValueError(
            f"{spec.name} has vector observations of shape {spec.observation_shape}: there are no "
            "frames to predict."
        )
    longest = run.config.model.longest
    if longest is not None and context >= longest:
        raise ValueError(
            f"--context={context} leaves nothing to predict: the position table holds "
            f"model.max_length={longest} steps in all; show fewer frames."
        )
    length = context + (horizon if longest is None else min(horizon, longest - context))
    key_play, key_predict = jax.random.split(jax.random.key(seed))
    records = collect(run, key_play, episodes=episodes, length=length, seed=seed)
    lengths = video.episode_lengths(records)
    valid = np.arange(length) < lengths[:, None]
    predicted = valid.copy()
    predicted[:, :context] = False
    if not predicted.any():
        raise ValueError(
            f"no episode lasts beyond the {context} records shown (the longest has "
            f"{lengths.max()}): give a smaller --context."
        )
    prediction = video.predict(
        run.parts.world_model,
        run.train.world_model.variables,
        jax.tree.map(jnp.asarray, records),
        key_predict,
        context=context,
    )
    real = np.asarray(records.observation)
    errors = video.frame_errors(real, prediction.frames)
    whole = valid.all(axis=1)
    result: dict[str, Any] = {
        "perplexity": None
        if prediction.log_likelihood is None
        else video.token_perplexity(
            prediction.log_likelihood[:, context - 1 :], valid[:, context:]
        ),
        "psnr": float(errors.psnr[predicted].mean()),
        "ssim": float(errors.ssim[predicted].mean()),
        "frechet_random": _distance(random_video_features, real, prediction.frames, whole, context),
        "episodes": episodes,
        "whole_episodes": int(whole.sum()),
        "psnr_curve": _json(video.masked_curve(errors.psnr, valid)),
        "ssim_curve": _json(video.masked_curve(errors.ssim, valid)),
        "preset": run.config.preset,
        "step": run.step,
        "seed": run.seed,
        "protocol": {
            "environment": spec.name,
            "context": context,
            "horizon": length - context,
            "actions": "sampled",
            "video_seed": seed,
            "frames": "predicted ones only",
            "ssim_window": video.ssim_window(real.shape[2:]),
            "frechet": "whole episodes only",
        },
        "device": jax.devices()[0].device_kind,
    }
    if weights is not None:
        features = functools.partial(_i3d, weights)
        result["fvd"] = _distance(features, real, prediction.frames, whole, context)
    longest = int(np.argmax(lengths))
    shown = int(lengths[longest])
    panels = dream_panels(
        real[longest, :shown], prediction.frames[longest, :shown], context=min(context, shown)
    )
    write_gif(directory / "video.gif", panels, fps=8)
    write_contact_sheet(directory / "video.png", panels[:: max(1, shown // 12)], columns=3)
    result["minutes"] = (time.monotonic() - started) / 60
    with replacing(directory / "video.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _distance(
    features: Any, real: np.ndarray, predicted: np.ndarray, whole: Any, context: int
) -> float | None:
    """Between the predicted stretches of whole episodes; None of fewer than two."""
    if whole.sum() < 2:
        return None
    a, b = (features(frames[whole][:, context:]) for frames in (real, predicted))
    return frechet_distance(a, b)


def _i3d(weights: dict[str, np.ndarray], frames: np.ndarray) -> np.ndarray:
    return i3d_features(weights, to_rgb(frames))


def _json(curve: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in curve]


def describe(result: dict[str, Any]) -> str:
    """The result as a few lines for a terminal."""

    def number(value: float | None, digits: int = 3) -> str:
        return "not defined" if value is None else f"{value:.{digits}f}"

    protocol = ", ".join(f"{name}={value}" for name, value in result["protocol"].items())
    lines = [
        f"Video prediction of {result['preset']} at step {result['step']}, seed {result['seed']}:",
        f"  {result['episodes']} episodes, {result['whole_episodes']} of them of full length",
        f"  token perplexity         {number(result['perplexity'])}",
        f"  PSNR                     {number(result['psnr'], 2)} dB",
        f"  SSIM                     {number(result['ssim'])}",
        f"  random-feature Fréchet   {number(result['frechet_random'])} (not an FVD)",
    ]
    if "fvd" in result:
        lines.append(f"  FVD (I3D)                {number(result['fvd'], 2)}")
    lines.append(f"  {result['minutes']:.1f} minutes on {result['device']}; protocol: {protocol}")
    return "\n".join(lines)


def main(overrides: dict[str, str]) -> None:
    """Measure, print, say where."""
    del overrides
    directory = Path(flags.FLAGS.run)
    result = predict_video(
        directory,
        episodes=flags.FLAGS.episodes,
        context=flags.FLAGS.context,
        horizon=flags.FLAGS.horizon,
        i3d_weights=None if flags.FLAGS.i3d_weights is None else Path(flags.FLAGS.i3d_weights),
        seed=flags.FLAGS.video_seed,
        trained_seed=flags.FLAGS.trained_seed,
        step=flags.FLAGS.step,
    )
    print(describe(result))
    if result["protocol"]["horizon"] < flags.FLAGS.horizon:
        print(f"The position table holds a horizon of {result['protocol']['horizon']} only.")
    print("Wrote " + ", ".join(str(directory / f"video.{kind}") for kind in ("json", "gif", "png")))


def define_flags() -> None:
    """The program's flags, some of which other programs have too."""
    flags.DEFINE_string("run", None, "Directory of the run.", required=True)
    flags.DEFINE_integer("episodes", 256, "Episodes to predict.", lower_bound=1)
    flags.DEFINE_integer("context", 8, "Real frames that are shown.", lower_bound=1)
    flags.DEFINE_integer("horizon", 48, "Frames that are predicted.", lower_bound=1)
    flags.DEFINE_string("i3d_weights", None, "I3D weights as .npz, for FVD.")
    flags.DEFINE_integer("video_seed", 2_000_000, "Seed of episodes and predictions.")
    flags.DEFINE_integer("trained_seed", None, "Which of the run's seeds; by default the first.")
    flags.DEFINE_integer("step", None, "Agent steps of the checkpoint; by default the newest.")


if __name__ == "__main__":
    define_flags()
    common.run_app(main)
