"""gymnasium environments, by id or from the caller's own class, stepped on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from worldmodels_jax.envs.gymnasium_spaces import (
    adapt,
    environment_name,
    import_gymnasium,
)
from worldmodels_jax.envs.host_vector import make_host_vector
from worldmodels_jax.envs.time_limit import check_time_limit
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import EnvSpec, HostVector


class GymnasiumEnv:
    """One gymnasium environment behind `worldmodels_jax.types.HostEnv`.

    Boxes of uint8 with two or three axes are images, and so are such boxes with the bounds 0 and
    1, spread over 0..255; other boxes become float32 vectors, Discrete observations one-hot.
    Discrete actions are counted from 0; boxes of actions become vectors in [-1, 1]. An episode
    that ends by its own rules at the very step of its time limit is terminated, not truncated.

    The environment is seeded at its first reset and never again, so all that it draws comes from
    one stream.

    Attributes:
      spec: what a model and an agent must know. Its time limit is that which the environment was
        registered with or was given here, or `NO_TIME_LIMIT`: an environment that cuts episodes
        by itself does not tell when.
    """

    spec: EnvSpec

    def __init__(
        self,
        env: Any,
        seed: np.random.SeedSequence,
        *,
        max_episode_steps: int | None = None,
        resize: tuple[int, int] | None = None,
        pixels: bool = False,
        channel_first: bool = False,
    ) -> None:
        """Takes ownership of an environment.

        Args:
          env: a ``gymnasium.Env`` that was not stepped yet.
          seed: of the first reset.
          max_episode_steps: truncate episodes after so many steps, if it does not end them sooner.
          resize: height and width that images are resized to, by area.
          pixels: observe rendered frames in place of the environment's own observations.
          channel_first: the environment's images are ``(C, H, W)``.

        Raises:
          ModuleNotFoundError: if gymnasium is not installed.
          ValueError: for anything that is no ``gymnasium.Env``, a space that cannot be
            represented, an environment that does not render frames, or a time limit below 1.
        """
        gymnasium = import_gymnasium()
        check_time_limit(max_episode_steps)
        if not isinstance(env, gymnasium.Env):
            raise ValueError(
                f"{env!r} is no gymnasium.Env; return one (the shimmy package wraps environments "
                "of the old gym)."
            )
        if max_episode_steps is not None:
            env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
        self._env = env
        self._seed: int | None = int(seed.generate_state(1)[0] >> 1)
        self._pixels = pixels
        self._needs_reset = True
        space = env.observation_space
        if pixels:
            space = gymnasium.spaces.Box(0, 255, self._probe_frame().shape, np.uint8)
        self.spec, self._observation, self._action = adapt(
            env,
            space,
            env.action_space,
            max_episode_steps=max_episode_steps,
            resize=resize,
            channel_first=channel_first,
        )

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Takes one step; the first call, and that after a last step, is a reset.

        Args:
          action: an integer in ``[0, A)`` or a vector ``(A,)`` in [-1, 1]; ignored by a reset.

        Returns:
          Observation, reward (0 of a reset), terminated, truncated, is_first.

        Raises:
          ValueError: for an action that is no integer in ``[0, A)``.
        """
        if self._needs_reset:
            observation, _ = self._env.reset(seed=self._seed)
            self._seed = None
            self._needs_reset = False
            return self._observe(observation), 0.0, False, False, True
        observation, reward, terminated, truncated, _ = self._env.step(self._action.convert(action))
        terminated = bool(terminated)
        truncated = bool(truncated) and not terminated
        self._needs_reset = terminated or truncated
        return self._observe(observation), float(reward), terminated, truncated, False

    def restart(self) -> None:
        """Makes the next ``step`` a reset."""
        self._needs_reset = True

    def state(self) -> None:
        """Returns None: gymnasium has no way to save an environment in the midst of an episode."""

    def restore(self, state: Any) -> None:
        """Cannot be done.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"{self.spec.name} cannot continue from a saved state, since gymnasium environments "
            "save none; begin with a reset."
        )

    def close(self) -> None:
        """Frees the environment."""
        self._env.close()

    def _observe(self, observation: Any) -> np.ndarray:
        return self._observation.convert(self._env.render() if self._pixels else observation)

    def _probe_frame(self) -> np.ndarray:
        """Returns a frame: no space declares its size. The first reset seeds once more."""
        name = environment_name(self._env)
        if self._env.render_mode != "rgb_array":
            raise ValueError(
                f"pixels=True needs frames, but {name} was made with render_mode="
                f"{self._env.render_mode!r}; make it with render_mode='rgb_array'."
            )
        self._env.reset(seed=self._seed)
        frame = np.asarray(self._env.render())
        if frame.dtype != np.uint8 or frame.ndim != 3:
            raise ValueError(
                f"{name} rendered {frame.dtype} of shape {frame.shape}; return uint8 (H, W, 3) "
                "from render()."
            )
        return frame


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes one environment, here or in a worker process."""

    env_or_id: str | Callable[..., Any]
    env_kwargs: dict[str, Any]
    max_episode_steps: int | None
    resize: tuple[int, int] | None
    pixels: bool
    channel_first: bool

    def __call__(self, seed: np.random.SeedSequence) -> GymnasiumEnv:
        limit = self.max_episode_steps
        if isinstance(self.env_or_id, str):
            env = _make_registered(self.env_or_id, self.env_kwargs, limit, self.pixels)
        else:
            env = self.env_or_id(**self.env_kwargs)
        return GymnasiumEnv(
            env,
            seed,
            max_episode_steps=limit,
            resize=self.resize,
            pixels=self.pixels,
            channel_first=self.channel_first,
        )


def make_gymnasium(
    env_or_id: str | Callable[..., Any],
    *,
    num_envs: int,
    seed: int,
    workers: int = 0,
    timeout: float = 60.0,
    max_episode_steps: int | None = None,
    resize: tuple[int, int] | None = None,
    pixels: bool = False,
    channel_first: bool = False,
    **kwargs: Any,
) -> HostVector:
    """Makes E copies of a gymnasium environment.

    They cannot be saved: a run that is resumed keeps what it learned and its replay, and begins
    new episodes, from the run's seed again.

    Args:
      env_or_id: an id, e.g. ``"CartPole-v1"``, or ``"module:Name-v0"`` for one that a module
        registers when it is imported; or what returns an environment, e.g. its class. With
        workers it must be picklable, so a function or class of a module, and neither a lambda
        nor an environment.
      num_envs: E.
      seed: of everything random in them; each gets its own stream of it.
      workers: processes that step them; 0 steps them in this process, one after the other.
      timeout: seconds after which a worker that does not answer is taken for dead.
      max_episode_steps: truncate episodes after so many steps; by default as registered. To a
        registered limit it is put in its place, to one of a callable's own it is added.
      resize: height and width that images are resized to, by area.
      pixels: observe rendered frames (``render_mode="rgb_array"``, which a callable must take
        or set itself) in place of the environment's own observations.
      channel_first: the environment's images are ``(C, H, W)``.
      **kwargs: for the environment's constructor.

    Returns:
      The vector, which resets its environments by itself; see `GymnasiumEnv`.

    Raises:
      ModuleNotFoundError: if gymnasium, or what the environment needs, is not installed.
      ValueError: for an unknown id, an environment in place of what makes one, and what
        `GymnasiumEnv` refuses.
    """
    gymnasium = import_gymnasium()
    if isinstance(env_or_id, gymnasium.vector.VectorEnv):
        raise ValueError(
            f"{env_or_id} is a vector already: hand it to "
            "worldmodels_jax.envs.gymnasium_vector.wrap_vector."
        )
    if not (isinstance(env_or_id, str) or callable(env_or_id)):
        raise ValueError(
            f"{env_or_id} is neither an id nor callable: give what makes the environment, e.g. its "
            "class, since every one of the num_envs copies is made anew."
        )
    maker = _Maker(env_or_id, kwargs, max_episode_steps, resize, pixels, channel_first)
    return make_host_vector(maker, num_envs=num_envs, seed=seed, workers=workers, timeout=timeout)


def _make_registered(
    env_id: str, env_kwargs: dict[str, Any], max_episode_steps: int | None, pixels: bool
) -> Any:
    gymnasium = import_gymnasium()
    if pixels:
        env_kwargs = {"render_mode": "rgb_array", **env_kwargs}
    # -1 leaves out the registered limit, which a longer one could not exceed.
    without_limit = None if max_episode_steps is None else -1
    try:
        return gymnasium.make(env_id, max_episode_steps=without_limit, **env_kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ModuleNotFoundError(f"{env_id}: {error}") from error
    except gymnasium.error.Error as error:
        unknown = unknown_name_error(
            "gymnasium environment",
            env_id,
            sorted(gymnasium.registry),
            "sorted(gymnasium.registry)",
        )
        raise ValueError(f"{unknown} gymnasium says: {error}") from error
