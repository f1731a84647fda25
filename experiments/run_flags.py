"""The flags that the programs which train have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from absl import flags
from tqdm import tqdm

from worldmodels_jax.training.directory import saved_steps
from worldmodels_jax.training.metrics import console_line
from worldmodels_jax.training.parallel import How, join_hosts

CONFIG = flags.DEFINE_string("config", None, "Preset; see the list above.")
RUN = flags.DEFINE_string("run", None, "Directory of the run; by default runs/<config>.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)
SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Seeds trained at once, --seed and those after it.", lower_bound=1
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices to split the work over; by default one, of several hosts all."
)
PARALLEL = flags.DEFINE_enum(
    "parallel", "shard_map", ["shard_map", "pmap"], "How devices are mapped over."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several hosts; found out on TPU pods and Slurm."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this host, from 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts.")
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    30,
    "Seconds without a sign of life after which a host is lost, and all others end.",
    lower_bound=1,
)


def join() -> None:
    """Make the processes of several hosts one program, as the flags say."""
    join_hosts(
        COORDINATOR.value,
        PROCESS_ID.value,
        NUM_PROCESSES.value,
        heartbeat_timeout=HEARTBEAT_TIMEOUT.value,
    )


def chosen() -> dict[str, Any]:
    """The arguments of ``train`` and ``fit`` that flags choose."""
    return {
        "seed": SEED.value,
        "num_seeds": SEEDS.value,
        "num_devices": DEVICES.value,
        "parallel": cast(How, PARALLEL.value),
    }


def tell_stopped(directory: Path) -> None:
    """Say how a run that a signal has stopped goes on."""
    saved = saved_steps(directory)
    where = f"saved at step {saved[-1]}" if saved else "nothing to save yet"
    print(f"Stopped, {where}: the same command with --run={directory} goes on")


def advance(bar: tqdm, step: int, total: int, shown: Mapping[str, float | None]) -> None:
    """Move a progress bar to a step, with a line of metrics above it."""
    bar.update(min(step, total) - bar.n)
    bar.write(console_line(step, total, shown))
