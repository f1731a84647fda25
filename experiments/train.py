"""Train a world model and an agent inside it, then evaluate and draw.

  python -m experiments.train --config=catch --run=runs/catch --config.model.prior=mlp

The same command with the same --run directory resumes an interrupted run, bit-identically.
"""

from collections.abc import Mapping
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments import common, evaluate, imagine
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.metrics import console_line, read_metrics
from worldmodels_jax.training.run import build, train
from worldmodels_jax.viz.curves import plot_learning_curves

_CONFIG = flags.DEFINE_string("config", "catch", "Preset; see the list above.")
_RUN = flags.DEFINE_string("run", None, "Directory of the run; by default runs/<config>.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)
_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Seeds trained at once, --seed and those after it.", lower_bound=1
)


def main(overrides: dict[str, str]) -> None:
    """Train, evaluate, draw."""
    config = common.make_config(_CONFIG.value, overrides)
    directory = Path(_RUN.value or f"runs/{_CONFIG.value}")
    total = config.training.steps
    system = f"{config.env.name}, {total} steps, prior={config.model.prior}"
    print(f"{config.preset}: {system} -> {directory}")
    with tqdm(total=total, unit="step", smoothing=0.1) as bar:

        def report(step: int, metrics: Mapping[str, float]) -> None:
            bar.update(min(step, total) - bar.n)
            bar.write(
                console_line(
                    step,
                    total,
                    {
                        "return": metrics.get("episode/return"),
                        "model loss": metrics.get("world_model/loss"),
                        "perplexity": metrics.get("world_model/token_perplexity"),
                        "entropy": metrics.get("agent/actor_entropy"),
                        "steps/s": metrics["steps_per_second"],
                    },
                )
            )

        train(config, directory, seed=_SEED.value, num_seeds=_SEEDS.value, report=report)

    result = evaluate.evaluate_run(directory)
    print(evaluate.describe(result))
    written = [directory / "checkpoints", directory / "metrics.jsonl", directory / "tensorboard"]
    written.append(evaluate.write(directory, result))
    curve = directory / "learning_curve.png"
    rows = read_metrics(directory / "metrics.jsonl")
    names = [f"seed_{i}/episode/return" for i in range(_SEEDS.value)]
    runs = [[{"step": row["step"], "return": row[n]} for row in rows if n in row] for n in names]
    if _SEEDS.value == 1:
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
    common.run_app(main, fields=True)
