"""The typed pytrees that travel between the rooms of the library.

Axis letters, used in every docstring: B batch, T time, N tokens, V classes, D width, A actions,
L horizon, E environments, S seeds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a system that learns from a data set must know of it.

    Attributes:
      name: of the set, e.g. ``"sprites16"``.
      shapes: of one example's arrays by name, e.g. ``{"image": (64, 64, 3)}``.
      num_train: N, examples trained on.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    num_train: int


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
    the resetting, one record later. ``outcomes(state)`` are named numbers of the episode so far
    beside its return, e.g. which achievements are unlocked.
    """

    spec: EnvSpec
    reset: Callable[[jax.Array], tuple[PyTree, TimeStep]]
    step: Callable[[PyTree, jax.Array, jax.Array], tuple[PyTree, TimeStep]]
    outcomes: Callable[[PyTree], Metrics] = lambda state: {}


class HostEnv(Protocol):
    """One environment stepped from Python; ``envs.host_vector`` makes many of them one.

    Its state is mutable, because an emulator's or a simulator's is.

    Attributes:
      spec: what a model and an agent must know.
    """

    spec: EnvSpec

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Take one agent step; the first call, and that after a last step, is a reset.

        Args:
          action: an integer in ``[0, A)`` or a vector ``(A,)`` in [-1, 1]; ignored by a reset.

        Returns:
          Observation, reward (0 of a reset), terminated, truncated, is_first.
        """

    def restart(self) -> None:
        """Make the next ``step`` a reset."""

    def state(self) -> Any:
        """All that the future depends on as JSON values, or None if that cannot be saved."""

    def restore(self, state: Any) -> None:
        """Continue from what ``state`` returned, of the same environment and settings."""

    def close(self) -> None:
        """Free what it holds."""


class HostVector(Protocol):
    """E environments stepped from Python at once; the step after a last one is a reset.

    Time steps are NumPy arrays with a leading axis E. An environment that was lost (its worker
    died) goes on with a first time step in the place of the one that it owed: the transition into
    a first record is in no loss, so a replay stays sound.

    Attributes:
      spec: of one environment.
      num_envs: E.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self) -> TimeStep:
        """Start over in all environments: ``(E, ...)``, all first."""

    def step(self, actions: np.ndarray) -> TimeStep:
        """Take one agent step in all environments."""

    def save_state(self) -> bytes | None:
        """All environments as bytes, or None if these cannot be saved."""

    def load_state(self, state: bytes) -> None:
        """Continue, bit by bit, where ``save_state`` was called."""

    def close(self) -> None:
        """Free them; every later call is an error."""
