"""Vectors that gymnasium, or a library written for it, steps by itself."""

from typing import Any

import chex
import numpy as np

from worldmodels_jax.envs.gymnasium_spaces import (
    adapt,
    import_gymnasium,
)
from worldmodels_jax.types import EnvSpec, TimeStep


class GymnasiumVector:
    """A ``gymnasium.vector.VectorEnv`` behind `worldmodels_jax.types.HostVector`.

    Made by `wrap_vector`. What an environment shows and takes is that of
    `worldmodels_jax.envs.gymnasium.GymnasiumEnv`.

    Attributes:
      spec: of one environment.
      num_envs: E.
    """

    spec: EnvSpec
    num_envs: int

    def __init__(
        self,
        vector_env: Any,
        seed: int,
        *,
        resize: tuple[int, int] | None,
        channel_first: bool,
    ) -> None:
        """Takes ownership of the vector; `wrap_vector` explains the arguments."""
        # gymnasium.make_vec leaves a limit that it was given among the constructor's arguments.
        made_with = vector_env.spec.kwargs if vector_env.spec else {}
        self.spec, self._observation, self._action = adapt(
            vector_env,
            vector_env.single_observation_space,
            vector_env.single_action_space,
            max_episode_steps=made_with.get("max_episode_steps"),
            resize=resize,
            channel_first=channel_first,
        )
        self.num_envs = vector_env.num_envs
        self._vector_env: Any = vector_env
        self._seed: int | None = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
        self._was_last: np.ndarray | None = None  # (E,) of the newest time step; None before it

    def reset(self) -> TimeStep:
        """Starts over in all environments; the first call seeds them.

        Returns:
          The first time step, ``(E, ...)``.

        Raises:
          ValueError: if the vector was closed.
        """
        observations, _ = self._open().reset(seed=self._seed)
        self._seed = None
        none = np.zeros(self.num_envs, bool)
        self._was_last = none
        return self._time_step(observations, np.zeros(self.num_envs), none, none, ~none)

    def step(self, actions: np.ndarray) -> TimeStep:
        """Takes one step in all environments; in those whose last step was last it is a reset.

        Args:
          actions: ``(E,)`` integers in ``[0, A)`` or ``(E, A)`` in [-1, 1].

        Returns:
          The time step arrived at, ``(E, ...)``.

        Raises:
          ValueError: for an action that is no integer in ``[0, A)``, or if the vector was closed.
        """
        vector_env = self._open()
        if self._was_last is None:
            return self.reset()
        actions = np.asarray(actions)
        per_env = () if self.spec.discrete else (self.spec.num_actions,)
        chex.assert_shape(actions, (self.num_envs, *per_env))
        is_first = self._was_last
        observations, rewards, terminated, truncated, _ = vector_env.step(
            self._action.convert(actions)
        )
        terminated = np.asarray(terminated, bool)
        truncated = np.asarray(truncated, bool) & ~terminated
        self._was_last = terminated | truncated
        return self._time_step(
            observations, np.where(is_first, 0.0, rewards), terminated, truncated, is_first
        )

    def save_state(self) -> None:
        """Returns None: gymnasium has no way to save environments in the midst of an episode."""

    def load_state(self, state: bytes) -> None:
        """Cannot be done.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"{self.spec.name} cannot continue from a saved state, since gymnasium environments "
            "save none; begin with reset()."
        )

    def close(self) -> None:
        """Frees the environments; every later step is an error."""
        if self._vector_env is not None:
            self._vector_env.close()
        self._vector_env = None

    def _open(self) -> Any:
        if self._vector_env is None:
            raise ValueError(f"This {self.spec.name} was closed; make a new one.")
        return self._vector_env

    def _time_step(self, observations: Any, rewards: Any, *flags: np.ndarray) -> TimeStep:
        fields: list[Any] = [
            self._observation.convert(observations),
            np.asarray(rewards, np.float32),
            *flags,
        ]
        return TimeStep(*fields)


def wrap_vector(
    vector_env: Any,
    seed: int,
    *,
    resize: tuple[int, int] | None = None,
    channel_first: bool = False,
) -> GymnasiumVector:
    """Wraps a vector of environments that resets each of them one step after its end.

    That is gymnasium's autoreset mode ``NEXT_STEP``. The other modes cannot be wrapped, because a
    reset is a time step of its own here: while one environment shows its first observation the
    others must go on, and a vector steps all or none. It would have to execute, in the new
    episode, an action that was chosen from the old one.

    Args:
      vector_env: a ``gymnasium.vector.VectorEnv`` that was not stepped yet.
      seed: of the first reset.
      resize: height and width that images are resized to, by area.
      channel_first: the environments' images are ``(C, H, W)``.

    Returns:
      The vector. It cannot be saved: a run that is resumed keeps what it learned and its replay,
      and begins new episodes.

    Raises:
      ModuleNotFoundError: if gymnasium is not installed.
      ValueError: for anything that is no ``VectorEnv``, another autoreset mode, or a space that
        cannot be represented.
    """
    vector = import_gymnasium().vector
    if not isinstance(vector_env, vector.VectorEnv):
        raise ValueError(
            f"{vector_env!r} is no gymnasium.vector.VectorEnv; single environments are for "
            "worldmodels_jax.envs.gymnasium.make_gymnasium."
        )
    # Gymnasium's own vectors write theirs into a dict that all environments of a class share.
    in_metadata = vector_env.metadata.get("autoreset_mode")
    mode = getattr(vector_env.unwrapped, "autoreset_mode", in_metadata)
    if mode not in (vector.AutoresetMode.NEXT_STEP, vector.AutoresetMode.NEXT_STEP.value):
        raise ValueError(
            f"{vector_env} has the autoreset mode {mode}, but a reset must be a step of its own: "
            "make it with autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP (for "
            "gymnasium.make_vec: vector_kwargs={'autoreset_mode': ...}), or, if that is what it "
            "does, put it into its metadata['autoreset_mode']."
        )
    return GymnasiumVector(vector_env, seed, resize=resize, channel_first=channel_first)
