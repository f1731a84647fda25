"""gymnax environments, and others written in their manner, behind the library's protocol."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from worldmodels_jax.envs.time_limit import NO_TIME_LIMIT, check_time_limit
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import Environment, EnvSpec, PyTree, TimeStep


def make_gymnax(
    name: str, *, max_episode_steps: int | None = None, **env_kwargs: Any
) -> Environment:
    """Makes a JAX-native environment from a gymnax identifier.

    Args:
      name: one of ``gymnax.registered_envs``, e.g. ``"Breakout-MinAtar"``.
      max_episode_steps: the time limit in steps; the suite's own by default.
      **env_kwargs: passed to the environment's constructor, e.g. ``size=10`` for DeepSea.

    Returns:
      An environment whose ``step`` never resets; see `wrap_gymnax` for what it shows and takes.

    Raises:
      ValueError: for an unknown name, a time limit below 1, or a space that cannot be represented.
    """
    if name not in gymnax.registered_envs:
        known = gymnax.registered_envs
        raise unknown_name_error("gymnax environment", name, known, "gymnax.registered_envs")
    check_time_limit(max_episode_steps)
    suite_env, params = gymnax.make(name, **env_kwargs)
    if max_episode_steps is not None:
        params = dataclasses.replace(params, max_steps_in_episode=max_episode_steps)
    return wrap_gymnax(suite_env, params, name=name)


def wrap_gymnax(env: Any, params: PyTree | None = None, *, name: str) -> Environment:
    """Wraps an environment object written in the manner of gymnax.

    It need not be a subclass of gymnax's ``Environment``. It has
    ``reset_env(key, params) -> (observation, state)``, ``step_env(key, state, action, params)``,
    and ``observation_space(params)`` and ``action_space(params)``, which return spaces of
    ``gymnax.environments.spaces``. ``step_env`` does not reset, and returns one of

    - ``(observation, state, reward, terminated, truncated, info)``;
    - ``(observation, state, reward, terminated, info)``, if the object has the method
      ``is_truncated(state, params)``, as gymnax's own have since its version 1.0;
    - ``(observation, state, reward, done, info)``, the older style, where ``done`` is true of both
      kinds of end. An end is a truncation exactly where ``info["truncated"]`` is there and says
      so; without that entry a time limit counts as a termination, and the agent learns that
      nothing is worth anything from there on.

    Where both are told apart, an end of both kinds at the same step is a termination.

    Observations of two or three axes are grids or images: they become uint8 ``(H, W, C)`` with
    the unit interval spread over 0..255 (a set cell of a 0/1 plane is 255). Vectors become
    float32 ``(F,)``, and a discrete observation of n values becomes a one-hot vector ``(n,)``.
    Discrete actions are int32; continuous ones arrive in [-1, 1]^A, are clipped to it and scaled
    to the bounds of the environment.

    Args:
      env: the object.
      params: handed to its functions; ``env.default_params`` by default.
      name: what the spec shall call it.

    Returns:
      An environment whose ``step`` never resets. State and time step keep their types from call
      to call, so that they can be carried by ``lax.scan`` and do not cause a second compilation.
      The spec's time limit is ``params.max_steps_in_episode``, or `NO_TIME_LIMIT` without one.

    Raises:
      ValueError: for a space that is none of the above, or, by the first ``step``, for a
        ``step_env`` that returns neither five values nor six.
    """
    if params is None:
        params = env.default_params
    observation_shape, observation_dtype, to_observation = _observation_adapter(name, env, params)
    num_actions, discrete, to_action = _action_adapter(name, env.action_space(params))
    spec = EnvSpec(
        name=name,
        observation_shape=observation_shape,
        observation_dtype=observation_dtype,
        num_actions=num_actions,
        discrete=discrete,
        max_episode_steps=int(getattr(params, "max_steps_in_episode", NO_TIME_LIMIT)),
    )

    def reset(key: jax.Array) -> tuple[PyTree, TimeStep]:
        observation, state = env.reset_env(key, params)
        false = jnp.zeros((), bool)
        time_step = TimeStep(
            observation=to_observation(observation),
            reward=jnp.zeros((), jnp.float32),
            terminated=false,
            truncated=false,
            is_first=~false,
        )
        return _strongly_typed(state), time_step

    def step(state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, TimeStep]:
        chex.assert_shape(action, () if discrete else (num_actions,))
        observation, state, reward, *end = env.step_env(key, state, to_action(action), params)
        terminated, truncated = _ends(name, env, params, state, end)
        time_step = TimeStep(
            observation=to_observation(observation),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=terminated,
            truncated=truncated,
            is_first=jnp.zeros((), bool),
        )
        return _strongly_typed(state), time_step

    return Environment(spec, reset, step)


def _ends(
    name: str, env: Any, params: PyTree, state: PyTree, end: list[Any]
) -> tuple[jax.Array, jax.Array]:
    """Returns terminated and truncated, never both, from what follows a step's reward."""
    if len(end) not in (2, 3):
        raise ValueError(
            f"step_env of {name} returned {3 + len(end)} values; return (observation, state, "
            "reward, terminated, truncated, info) or (observation, state, reward, done, info)."
        )
    ended = jnp.asarray(end[0], bool)
    if len(end) == 3:
        terminated, truncated = ended, jnp.asarray(end[1], bool)
    elif hasattr(env, "is_truncated"):
        terminated, truncated = ended, jnp.asarray(env.is_truncated(state, params), bool)
    else:
        truncated = jnp.asarray(end[1].get("truncated", False), bool)
        terminated = ended & ~truncated
    return terminated, truncated & ~terminated


def _observation_adapter(
    name: str, env: Any, params: PyTree
) -> tuple[tuple[int, ...], str, Callable[[jax.Array], jax.Array]]:
    """Returns the observation's shape and dtype in the library and the conversion to them."""
    space = env.observation_space(params)
    if isinstance(space, spaces.Discrete):
        return (space.n,), "float32", lambda index: jax.nn.one_hot(index, space.n)

    # The space cannot be asked: Catch declares int32 and returns float32.
    example, _ = jax.eval_shape(env.reset_env, jax.random.key(0), params)
    shape = tuple(getattr(example, "shape", ()))
    if len(shape) == 1:
        return shape, "float32", lambda vector: jnp.asarray(vector, jnp.float32)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"{name} has observations of shape {shape}; only vectors (F,), grids (H, W) and images "
            "(H, W, C) can be represented. Flatten them in an environment of your own."
        )
    image_shape = shape if len(shape) == 3 else (*shape, 1)

    def to_image(image: jax.Array) -> jax.Array:
        if image.dtype != jnp.uint8:
            unit = jnp.clip(jnp.asarray(image, jnp.float32), 0.0, 1.0)
            image = jnp.round(unit * 255.0).astype(jnp.uint8)
        return image.reshape(image_shape)

    return image_shape, "uint8", to_image


def _action_adapter(name: str, space: Any) -> tuple[int, bool, Callable[[jax.Array], jax.Array]]:
    """Returns the number of actions, whether they are discrete, and the conversion to the suite."""
    if isinstance(space, spaces.Discrete):
        return space.n, True, lambda action: jnp.asarray(action, jnp.int32)

    shape = tuple(getattr(space, "shape", ()))
    low, high = (np.asarray(getattr(space, side, np.inf), np.float32) for side in ("low", "high"))
    if len(shape) != 1 or not np.isfinite(low).all() or not np.isfinite(high).all():
        raise ValueError(
            f"{name} has the action space {space}; only discrete actions and vectors with finite "
            "bounds can be represented. Wrap the environment so that it has one of them."
        )

    def to_action(action: jax.Array) -> jax.Array:
        unit = (jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0) + 1.0) / 2.0
        # A convex combination: both ends are met exactly.
        return (1.0 - unit) * low + unit * high

    return shape[0], False, to_action


def _strongly_typed(state: PyTree) -> PyTree:
    """Gives Python scalars and weakly typed leaves, which a scan could not carry, a fixed type."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), state)
