"""Data sets of plain arrays: what they are, how they are split, in which order they are read."""

from typing import Any, NamedTuple

import numpy as np

from worldmodels_jax.types import DataSpec

Arrays = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """Examples as arrays with one leading axis, apart for training and evaluation.

    Attributes:
      name: of the set.
      train: name -> (N, ...); arrays or memory maps.
      test: name -> (N', ...), of which nothing is learned.
      source: what the examples were made by, where that is known: a ``FactorSet``, a
        ``RainPhysics``; for evaluations that make more of them.
      config: that it was loaded by; None for a set of the caller's own.
    """

    name: str
    train: Arrays
    test: Arrays
    source: Any = None
    config: Any = None

    @property
    def spec(self) -> DataSpec:
        """What a system must know of it."""
        shapes = {name: tuple(x.shape[1:]) for name, x in self.train.items()}
        return DataSpec(self.name, shapes, num_examples(self.train))


def num_examples(arrays: Arrays) -> int:
    """N.

    Raises:
      ValueError: if the arrays have different numbers of examples, or none.
    """
    counts = {name: len(x) for name, x in arrays.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"the arrays of a data set have one number of examples, not {counts}.")
    return next(iter(counts.values()))


def split(arrays: Arrays, test_share: float, seed: int) -> tuple[Arrays, Arrays]:
    """A random split into examples to train on and to evaluate with.

    Args:
      arrays: name -> (N, ...).
      test_share: of the examples that are set aside, rounded down.
      seed: of the permutation.

    Returns:
      The two parts, each in the order of the set.

    Raises:
      ValueError: if a part would be empty.
    """
    size = num_examples(arrays)
    num_test = int(size * test_share)
    if not 0 < num_test < size:
        raise ValueError(
            f"a test share of {test_share} leaves {num_test} of {size} examples to evaluate with: "
            "both parts need at least one; change data.test_share or take more examples."
        )
    chosen = np.random.default_rng(seed).permutation(size)
    test, train = np.sort(chosen[:num_test]), np.sort(chosen[num_test:])
    return {k: x[train] for k, x in arrays.items()}, {k: x[test] for k, x in arrays.items()}


def batch_indices(
    size: int, batch_size: int, seed: int, first_step: int, num_steps: int
) -> np.ndarray:
    """Which examples are in which batch: a new permutation every epoch, its last rest left out.

    A pure function of its arguments, so that a resumed run reads on where it stopped.

    Args:
      size: N.
      batch_size: B, at most N.
      seed: of all permutations.
      first_step: number of the first batch, from 0.
      num_steps: K.

    Returns:
      (K, B) int64.

    Raises:
      ValueError: if a batch is larger than the set.
    """
    per_epoch = size // batch_size
    if per_epoch == 0:
        raise ValueError(
            f"a batch of {batch_size} is larger than the {size} examples there are to train on: "
            f"set training.batch_size to at most {size}."
        )
    out = np.empty((num_steps, batch_size), np.int64)
    done = 0
    while done < num_steps:
        epoch, at = divmod(first_step + done, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(size)
        count = min(per_epoch - at, num_steps - done)
        part = order[at * batch_size : (at + count) * batch_size]
        out[done : done + count] = part.reshape(count, batch_size)
        done += count
    return out
