"""Environments behind one small protocol; see `worldmodels_jax.types.Environment`.

JAX-native environments are made with `make` and run inside the compiled loop. Host environments,
whose names begin with ``"atari/"``, are made with `make_host` and stepped from Python.
"""

from typing import Any

import gymnax as _gymnax

from worldmodels_jax.envs import sprite_jump
from worldmodels_jax.envs.atari import AtariVector, make_atari
from worldmodels_jax.envs.auto_reset import AutoResetState, auto_reset, batch
from worldmodels_jax.envs.gymnax import make_gymnax
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import Environment

__all__ = [
    "AtariVector",
    "AutoResetState",
    "auto_reset",
    "batch",
    "is_host_env",
    "make",
    "make_host",
    "names",
]

_HOST_PREFIX = "atari/"
# gymnax downloads its images when the environment is made.
_NEEDS_DOWNLOAD = "MNISTBandit-bsuite"


def names() -> tuple[str, ...]:
    """Returns the names that `make` takes, sorted.

    ``"MNISTBandit-bsuite"`` can be made too, but is not listed: it downloads a data set.
    """
    suite = set(_gymnax.registered_envs) - {_NEEDS_DOWNLOAD}
    return tuple(sorted({sprite_jump.NAME, *suite}))


def make(name: str, **kwargs: Any) -> Environment:
    """Makes a JAX-native environment.

    Args:
      name: one of `names`.
      **kwargs: ``max_episode_steps``, and for gymnax whatever its constructor takes.

    Returns:
      An unbatched environment whose ``step`` never resets; see `auto_reset` and `batch`.

    Raises:
      ValueError: for an unknown name, or for that of a host environment.
    """
    if is_host_env(name):
        raise ValueError(
            f"{name!r} is stepped on the host: make it with "
            f"`worldmodels_jax.envs.make_host({name!r}, num_envs=..., seed=...)`."
        )
    if name == sprite_jump.NAME:
        return sprite_jump.make_sprite_jump(**kwargs)
    if name not in _gymnax.registered_envs:
        raise unknown_name_error("environment", name, names(), "worldmodels_jax.envs.names()")
    return make_gymnax(name, **kwargs)


def is_host_env(name: str) -> bool:
    """Tells whether a name is one for `make_host`, e.g. ``"atari/Pong"``."""
    return name.startswith(_HOST_PREFIX)


def make_host(name: str, num_envs: int, seed: int, **kwargs: Any) -> AtariVector:
    """Makes E copies of a host environment.

    Args:
      name: ``"atari/"`` and a game in CamelCase, e.g. ``"atari/MsPacman"``.
      num_envs: E.
      seed: of everything random in them.
      **kwargs: see `atari.make_atari`.

    Returns:
      The vector of emulators, which resets them by itself.

    Raises:
      ModuleNotFoundError: if ``ale_py`` is not installed.
      ValueError: for a name without the prefix, or an unknown game.
    """
    if not is_host_env(name):
        raise ValueError(
            f"{name!r} is not a host environment; those are named like 'atari/Pong'. "
            "JAX-native ones are made with `worldmodels_jax.envs.make`."
        )
    return make_atari(name.removeprefix(_HOST_PREFIX), num_envs=num_envs, seed=seed, **kwargs)
