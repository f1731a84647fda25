"""Train a world model and an agent inside it, then evaluate and draw.

  python -m experiments.train --config=catch --run=runs/catch --config.model.prior=mlp

The same command with the same --run directory resumes an interrupted run, bit-identically.
"""

from collections.abc import Mapping
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments import common, evaluate, imagine, run_flags
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.metrics import read_metrics
from worldmodels_jax.training.parallel import is_main_process, num_hosts
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import train
from worldmodels_jax.viz.curves import plot_learning_curves


def main(overrides: dict[str, str]) -> None:
    """Train, evaluate, draw."""
    run_flags.join()
    preset = run_flags.CONFIG.value or "catch"
    config = common.make_config(preset, overrides)
    directory = Path(run_flags.RUN.value or f"runs/{preset}")
    total = config.training.steps
    system = f"{config.model.system} on {config.env.name}, {total} steps"
    if is_main_process():
        print(f"{config.preset}: {system} -> {directory}")
    with (
        common.lost_host_note(directory),
        tqdm(total=total, unit="step", smoothing=0.1, disable=not is_main_process()) as bar,
    ):

        def report(step: int, metrics: Mapping[str, float]) -> None:
            shown = {
                "return": metrics.get("episode/return"),
                "model loss": metrics.get("world_model/loss"),
                "perplexity": metrics.get("world_model/token_perplexity"),
                "entropy": metrics.get("agent/actor_entropy"),
                "steps/s": metrics["steps_per_second"],
            }
            run_flags.advance(bar, step, total, shown)

        with common.stop_signals() as should_stop:
            train(
                config,
                directory,
                **run_flags.chosen(),
                report=report,
                should_stop=should_stop,
            )
    if should_stop():
        run_flags.tell_stopped(directory)
        return
    if num_hosts() > 1:
        # Reading a checkpoint is an act of all hosts; playing is one's.
        if is_main_process():
            print(f"Trained: python -m experiments.evaluate --run={directory} plays, on one host")
        return

    result = evaluate.evaluate_run(directory)
    print(evaluate.describe(result))
    written = [directory / "checkpoints", directory / "metrics.jsonl", directory / "tensorboard"]
    written.append(evaluate.write(directory, result))
    curve = directory / "learning_curve.png"
    rows = read_metrics(directory / "metrics.jsonl")
    names = [f"seed_{i}/episode/return" for i in range(run_flags.SEEDS.value)]
    runs = [[{"step": row["step"], "return": row[n]} for row in rows if n in row] for n in names]
    if run_flags.SEEDS.value == 1:
        runs = [
            [{**row, "return": row["episode/return"]} for row in rows if "episode/return" in row]
        ]
    if all(runs):
        plot_learning_curves(
            curve, runs, "return", reference={"random": result["random_mean"]}, title=config.preset
        )
        written.append(curve)
    if is_visual(config):
        written.append(imagine.imagine_run(directory))
    print("Wrote\n" + "\n".join(f"  {path}" for path in written))


def is_visual(config: Config) -> bool:
    """Whether the observations are frames that a GIF can show."""
    return len(build(config).spec.observation_shape) == 3


if __name__ == "__main__":
    flags.adopt_module_key_flags(run_flags)  # --help shows them
    common.run_app(main, fields=True)
