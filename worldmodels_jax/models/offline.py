"""The one interface of all systems that learn from a data set: what ``fit`` asks of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from worldmodels_jax.types import DataSpec, Metrics, PyTree

Batch = dict[str, jax.Array]
PartLoss = Callable[[PyTree, Batch, jax.Array, jax.Array], tuple[jax.Array, tuple[PyTree, Metrics]]]
Samples = Callable[[PyTree, Batch, jax.Array], dict[str, jax.Array]]


class OfflineSystem(Protocol):
    """A learner on a data set as pure functions over explicit variables.

    A NamedTuple with these fields is one, whatever else it can do. ``variables`` is a dict with the
    trained ``"params"`` and any number of other collections, as in ``WorldModel``; a batch is a
    dict of arrays ``(B, ...)``, the examples of the data set.
    """

    @property
    def init(self) -> Callable[[jax.Array], PyTree]:
        """``(key) -> variables``."""
        ...

    @property
    def losses(self) -> Mapping[str, PartLoss]:
        """What is minimised, part by part, in the order in which the parts of a step are trained.

        ``(variables, batch, key, step) -> loss, (new values of the other collections, metrics)``,
        with ``step`` () int32, the updates made before. A single part trains all parameters; of
        several, each trains the subtree ``params[name]`` of its own name, with an optimiser of its
        own, and sees what the parts before it have become.
        """
        ...

    @property
    def samples(self) -> Samples:
        """``(variables, batch, key) -> name -> (R, Q, H, W, C)``: pictures to look at.

        R rows of Q frames each, float32 in [0, 1]; C is 1 or 3.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What a system minimises. A system's own is a subclass, which a saved run finds by itself."""


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """The networks of a system. Its own is a subclass, which a saved run finds by itself."""

    def make(
        self, loss: LossConfig, data: DataSpec, axis_name: str | None, dtype: Any
    ) -> OfflineSystem:
        """The system that this config stands for.

        Args:
          loss: what it minimises.
          data: what the examples look like, and how many there are.
          axis_name: the mapped axis that batches are split over, or None.
          dtype: of the computation.

        Raises:
          ValueError: if the loss is another system's, or sizes or data do not fit, naming the
            fields.
        """
        raise NotImplementedError
