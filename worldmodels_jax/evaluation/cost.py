"""What a computation costs: arithmetic counted from its trace, time, memory and compilation."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Timing(NamedTuple):
    """Seconds of one call.

    Attributes:
      median: of the repeats' wall time.
      low: their lower quartile.
      high: their upper quartile.
      cpu: median of the process' CPU seconds, over all its threads.
      repeats: how many.
    """

    median: float
    low: float
    high: float
    cpu: float
    repeats: int


class Compiled(NamedTuple):
    """A compiled function and what its compilation told.

    Attributes:
      call: the executable.
      seconds: that tracing, lowering and compiling took.
      flops: floating-point operations by XLA's own analysis, which counts the body of a loop once.
      memory: bytes of arguments, results and temporaries together, at the peak XLA plans for.
    """

    call: Callable[..., Any]
    seconds: float
    flops: float
    memory: int


def matmul_flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of all matrix products and convolutions of a function.

    Counted in its trace, 2 per multiply-add, a scan's body as often as it runs and of a
    conditional the dearest branch; what is not a product is not counted. XLA's own analysis counts
    the body of a loop once, whatever its length.

    Args:
      function: traceable.
      *args: arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: for a ``while`` loop around products, whose length no trace knows.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_flops(branch.jaxpr) for branch in params["branches"])
        else:
            inner = sum(_flops(jaxpr) for jaxpr in _jaxprs(params))
            if name == "while" and inner:
                raise ValueError(
                    "a while loop holds matrix products: its arithmetic cannot be counted from "
                    "the trace; use a scan of fixed length."
                )
            total += inner
    return total


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def compile_function(
    function: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compile for the given arguments (arrays or shapes), with options for XLA."""
    started = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile(dict(options or {}))
    seconds = time.perf_counter() - started
    analysis = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    used = 0
    if memory is not None:
        used = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    return Compiled(compiled, seconds, float(analysis.get("flops", math.nan)), int(used))


def time_call(
    call: Callable[..., Any], *args: Any, repeats: int = 5, seconds: float = 1.0
) -> Timing:
    """Time a call, its results awaited, after one that is not counted.

    Args:
      call: the function.
      *args: its arguments.
      repeats: at least so many.
      seconds: and until so many have passed, 100 repeats at most.
    """
    jax.block_until_ready(call(*args))
    walls: list[float] = []
    cpus: list[float] = []
    while len(walls) < repeats or (sum(walls) < seconds and len(walls) < 100):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(call(*args))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    low, median, high = (
        statistics.quantiles(walls, n=4) if len(walls) > 1 else (walls[0], walls[0], walls[0])
    )
    return Timing(median, low, high, statistics.median(cpus), len(walls))


def matmul_ceiling(dtype: Any = jnp.float32, size: int = 2048) -> float:
    """Floating-point operations per second of a square matrix product on the default device."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2.0 * size**3 / time_call(product, x, x, repeats=10).median


def device_peak_memory() -> int | None:
    """Bytes in use at the peak so far on the default device, where it keeps count."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use")
