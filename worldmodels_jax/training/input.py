"""Batches for the device, gathered on the host while it computes."""

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from worldmodels_jax.data.dataset import Arrays, batch_indices, num_examples
from worldmodels_jax.training.parallel import DeviceMapping
from worldmodels_jax.types import PyTree


class Input(NamedTuple):
    """An open source of batches.

    Attributes:
      read: ``(first_step, count) -> {name: (K, B, ...)}`` on the devices, with a leading axis of
        seeds if there are several; the next chunk is gathered meanwhile.
      waited: seconds that ``read`` has waited for the host since it was last asked.
      close: end the thread.
    """

    read: Callable[[int, int], PyTree]
    waited: Callable[[], float]
    close: Callable[[], None]


def gather(
    arrays: Arrays, batch_size: int, seeds: Sequence[int], first_step: int, num_steps: int
) -> Arrays:
    """The batches of a chunk, of this host's share.

    Args:
      arrays: name -> (N, ...), arrays or memory maps.
      batch_size: B, of all hosts.
      seeds: each has its own order.
      first_step: of the chunk.
      num_steps: K.

    Returns:
      name -> (S, K, B, ...), or (K, B, ...) for one seed; of several hosts, B / hosts.
    """
    size, hosts, host = num_examples(arrays), jax.process_count(), jax.process_index()
    index = np.stack([batch_indices(size, batch_size, s, first_step, num_steps) for s in seeds])
    share = batch_size // hosts
    index = index[..., host * share : (host + 1) * share]
    index = index[0] if len(seeds) == 1 else index
    return {name: _take(x, index) for name, x in arrays.items()}


def _take(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    flat = index.reshape(-1)
    if isinstance(x, np.ndarray):
        return np.asarray(x[flat]).reshape(*index.shape, *x.shape[1:])
    # An HDF5 data set reads increasing, distinct places only.
    places, back = np.unique(flat, return_inverse=True)
    return np.asarray(x[places])[back].reshape(*index.shape, *x.shape[1:])


def open_input(
    arrays: Arrays,
    batch_size: int,
    seeds: Sequence[int],
    chunk: int,
    last_step: int,
    mapping: DeviceMapping,
) -> Input:
    """Open a source of batches.

    Args:
      arrays: name -> (N, ...).
      batch_size: B, of all devices.
      seeds: trained at once.
      chunk: K of a whole chunk.
      last_step: after which nothing is gathered ahead.
      mapping: over devices, which batches are split over.
    """
    axis = 1 if len(seeds) == 1 else 2
    pool = concurrent.futures.ThreadPoolExecutor(1, "input")
    ahead: dict[int, concurrent.futures.Future[Arrays]] = {}
    seconds = [0.0]

    def read(first_step: int, count: int) -> PyTree:
        started = time.monotonic()
        if first_step in ahead:
            batches = ahead[first_step].result()
        else:
            batches = gather(arrays, batch_size, seeds, first_step, count)
        seconds[0] += time.monotonic() - started
        ahead.clear()
        following = first_step + count
        if following < last_step:
            length = min(chunk, last_step - following)
            ahead[following] = pool.submit(gather, arrays, batch_size, seeds, following, length)
        cut = (slice(None),) * (axis - 1) + (slice(count),)
        return mapping.place({name: x[cut] for name, x in batches.items()}, axis)

    def waited() -> float:
        total, seconds[0] = seconds[0], 0.0
        return total

    return Input(read, waited, lambda: pool.shutdown(cancel_futures=True))
