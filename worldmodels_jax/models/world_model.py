"""The one interface of all world models: a NamedTuple of pure functions, in the manner of optax."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record

Loss = Callable[[PyTree, Record, jax.Array], tuple[jax.Array, tuple[PyTree, Metrics]]]


class Prediction(NamedTuple):
    """What a world model says of the step an action leads to."""

    features: jax.Array  # (B, F) what a policy acts on
    reward: jax.Array  # (B,) float32, expected reward on arrival
    continuation: jax.Array  # (B,) float32, probability that the episode has not terminated there


class Observe(Protocol):
    """The type of ``WorldModel.observe``."""

    def __call__(
        self, variables: PyTree, context: Record, key: jax.Array, horizon: int, starts: int = 1
    ) -> tuple[PyTree, jax.Array]:
        """See ``WorldModel``."""
        ...


class Filter(NamedTuple):
    """Following real episodes a step at a time, as an agent does that acts.

    Attributes:
      init: ``(batch) -> state``, before any frame.
      update: ``(variables, state, record (B, ...), action (B, ...), key) -> state, features
        (B, F)``: the posterior at a record, given the action of the record before, which is ignored
        where an episode begins; the record's own action is.
    """

    init: Callable[[int], PyTree]
    update: Callable[[PyTree, PyTree, Record, jax.Array, jax.Array], tuple[PyTree, jax.Array]]


LossAndStates = Callable[
    [PyTree, Record, jax.Array],
    tuple[jax.Array, tuple[PyTree, Metrics, PyTree, jax.Array]],
]


class WorldModel(NamedTuple):
    """A world model as pure functions over explicit variables.

    ``variables`` is a dict with the trained ``"params"`` and any number of other collections (the
    model state, e.g. BatchNorm's running statistics); ``loss`` returns the new value of the latter.

    Attributes:
      init: ``(key) -> variables``.
      loss: ``(variables, batch (B, T, ...), key) -> loss, (new_model_state, metrics)``.
      observe: ``(variables, context (B, C, ...), key, horizon, starts=1) -> carry, features
        (B starts, F)``: the posterior over real frames, at the last ``starts`` of each sequence, in
        the order of sequences, then of time. The action of such a record is not consumed: it is
        still to be chosen. ``horizon`` (static) is how many steps of ``imagine`` the carry must
        have room for. A model with a bounded memory sees C - starts + 1 frames up to each start.
      imagine: ``(variables, carry, action (B, ...), key) -> carry, Prediction``.
      decode: ``(variables, carry) -> frames (B, *observation_shape)`` in the environment's own
        type and scale.
      feature_size: F.
      log_likelihood: ``(variables, batch (B, T, ...), key) -> (B, T-1, N)``, float32 nats: for
        each of the N tokens of the posterior sample z_t, log p of it given the real past, t from 1
        to T-1, without dropout. The pair of a last and a first record is no transition: the caller
        masks it (``data.views.transitions``). None for models without a prior over discrete
        tokens.
      filter: the posterior step by step, from the beginning of an episode on; None for models that
        encode a window of frames anew at every step. Policies with a memory of their own need it.
      parts: for models whose parts may be trained in turn, each by its own optimiser: the key of
        ``variables["params"]`` that a part trains, and its loss, of the signature of ``loss`` and
        with a gradient to that subtree only.
      loss_and_states: ``(variables, batch (B, T, ...), key) -> loss, (new_model_state, metrics,
        carry, features (B, T, F))``: ``loss``, and the posterior states of all records it was
        computed from. Gradients flow through the features to the parameters, so that a loss on
        them trains the model too. ``carry`` holds the same B T states, in the order of sequences,
        then of time, for ``imagine``. None for models whose loss has no state of each record;
        those cannot be trained jointly with the agent.
    """

    init: Callable[[jax.Array], PyTree]
    loss: Loss
    observe: Observe
    imagine: Callable[[PyTree, PyTree, jax.Array, jax.Array], tuple[PyTree, Prediction]]
    decode: Callable[[PyTree, PyTree], jax.Array]
    feature_size: int
    log_likelihood: Callable[[PyTree, Record, jax.Array], jax.Array] | None = None
    filter: Filter | None = None
    parts: dict[str, Loss] | None = None
    loss_and_states: LossAndStates | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A world model's sizes. Its own is a subclass, which a saved run finds by itself."""

    @property
    def system(self) -> str:
        """The name of the system, as it is told of a run."""
        raise NotImplementedError

    @property
    def longest(self) -> int | None:
        """Steps that a sequence, or a context and its dream together, may have; None for any."""
        return None


@functools.singledispatch
def make_world_model(
    config: ModelConfig, spec: EnvSpec, axis_name: str | None = None, dtype: Any = None
) -> WorldModel:
    """The world model that a config stands for.

    A model's file registers its factory for its config: ``@make_world_model.register``.

    Args:
      config: of one of the systems.
      spec: what the environment looks like.
      axis_name: the mapped axis of devices, if there are several.
      dtype: of the computation.

    Raises:
      TypeError: if no factory is registered for such a config.
      ValueError: if sizes do not fit together, naming the fields.
    """
    raise TypeError(
        f"no world model is registered for {type(config).__name__}: import the file that has its "
        "factory, under @make_world_model.register."
    )
