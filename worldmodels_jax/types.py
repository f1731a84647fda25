"""The typed pytrees that travel between the rooms of the library.

Axis letters, used in every docstring: B batch, T time, N tokens, V classes, D width, A actions,
L horizon, E environments, S seeds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What a model and an agent must know of an environment.

    Attributes:
      name: the identifier it was made from, e.g. ``"Catch-bsuite"``.
      observation_shape: ``(H, W, C)`` for images and grids, ``(F,)`` for vectors.
      observation_dtype: ``"uint8"`` (images and grids, 0..255) or ``"float32"`` (vectors).
      num_actions: A, the number of discrete actions or the size of the continuous action vector.
      discrete: whether actions are integers in ``[0, A)`` or vectors in ``[-1, 1]^A``.
      max_episode_steps: the longest episode in agent steps; longer ones are truncated.
    """

    name: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int
    discrete: bool
    max_episode_steps: int


class TimeStep(NamedTuple):
    """What is received on arriving at an observation. Leading axes are free (none, E, (B, T))."""

    observation: jax.Array  # (..., *observation_shape)
    reward: jax.Array  # (...,) float32, received on arriving here; 0 where is_first
    terminated: jax.Array  # (...,) bool, the episode ended here by its own rules
    truncated: jax.Array  # (...,) bool, the episode was cut here; the value of this state is not 0
    is_first: jax.Array  # (...,) bool, this observation came from a reset

    @property
    def is_last(self) -> jax.Array:
        """(...,) bool: no transition leaves this observation."""
        return self.terminated | self.truncated


class Record(NamedTuple):
    """One replay record: a time step and the action taken *from* it (see docs/design).

    A terminal observation is a record of its own; its action was never executed.
    """

    observation: jax.Array  # (..., *observation_shape), uint8 or float32
    action: jax.Array  # (...,) int32 or (..., A) float32
    reward: jax.Array  # (...,) float32
    terminated: jax.Array  # (...,) bool
    truncated: jax.Array  # (...,) bool
    is_first: jax.Array  # (...,) bool

    @property
    def is_last(self) -> jax.Array:
        """(...,) bool: no transition leaves this record."""
        return self.terminated | self.truncated


class Environment(NamedTuple):
    """A JAX-native environment: pure functions of one, unbatched environment.

    ``reset(key) -> (state, TimeStep)`` and ``step(state, action, key) -> (state, TimeStep)``.
    ``step`` never resets: the terminal observation is returned as it is. ``envs.auto_reset`` adds
    the resetting, one record later.
    """

    spec: EnvSpec
    reset: Callable[[jax.Array], tuple[PyTree, TimeStep]]
    step: Callable[[PyTree, jax.Array, jax.Array], tuple[PyTree, TimeStep]]
