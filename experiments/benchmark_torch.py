"""Time an agent step against the same step of a PyTorch STORM, in calls that take turns.

  taskset -c 0 python -m experiments.benchmark_torch --torch_python=/path/to/venv/bin/python

The PyTorch program (``experiments/torch_storm.py``) is ours, written after public STORM, which is
not run itself: its layers in its order, as many parameters, batches of the same shapes. It runs in
a process of its own, under an interpreter that has PyTorch, with the same cores as this one. Every
round times each part here and there, one after the other, so that a busy minute of the machine is
busy for both; ratios are of the CPU seconds of a round, over all threads.

PyTorch runs as it comes, and in a second process with the memory settings that this project's
programs give themselves (``experiments.allocator``), which matter as much to it.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common
from experiments.allocator import ENVIRONMENT
from experiments.benchmark import machine
from experiments.benchmark_parts import parts_of
from worldmodels_jax.agents.actor_critic import ActorCriticConfig
from worldmodels_jax.evaluation import cost
from worldmodels_jax.files import replacing
from worldmodels_jax.models.git_storm_config import GitStormConfig
from worldmodels_jax.nn.tokenizer import padded_size
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.parts import Parts, build
from worldmodels_jax.types import EnvSpec

Rows = dict[str, dict[str, tuple[str, ...]]]  # by row, by program, the parts it is the sum of

# A part's name here, and what of the PyTorch program does the same.
_SAME: dict[str, tuple[str, ...]] = {
    "world-model update": ("world-model update",),
    "dreams": ("dreams",),
    "actor-critic loss and gradient": ("actor-critic update",),
    "agent update, with dreams": ("dreams", "actor-critic update"),
}
_TORCH: dict[str, dict[str, str]] = {"PyTorch": {}, "PyTorch, memory kept": ENVIRONMENT}
_STEP: dict[str, tuple[str, ...]] = {
    "agent step": ("world-model update", "agent update, with dreams")
}


class TorchProcess:
    """The PyTorch program, waiting for the name of what to time."""

    def __init__(self, python: str, sizes: dict[str, Any], env: dict[str, str]) -> None:
        """Start it.

        Raises:
          ValueError: if the interpreter does not run it.
        """
        program = Path(__file__).with_name("torch_storm.py")
        try:
            self._process = subprocess.Popen(
                [python, str(program), json.dumps(sizes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **env},
            )
        except OSError as error:
            raise ValueError(f"--torch_python={python} does not run: {error}.") from error
        try:
            self.about = json.loads(self._line())
        except ValueError as error:
            self.close()
            raise ValueError(
                f"--torch_python={python} ended before it was ready (above is why): name an "
                "interpreter that has PyTorch, such as that of a virtual environment after "
                "pip install torch."
            ) from error

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def cpu_seconds(self, part: str) -> float:
        """Do a part once.

        Raises:
          ValueError: if the process has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{part}\n")
            self._process.stdin.flush()
        line = self._line()
        if not line:
            raise ValueError(f"the PyTorch program ended in its {part} (above is why).")
        return float(line.split()[1])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


def torch_sizes(config: Config, spec: EnvSpec) -> dict[str, Any]:
    """What ``torch_storm.Sizes`` takes, of a preset.

    Raises:
      ValueError: for what the PyTorch program is not.
    """
    model, agent, training = config.model, config.agent, config.training
    if not isinstance(model, GitStormConfig) or not isinstance(agent, ActorCriticConfig):
        raise ValueError(f"--config={config.preset} is no STORM: choose one such as atari100k.")
    frames = spec.discrete and spec.observation_dtype == "uint8"
    if not frames or model.tokenizer != "categorical" or model.mixer != "concat":
        raise ValueError(
            f"--config={config.preset}: the PyTorch program has frames, discrete actions, the "
            "categorical tokenizer and the mixer concat only."
        )
    if training.dream_starts != 1:
        raise ValueError(
            f"training.dream_starts={training.dream_starts}: the PyTorch program dreams once for "
            "a sequence; leave it at 1."
        )
    height, width, channels = spec.observation_shape
    same = ("channels", "num_tokens", "num_classes", "width", "hidden", "heads", "layers")
    return {
        **{name: getattr(model, name) for name in (*same, "max_length", "dropout", "num_bins")},
        "batch_size": training.batch_size,
        "batch_length": training.batch_length,
        "dreams": training.dream_batch,
        "context": training.dream_context,
        "horizon": training.horizon,
        "image": (*padded_size((height, width), len(model.channels)), channels),
        "num_actions": spec.num_actions,
        "agent_width": agent.width,
        "agent_depth": agent.depth,
    }


def num_parameters(parts: Parts) -> dict[str, int]:
    """What is trained here, by the PyTorch program's names."""
    key = jax.random.key(0)
    agent = jax.eval_shape(parts.agent.init, key)["params"]
    trained = {"world_model": jax.eval_shape(parts.world_model.init, key)["params"], **agent}
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(params)) for name, params in trained.items()
    }


def take_turns(
    timers: dict[str, Callable[[str], float]], parts: Rows, n: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every part in every program, a round after the other.

    Args:
      timers: by program, ``part -> seconds``.
      parts: by name of a row, by program, what it is the sum of.
      n: rounds, after one that is not counted.

    Returns:
      ``{row: {program: n seconds}}``.
    """
    names = {name: {p for row in parts.values() for p in row[name]} for name in timers}
    result: dict[str, dict[str, list[float]]] = {
        row: {name: [] for name in timers} for row in parts
    }
    order = sorted(set().union(*names.values()))
    for i in range(n + 1):
        seconds: dict[tuple[str, str], float] = {}
        for part in order:
            for name, timer in timers.items():
                if part in names[name]:
                    seconds[name, part] = timer(part)
        for row, of in parts.items():
            for name in timers:
                if i:
                    result[row][name].append(sum(seconds[name, part] for part in of[name]))
    return result


def compare(overrides: dict[str, str], preset: str, python: str, rounds: int) -> dict[str, Any]:
    """Measure.

    Args:
      overrides: of the preset's fields.
      preset: of a GIT-STORM or STORM.
      python: an interpreter that has PyTorch.
      rounds: that are counted.

    Returns:
      ``{"machine", "torch", "parameters", "preset", "overrides", "seconds": {row: {program:
      [...]}}, "ratios": {row: {program: quartiles}}}``; a ratio is PyTorch's seconds to ours.

    Raises:
      ValueError: if the interpreter has no PyTorch or the model is no STORM.
    """
    config = common.make_config(preset, overrides)
    built = build(config)
    sizes = torch_sizes(config, built.spec)
    processes = {}
    try:
        for name, env in _TORCH.items():
            processes[name] = TorchProcess(python, sizes, env)
        about = processes["PyTorch"].about
        calls = {
            part.name: (jax.jit(part.function), part.args)
            for part in parts_of(config, built)
            if part.name in _SAME
        }

        def ours(part: str) -> float:
            function, args = calls[part]
            started = time.process_time()
            jax.block_until_ready(function(*args))
            return time.process_time() - started

        timers: dict[str, Callable[[str], float]] = {"ours": ours}
        ours_of = {**{row: (row,) for row in _SAME}, **_STEP}
        rows: Rows = {row: {"ours": of} for row, of in ours_of.items()}
        for name, process in processes.items():
            timers[name] = process.cpu_seconds
            for of in rows.values():
                of[name] = tuple(same for part in of["ours"] for same in _SAME[part])
        seconds = take_turns(timers, rows, rounds)
    finally:
        for process in processes.values():
            process.close()
    ratios = {
        row: {
            name: np.quantile(np.divide(of[name], of["ours"]), [0.25, 0.5, 0.75]).tolist()
            for name in processes
        }
        for row, of in seconds.items()
    }
    return {
        "machine": machine(cost.matmul_ceiling()),
        "torch": about["version"],
        "parameters": {"ours": num_parameters(built), "PyTorch": about["parameters"]},
        "preset": preset,
        "overrides": overrides,
        "seconds": seconds,
        "ratios": ratios,
    }


def describe(result: dict[str, Any]) -> str:
    """A table for a terminal."""
    programs = [name for name in next(iter(result["seconds"].values())) if name != "ours"]
    lines = [
        f"{'CPU-seconds, medians':32}{'ours':>8}"
        + "".join(f"{p:>22}{'ratio':>26}" for p in programs)
    ]
    for row, of in result["seconds"].items():
        line = f"{row:32}{np.median(of['ours']):8.3g}"
        for name in programs:
            low, middle, high = result["ratios"][row][name]
            line += f"{np.median(of[name]):22.3g}" + f"{middle:.2f} [{low:.2f}, {high:.2f}]".rjust(
                20
            )
        lines.append(line)
    about = result["machine"]
    lines.append(
        f"{about['cores']} cores, JAX {about['jax']}, PyTorch {result['torch']}; a 2048 x 2048 "
        f"float32 product runs at {about['matmul_ceiling'] / 1e9:,.0f} GFLOP/s"
    )
    counts = [
        f"{program} " + ", ".join(f"{part} {number:,}" for part, number in of.items())
        for program, of in result["parameters"].items()
    ]
    lines.append(f"Parameters: {'; '.join(counts)}")
    return "\n".join(lines)


def main(overrides: dict[str, str]) -> None:
    """Measure, print, write."""
    given = flags.FLAGS
    result = compare(overrides, given.config, given.torch_python, given.rounds)
    print(describe(result))
    if given.out:
        with replacing(Path(given.out)) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("config", "atari100k", "Preset; PyTorch's is a STORM whatever its prior.")
    flags.DEFINE_string("torch_python", "python", "An interpreter that has PyTorch.")
    flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=2)
    flags.DEFINE_string("out", None, "JSON file to write.")
    common.run_app(main, fields=True)
