"""Measure every part of the training step: time, arithmetic, memory, compilation.

  python -m experiments.benchmark --presets=catch,atari100k --out=benchmark.json
  python -m experiments.benchmark --presets=catch --compare=benchmark.json

Times are medians with quartiles; arithmetic counts matrix products and convolutions, scans as
often as they run, and is compared with the machine's own speed at a large matrix product.
"""

import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from experiments import common
from experiments.benchmark_parts import (
    Part,
    SteppedByHost,
    decoding_parts,
    parts_of,
    random_records,
    warm,
)
from experiments.configs import PRESETS
from worldmodels_jax import envs
from worldmodels_jax.evaluation import cost
from worldmodels_jax.files import replacing
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.host import make_host_loop
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.online import LoopState, make_loop, over_seeds
from worldmodels_jax.training.parts import Parts, build

_SHORT = 0.3  # seconds; a shorter call is for its own part too dear to stand for a run


def measure(part: Part, ceiling: float, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as directory, _cache(directory):
        compiled = cost.compile_function(part.function, *part.args)
        jax.clear_caches()
        cached = cost.compile_function(part.function, *part.args)
    timing = cost.time_call(compiled.call, *part.args, repeats=repeats)
    flops = cost.matmul_flops(part.function, *part.args)
    return {
        **timing._asdict(),
        "flops": flops,
        "flops_xla": compiled.flops,
        "flops_per_second": flops / timing.median,
        "of_ceiling": flops / timing.median / ceiling,
        "memory": compiled.memory,
        "compile_cold": compiled.seconds,
        "compile_cached": cached.seconds,
        "steps_per_second": part.steps / timing.median if part.steps else None,
    }


def measure_training(
    config: Config,
    parts: Parts,
    num_seeds: int,
    ceiling: float,
    repeats: int,
    *,
    run_chunk: int = 0,
    host_stepped: bool = False,
) -> dict[str, Any]:
    """Whole training steps: a chunk of the loop after its warm-up.

    The arithmetic is that of the updates; acting and environment are left out. ``run_chunk`` is the
    chunk of a run, which is taken where it does not last too long. ``host_stepped`` steps a
    JAX-native environment from Python, as an emulator is, to tell what the fusion gains.
    """
    chunk, num_envs = config.training.chunk, config.env.num_envs
    host = None
    if parts.open_host is not None:
        host, iterations = parts.open_host(num_envs, 0, False), 1
    elif host_stepped:
        assert parts.env is not None
        host, iterations = SteppedByHost(parts.env, num_envs, 0), chunk
    else:
        iterations = chunk
    if host is not None:
        loop = make_host_loop(host, parts.halves)
        state, _ = loop.run(loop.init(0), chunk)  # the warm-up
        state, _ = loop.run(state, 1)  # compiles the updates
        calls = _time(lambda state: loop.run(state, iterations), state, repeats)
        host.close()
    else:
        calls = _time(*_compiled_loop(config, parts, num_seeds), repeats)
        if calls[0][0] < _SHORT and run_chunk > chunk:
            # The chunk of a real run, which shares out what a call costs by itself.
            iterations = run_chunk
            training = dataclasses.replace(config.training, chunk=run_chunk)
            config = dataclasses.replace(config, training=training)
            calls = _time(*_compiled_loop(config, parts, num_seeds), repeats)
    walls = np.asarray([wall for wall, _ in calls]) / iterations
    low, median, high = np.quantile(walls, [0.25, 0.5, 0.75])
    flops = num_seeds * _update_flops(config, parts)
    return {
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "cpu": float(np.median([cpu for _, cpu in calls])) / iterations,
        "repeats": repeats,
        "flops": flops,
        "flops_xla": None,
        "flops_per_second": flops / float(median),
        "of_ceiling": flops / float(median) / ceiling,
        "memory": cost.device_peak_memory(),
        "compile_cold": None,
        "compile_cached": None,
        "steps_per_second": num_envs * num_seeds / float(median),
    }


def _compiled_loop(
    config: Config, parts: Parts, num_seeds: int
) -> tuple[Callable[[LoopState], Any], LoopState]:
    """One chunk of the compiled loop, and a state that is past the warm-up and its compilation."""
    assert parts.env is not None
    env = envs.batch(envs.auto_reset(parts.env), config.env.num_envs)
    loop, key = make_loop(config, env, parts.halves), jax.random.key(0)
    if num_seeds > 1:
        loop, key = over_seeds(loop), jax.vmap(jax.random.key)(np.arange(num_seeds))
    run: Callable[[LoopState], Any] = jax.jit(loop.run, donate_argnums=0)
    state, _ = run(jax.jit(loop.init)(key))
    return run, run(state)[0]


def _time(
    run: Callable[[LoopState], Any], state: LoopState, repeats: int
) -> list[tuple[float, float]]:
    """Wall and CPU seconds of consecutive calls."""
    calls = []
    state = jax.block_until_ready(state)
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(run(state))
        calls.append((time.perf_counter() - wall, time.process_time() - cpu))
    return calls


def _update_flops(config: Config, parts: Parts) -> float:
    """Products of the updates that fall on one loop iteration, on average."""
    t, key = config.training, jax.random.key(0)
    updates = make_updates(t, parts.world_model, parts.agent)
    state = jax.eval_shape(updates.init, key)
    total = sum(
        update.ratio
        * cost.matmul_flops(update.step, state, random_records(parts.spec, update.batch), key)
        for update in updates.parts.values()
        if update.ratio
    )
    return config.env.num_envs * total


class _cache:  # noqa: N801  # a context manager, named as what it sets
    """A compilation cache of its own, which keeps everything."""

    def __init__(self, directory: str) -> None:
        self._names = {
            "jax_compilation_cache_dir": directory,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }

    def __enter__(self) -> None:
        self._before = {name: getattr(jax.config, name) for name in self._names}
        self._set(self._names)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def benchmark(
    presets: list[str],
    *,
    overrides: dict[str, str] | None = None,
    only: list[str] | None = None,
    seeds: tuple[int, ...] = (1,),
    repeats: int = 5,
    report: Callable[[str, str, dict[str, Any]], None] = lambda preset, part, row: None,
) -> dict[str, Any]:
    """Measure presets.

    Args:
      presets: their names.
      overrides: applied to each.
      only: parts whose name contains one of these; None measures all.
      seeds: numbers of seeds for the training step of JAX-native environments.
      repeats: timed calls, at least.
      report: called with every row as it is done.

    Returns:
      ``{"machine": {...}, "rows": {"preset: part": {...}}}``, times in seconds.
    """
    ceiling = cost.matmul_ceiling()
    rows: dict[str, Any] = {}

    def wanted(name: str) -> bool:
        return only is None or any(word in name for word in only)

    def keep(preset: str, name: str, row: dict[str, Any]) -> None:
        rows[f"{preset}: {name}"] = row
        report(preset, name, row)

    for preset in presets:
        config = common.make_config(preset, overrides or {})
        run_chunk, config = config.training.chunk, warm(config)
        parts = build(config)
        for group in (parts_of(config, parts), decoding_parts(config, parts.spec)):
            for part in group:
                if wanted(part.name):
                    keep(preset, part.name, measure(part, ceiling, repeats))
        for number in seeds:
            name = f"training step, {number} seed{'s' * (number > 1)}"
            if wanted(name) and (number == 1 or parts.env is not None):
                row = measure_training(config, parts, number, ceiling, repeats, run_chunk=run_chunk)
                keep(preset, name, row)
        name = "training step, host-stepped"
        if parts.env is not None and wanted(name):
            row = measure_training(config, parts, 1, ceiling, repeats, host_stepped=True)
            keep(preset, name, row)
    return {"machine": machine(ceiling), "overrides": overrides or {}, "rows": rows}


def machine(ceiling: float) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "jax": jax.__version__,
        "matmul_ceiling": ceiling,
    }


def table_row(preset: str, name: str, row: dict[str, Any], earlier: dict[str, Any] | None) -> str:
    """One line of text."""

    def number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
        return "-" if value is None else f"{value * scale:,.{digits}f}"

    cells = [
        f"{preset[:18]:18} {name[:31]:31}",
        f"{number(row['median'], 1e3):>10} ms",
        f"[{number(row['low'], 1e3)}, {number(row['high'], 1e3)}]".rjust(20),
        f"{number(row['cpu'], 1e3):>10} ms",
        f"{number(row['flops'], 1e-9, 2):>10} GFLOP",
        f"{number(row['flops_per_second'], 1e-9):>8} G/s",
        f"{number(row['of_ceiling'], 100):>5} %",
        f"{number(row['memory'], 1e-6):>9} MB",
        f"{number(row['compile_cold']):>6} s",
        f"{number(row['compile_cached']):>6} s",
        f"{number(row['steps_per_second']):>10}",
    ]
    if earlier is not None:
        cells.append(f"x{earlier['median'] / row['median']:.2f}")
    return " ".join(cells)


HEADER = (
    f"{'preset':18} {'part':31} {'median':>13} {'[quartiles]':>20} {'CPU time':>13} "
    f"{'products':>16} {'speed':>12} {'peak':>7} {'memory':>12} {'cold':>8} {'cached':>8} "
    f"{'steps/s':>10}"
)


def main(overrides: dict[str, str]) -> None:
    """Measure, print, write."""
    names = sorted(PRESETS) if flags.FLAGS.presets == ["all"] else flags.FLAGS.presets
    earlier = (
        json.loads(Path(flags.FLAGS.compare).read_text()) if flags.FLAGS.compare else {"rows": {}}
    )
    print(HEADER + ("  faster by" if flags.FLAGS.compare else ""))

    def report(preset: str, name: str, row: dict[str, Any]) -> None:
        print(table_row(preset, name, row, earlier["rows"].get(f"{preset}: {name}")), flush=True)

    result = benchmark(
        names,
        overrides=overrides,
        only=flags.FLAGS.parts,
        seeds=tuple(int(number) for number in flags.FLAGS.seeds),
        repeats=flags.FLAGS.repeats,
        report=report,
    )
    about = result["machine"]
    print(
        f"{about['devices']} x {about['device']}, {about['cores']} cores, JAX {about['jax']}; a "
        f"2048 x 2048 float32 product runs at {about['matmul_ceiling'] / 1e9:,.0f} GFLOP/s"
    )
    if flags.FLAGS.out:
        path = Path(flags.FLAGS.out)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
        from worldmodels_jax.viz.bars import plot_benchmark, plot_seed_throughput

        pictures = [path.with_suffix(".png")]
        plot_benchmark(pictures[0], result)
        if len(flags.FLAGS.seeds) > 1:
            pictures.append(path.with_name(f"{path.stem}_seeds.png"))
            plot_seed_throughput(pictures[1], result)
        print(f"Wrote {path}, {', '.join(map(str, pictures))}")


def define_flags() -> None:
    """The program's flags, some of which other programs have too."""
    flags.DEFINE_list("presets", ["catch", "minatar_breakout"], "Presets, or all.")
    flags.DEFINE_list("parts", None, "Only parts whose name contains one of these.")
    flags.DEFINE_list("seeds", ["1"], "Training step: numbers of seeds in one program.")
    flags.DEFINE_integer("repeats", 5, "Timed calls, at least.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file; plots of the same name lie beside it.")
    flags.DEFINE_string("compare", None, "JSON of an earlier run, to print ratios to.")


if __name__ == "__main__":
    define_flags()
    common.run_app(main, fields=True)
