"""Whole training steps for ``experiments.benchmark``: loops that are timed in turns."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark_parts import SteppedByHost, random_records
from worldmodels_jax import envs
from worldmodels_jax.evaluation import cost
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.host import make_host_loop
from worldmodels_jax.training.learner import make_updates
from worldmodels_jax.training.online import LoopState, make_loop, over_seeds
from worldmodels_jax.training.parallel import compiler_options, make_mapping
from worldmodels_jax.training.parts import Parts
from worldmodels_jax.types import HostVector

_SHORT = 0.3  # seconds; a shorter call is for its own part too dear to stand for a run


class Loop(NamedTuple):
    """A training loop past its warm-up and its compilation.

    Attributes:
      run: ``state -> state, metrics``, of so many iterations; consumes the state.
      state: to start from.
      iterations: loop iterations of a call.
      num_seeds: trained at once.
      close: what the loop holds.
    """

    run: Callable[[Any], Any]
    state: Any
    iterations: int
    num_seeds: int = 1
    close: Callable[[], None] = lambda: None


def fused_loop(config: Config, parts: Parts, num_seeds: int, run_chunk: int) -> Loop:
    """The compiled loop, in chunks of ``config`` or, where those are short, of a run."""
    loop = _compiled_loop(config, parts, num_seeds)
    started = time.perf_counter()
    state, _ = jax.block_until_ready(loop.run(loop.state))
    if time.perf_counter() - started < _SHORT and run_chunk > loop.iterations:
        # The chunk of a real run, which shares out what a call costs by itself.
        training = dataclasses.replace(config.training, chunk=run_chunk)
        return _compiled_loop(dataclasses.replace(config, training=training), parts, num_seeds)
    return loop._replace(state=state)


def _compiled_loop(config: Config, parts: Parts, num_seeds: int) -> Loop:
    assert parts.env is not None
    env = envs.batch(envs.auto_reset(parts.env), config.env.num_envs)
    loop, key = make_loop(config, env, parts.halves), jax.random.key(0)
    if num_seeds > 1:
        loop, key = over_seeds(loop), jax.vmap(jax.random.key)(np.arange(num_seeds))
    run: Callable[[LoopState], Any] = jax.jit(
        loop.run,
        donate_argnums=0,
        compiler_options=compiler_options(config.training.small_products),
    )
    state, _ = run(jax.jit(loop.init)(key))
    return Loop(run, run(state)[0], config.training.chunk, num_seeds)


def host_stepped_loop(config: Config, parts: Parts) -> Loop:
    """The loop around an emulator, or a JAX-native environment that is stepped as one is."""
    chunk, num_envs = config.training.chunk, config.env.num_envs
    host: HostVector
    if parts.open_host is not None:
        host, iterations = parts.open_host(num_envs, 0, False), 1
    else:
        assert parts.env is not None
        host, iterations = SteppedByHost(parts.env, num_envs, 0), chunk
    mapping = make_mapping(1, small_products=config.training.small_products)
    loop = make_host_loop(host, parts.halves, mapping)
    state, _ = loop.run(loop.init(0), chunk)  # the warm-up
    state, _ = loop.run(state, 1)  # compiles the updates
    return Loop(lambda state: loop.run(state, iterations), state, iterations, close=host.close)


def training_loops(
    config: Config,
    parts: Parts,
    seeds: tuple[int, ...],
    run_chunk: int,
    wanted: Callable[[str], bool],
) -> Iterator[tuple[list[str], list[Loop]]]:
    """The loops to be timed, by name; those that are to be compared together."""
    fused = {number: f"training step, {number} seed{'s' * (number > 1)}" for number in seeds}
    stepped = "training step, host-stepped"
    if parts.env is None:
        if 1 in fused and wanted(fused[1]):
            yield [fused[1]], [host_stepped_loop(config, parts)]
        return
    pending = wanted(stepped)
    for number, name in fused.items():
        if wanted(name):
            names, loops = [name], [fused_loop(config, parts, number, run_chunk)]
            if number == 1 and pending:
                names, loops = [*names, stepped], [*loops, host_stepped_loop(config, parts)]
                pending = False
            yield names, loops
    if pending:
        yield [stepped], [host_stepped_loop(config, parts)]


def measure_training(
    config: Config, parts: Parts, loops: list[Loop], ceiling: float, repeats: int
) -> list[dict[str, Any]]:
    """Rows of whole training steps: loops after their warm-up, in calls that take turns.

    The arithmetic is that of the updates; acting and environment are left out. All rows but the
    first tell how many times the first's seconds they took, in quartiles over the turns.
    """
    turns = _take_turns(loops, repeats)
    per_iteration = [
        np.asarray(calls) / loop.iterations for calls, loop in zip(turns, loops, strict=True)
    ]
    rows = []
    for i, loop in enumerate(loops):
        loop.close()
        low, median, high = np.quantile(per_iteration[i][:, 0], [0.25, 0.5, 0.75])
        flops = loop.num_seeds * _update_flops(config, parts)
        row = {
            "median": float(median),
            "low": float(low),
            "high": float(high),
            "cpu": float(np.median(per_iteration[i][:, 1])),
            "repeats": repeats,
            "flops": flops,
            "flops_xla": None,
            "flops_per_second": flops / float(median),
            "of_ceiling": flops / float(median) / ceiling,
            "memory": cost.device_peak_memory(),
            "compile_cold": None,
            "compile_cached": None,
            "steps_per_second": config.env.num_envs * loop.num_seeds / float(median),
        }
        if i:
            ratios = per_iteration[i][:, 0] / per_iteration[0][:, 0]
            row["of_fused"] = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        rows.append(row)
    return rows


def _take_turns(loops: list[Loop], repeats: int) -> list[list[tuple[float, float]]]:
    """Wall and CPU seconds of consecutive calls of each loop."""
    states = [jax.block_until_ready(loop.state) for loop in loops]
    calls: list[list[tuple[float, float]]] = [[] for _ in loops]
    for _ in range(repeats):
        for i, loop in enumerate(loops):
            wall, cpu = time.perf_counter(), time.process_time()
            states[i], _ = jax.block_until_ready(loop.run(states[i]))
            calls[i].append((time.perf_counter() - wall, time.process_time() - cpu))
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
