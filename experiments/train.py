"""Train a world model and an agent inside it, then evaluate and draw.

  python -m experiments.train --config=catch --run=runs/catch --config.model.prior=mlp

The same command with the same --run directory resumes an interrupted run, bit-identically.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from absl import flags
from tqdm import tqdm

from experiments import common, evaluate, imagine
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.load import saved_steps
from worldmodels_jax.training.metrics import console_line, read_metrics
from worldmodels_jax.training.model_config import system_name
from worldmodels_jax.training.parallel import How, is_main_process, join_hosts, num_hosts
from worldmodels_jax.training.parts import build
from worldmodels_jax.training.run import train
from worldmodels_jax.viz.curves import plot_learning_curves

_CONFIG = flags.DEFINE_string("config", "catch", "Preset; see the list above.")
_RUN = flags.DEFINE_string("run", None, "Directory of the run; by default runs/<config>.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)
_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Seeds trained at once, --seed and those after it.", lower_bound=1
)
_DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices to split the work over; by default one, of several hosts all."
)
_PARALLEL = flags.DEFINE_enum(
    "parallel", "shard_map", ["shard_map", "pmap"], "How devices are mapped over."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several hosts; found out on TPU pods and Slurm."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this host, from 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts.")
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    30,
    "Seconds without a sign of life after which a host is lost, and all others end.",
    lower_bound=1,
)


def main(overrides: dict[str, str]) -> None:
    """Train, evaluate, draw."""
    join_hosts(
        _COORDINATOR.value,
        _PROCESS_ID.value,
        _NUM_PROCESSES.value,
        heartbeat_timeout=_HEARTBEAT_TIMEOUT.value,
    )
    config = common.make_config(_CONFIG.value, overrides)
    directory = Path(_RUN.value or f"runs/{_CONFIG.value}")
    total = config.training.steps
    system = f"{system_name(config.model)} on {config.env.name}, {total} steps"
    if is_main_process():
        print(f"{config.preset}: {system} -> {directory}")
    with (
        common.lost_host_note(directory),
        tqdm(total=total, unit="step", smoothing=0.1, disable=not is_main_process()) as bar,
    ):

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

        with common.stop_signals() as should_stop:
            train(
                config,
                directory,
                seed=_SEED.value,
                num_seeds=_SEEDS.value,
                num_devices=_DEVICES.value,
                parallel=cast(How, _PARALLEL.value),
                report=report,
                should_stop=should_stop,
            )
    if should_stop():
        saved = saved_steps(directory)
        where = f"saved at step {saved[-1]}" if saved else "nothing to save yet"
        print(f"Stopped, {where}: the same command with --run={directory} goes on")
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
