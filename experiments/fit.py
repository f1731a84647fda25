"""Train a system on a data set, then evaluate it and draw.

  python -m experiments.fit --config=alpha_tcvae_sprites16 --config.loss.alpha=0.5

The same command with the same --run directory resumes an interrupted run, bit-identically.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import common, evaluate_fit, run_flags
from experiments.configs import OFFLINE_PRESETS
from worldmodels_jax.training.fit import fit
from worldmodels_jax.training.fit_config import num_steps
from worldmodels_jax.training.parallel import is_main_process, num_hosts
from worldmodels_jax.viz.dream import write_contact_sheet

DEFAULT = "alpha_tcvae_sprites16"


def main(overrides: dict[str, str]) -> None:
    """Train, evaluate, draw."""
    run_flags.join()
    preset = run_flags.CONFIG.value or DEFAULT
    config = common.make_fit_config(preset, overrides)
    evaluate_fit.check_flags(type(config.model))
    directory = Path(run_flags.RUN.value or f"runs/{preset}")
    if is_main_process():
        print(f"{config.preset}: making or reading the data", flush=True)
    data = evaluate_fit.dataset(config.data)
    total = num_steps(config.training, data.spec.num_train)
    if is_main_process():
        size = f"{data.spec.num_train:,} examples of {data.name}"
        print(f"{config.preset}: {total:,} steps on {size} -> {directory}")
    with (
        common.lost_host_note(directory),
        tqdm(total=total, unit="step", smoothing=0.1, disable=not is_main_process()) as bar,
    ):

        def report(step: int, metrics: Mapping[str, float]) -> None:
            run_flags.advance(bar, step, total, console(metrics))

        def show(step: int, pictures: Mapping[str, np.ndarray]) -> None:
            write_pictures(directory / "samples", step, pictures)

        with common.stop_signals() as should_stop:
            fit(
                config,
                directory,
                **run_flags.chosen(),
                dataset=data,
                report=report,
                show=show,
                should_stop=should_stop,
            )
    if should_stop():
        run_flags.tell_stopped(directory)
        return
    if num_hosts() > 1:
        if is_main_process():
            print(f"Trained: python -m experiments.evaluate --run={directory} evaluates, on a host")
        return
    written = [directory / name for name in ("checkpoints", "metrics.jsonl", "samples")]
    written += evaluate_fit.evaluate(directory, data=data)
    print("Wrote\n" + "\n".join(f"  {path}" for path in written))


def console(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """What of a chunk's metrics is told at once: the loss of each part, and the speed."""
    losses: dict[str, float | None] = {
        name.replace("/", " "): value
        for name, value in metrics.items()
        if name.endswith("/loss") and name.count("/") == 1
    }
    return losses | {"steps/s": metrics["steps_per_second"]}


def write_pictures(directory: Path, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Write a system's pictures, ``NAME_STEP.png``.

    Args:
      directory: made if missing.
      step: of the run.
      pictures: name -> (R, Q, H, W, C) in [0, 1].
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in pictures.items():
        frames = np.rint(255 * np.clip(rows, 0, 1)).astype(np.uint8)
        path = directory / f"{name}_{step:08d}.png"
        write_contact_sheet(path, frames.reshape(-1, *frames.shape[2:]), frames.shape[1])


if __name__ == "__main__":
    for module in (run_flags, evaluate_fit):
        flags.adopt_module_key_flags(module)  # --help shows them
    common.run_app(main, fields=True, presets=OFFLINE_PRESETS, default=OFFLINE_PRESETS[DEFAULT])
