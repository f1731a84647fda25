"""Few rows at a time, so that what lies between two products stays in a CPU's cache."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.types import PyTree

Part = TypeVar("Part", bound=nn.Module)


def in_chunks(function: Callable[[PyTree], jax.Array], rows: PyTree, size: int) -> jax.Array:
    """Maps rows that do not know of one another, a chunk after the other.

    In the backward pass what lies between is computed again, which costs no more than to fetch it
    from memory.

    Args:
      function: ``(n, ...) -> (n, ...)``, of any n.
      rows: arrays ``(B, ...)``.
      size: the most rows of a chunk.

    Returns:
      ``function(rows)``.
    """
    function = jax.checkpoint(function)
    if _count(rows) <= size:
        return function(rows)
    return _cut(lambda chunks: jax.lax.map(function, chunks), rows, size)


def module_in_chunks(
    function: Callable[[Part, PyTree], jax.Array], module: Part, rows: PyTree, size: int
) -> jax.Array:
    """The same for a function of a module and its parameters; on a CPU alone, and for inference.

    Nothing is computed again in a backward pass. The module's statistics stay as they are, and it
    draws nothing.

    Args:
      function: ``(module, (n, ...)) -> (n, ...)``, of any n.
      module: bound.
      rows: arrays ``(B, ...)``.
      size: the most rows of a chunk.

    Returns:
      ``function(module, rows)``.
    """
    whole = _count(rows) <= size or module.is_initializing()
    if whole or jax.default_backend() != "cpu":
        return function(module, rows)

    def chunk(module: Part, carry: None, part: PyTree) -> tuple[None, jax.Array]:
        return carry, function(module, part)

    scan = nn.scan(chunk, variable_broadcast=True, split_rngs={})
    return _cut(lambda chunks: scan(module, None, chunks)[1], rows, size)


def _count(rows: PyTree) -> int:
    return int(jax.tree.leaves(rows)[0].shape[0])


def _cut(over: Callable[[PyTree], Any], rows: PyTree, size: int) -> jax.Array:
    """Has chunks ``(C, n, ...)`` of equal length mapped; the last is filled up with zeros."""
    count = _count(rows)
    chunks = -(-count // max(1, size))
    each = -(-count // chunks)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, chunks * each - count)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(chunks, each, *x.shape[1:])

    y = over(jax.tree.map(cut, rows))
    return y.reshape(chunks * each, *y.shape[2:])[:count]
