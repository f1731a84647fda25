"""Draw what a run's world model dreams: real frames, the dream, and their difference, as a GIF.

  python -m experiments.imagine --run=runs/catch --context=4 --horizon=12

The dream starts from the real frames before it and follows the same actions.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import common
from experiments.record import record
from worldmodels_jax.evaluation.open_loop import episode_window, open_loop
from worldmodels_jax.training.parts import EnvSource
from worldmodels_jax.training.run import load
from worldmodels_jax.viz.dream import dream_panels, write_contact_sheet, write_gif

_CONTEXT = flags.DEFINE_integer(
    "context",
    None,
    "Real frames the model is shown; by default training.dream_context.",
    lower_bound=1,
)
_HORIZON = flags.DEFINE_integer(
    "horizon",
    None,
    "Frames it dreams; by default as many as the position table allows, up to 48.",
    lower_bound=1,
)
_OUT = flags.DEFINE_string("out", None, "The GIF; by default dream.gif in the run's directory.")
_DREAM_SEED = flags.DEFINE_integer("dream_seed", 0, "Seed of the episode and of the dream.")
_TRAINED_SEED = flags.DEFINE_integer("trained_seed", None, "Which of the run's seeds dreams.")


def imagine_run(
    directory: Path,
    *,
    context: int | None = None,
    horizon: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    trained_seed: int | None = None,
    env: EnvSource | None = None,
) -> Path:
    """Record the agent, let its world model dream along, draw both.

    Args:
      directory: of the run.
      context: C, real frames shown.
      horizon: L, frames dreamed.
      out: the GIF's path.
      seed: of the episode and the dream.
      trained_seed: which of the run's seeds; by default the first.
      env: the environment of the caller's own that the run was trained with, if it was.

    Returns:
      The path of the GIF; a contact sheet of the same frames lies beside it as ``.png``.

    Raises:
      ValueError: for vector observations, or a stretch the position table cannot hold.
    """
    run = load(directory, seed=trained_seed, env=env)
    shape = run.parts.spec.observation_shape
    if len(shape) != 3:
        raise ValueError(
            f"{run.parts.spec.name} has vector observations of shape {shape}: there are no frames "
            "to draw."
        )
    context = context or run.config.training.dream_context
    most = run.config.model.longest
    room = 48 if most is None else most - context
    horizon = horizon or max(1, min(48, room))
    key_episode, key_dream = jax.random.split(jax.random.key(seed))
    steps = 20 * (context + horizon)
    records = record(run, key_episode, steps=steps, num_envs=1, seed=seed)
    records = jax.tree.map(lambda x: x[0], records)
    length = context + horizon
    if run.parts.env is not None:
        # A dream knows no resets: show a stretch of one episode, shorter if episodes are.
        longest = _longest_episode(np.asarray(records.is_first))
        length = max(min(length, longest), context + 1)
    start = episode_window(records, length)
    window = jax.tree.map(lambda x: x[None, start : start + length], records)
    # What was learned is an argument: the same program serves every checkpoint.
    predict = jax.jit(functools.partial(open_loop, run.parts.world_model, context=context))
    frames = predict(run.train.world_model.variables, window, key_dream)
    panels = dream_panels(np.asarray(window.observation[0]), np.asarray(frames[0]), context=context)
    path = out or directory / "dream.gif"
    write_gif(path, panels, fps=4 if run.parts.env is not None else 15)
    every = max(1, length // 12)
    write_contact_sheet(path.with_suffix(".png"), panels[::every], columns=3)
    return path


def _longest_episode(is_first: np.ndarray) -> int:
    starts = np.flatnonzero(is_first)
    return int(np.diff([*starts, is_first.size]).max()) if starts.size else is_first.size


def main(overrides: dict[str, str]) -> None:
    """Draw and say where."""
    del overrides
    path = imagine_run(
        Path(flags.FLAGS.run),
        context=_CONTEXT.value,
        horizon=_HORIZON.value,
        out=None if _OUT.value is None else Path(_OUT.value),
        seed=_DREAM_SEED.value,
        trained_seed=_TRAINED_SEED.value,
    )
    print(f"Wrote {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Directory of the run.", required=True)
    common.run_app(main)
