"""A compiled function over more rows than fit on a device at once."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from worldmodels_jax.types import PyTree


def in_batches(function: Callable[[PyTree], Any], rows: PyTree, size: int) -> Any:
    """Apply a function to some rows at a time.

    Args:
      function: maps a tree of arrays ``(b, ...)`` to a tree of arrays ``(b, ...)``, row by row;
        it sees one b only.
      rows: a tree of arrays ``(B, ...)``, B at least 1.
      size: b, at most.

    Returns:
      The results ``(B, ...)`` as NumPy arrays.
    """
    total = len(jax.tree.leaves(rows)[0])
    size = min(size, total)
    results = []
    for start in range(0, total, size):
        # The last batch is filled up: a batch of another size would be compiled for.
        index = np.minimum(np.arange(start, start + size), total - 1)
        done = function(jax.tree.map(lambda x, i=index: x[i], rows))
        results.append(jax.tree.map(lambda x, n=total - start: np.asarray(x)[:n], done))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)
