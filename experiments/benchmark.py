"""Measure every part of the training step: time, arithmetic, memory, compilation.

  python -m experiments.benchmark --presets=catch,atari100k --out=benchmark.json
  python -m experiments.benchmark --presets=catch --compare=benchmark.json

Times are medians with quartiles; arithmetic counts matrix products and convolutions, scans as
often as they run, and is compared with the machine's own speed at a large matrix product. The fused
and the host-stepped loop take turns, so that a busy minute is busy for both; the ratio is told.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from experiments import common
from experiments.benchmark_loops import measure_training, training_loops
from experiments.benchmark_parts import Part, decoding_parts, parts_of, warm
from experiments.configs import PRESETS
from worldmodels_jax.evaluation import cost
from worldmodels_jax.files import replacing
from worldmodels_jax.training.parallel import compiler_options
from worldmodels_jax.training.parts import build


def measure(part: Part, ceiling: float, repeats: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table, of a function compiled with XLA's options."""
    with tempfile.TemporaryDirectory() as directory, _cache(directory):
        compiled = cost.compile_function(part.function, *part.args, options=options)
        jax.clear_caches()
        cached = cost.compile_function(part.function, *part.args, options=options)
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
        parts, options = build(config), compiler_options(config.training.small_products)
        for group in (parts_of(config, parts), decoding_parts(config, parts.spec)):
            for part in group:
                if wanted(part.name):
                    keep(preset, part.name, measure(part, ceiling, repeats, options))
        for names, loops in training_loops(config, parts, seeds, run_chunk, wanted):
            for name, row in zip(
                names, measure_training(config, parts, loops, ceiling, repeats), strict=True
            ):
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
    if "of_fused" in row:
        low, median, high = row["of_fused"]
        cells.append(f"{median:.1f} [{low:.1f}, {high:.1f}] of the fused")
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
