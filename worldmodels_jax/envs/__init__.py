"""Environments behind two small protocols; see `worldmodels_jax.types`.

JAX-native environments are made with `make` and run inside the compiled loop. Those stepped from
Python are made with `make_atari`, `make_dmc` and `make_gymnasium`; `make_host_vector` makes many of
one of your own, `wrap_vector` takes a vectorised one, `wrap_gymnax` a functional one.
"""

import importlib
from typing import TYPE_CHECKING, Any

from worldmodels_jax.envs import scroll_grid, sprite_jump
from worldmodels_jax.envs.auto_reset import AutoResetState, auto_reset, batch
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import Environment

if TYPE_CHECKING:
    from worldmodels_jax.envs.atari import make_atari
    from worldmodels_jax.envs.dmc import make_dmc
    from worldmodels_jax.envs.gymnasium import make_gymnasium
    from worldmodels_jax.envs.gymnasium_vector import wrap_vector
    from worldmodels_jax.envs.gymnax import wrap_gymnax
    from worldmodels_jax.envs.host_vector import make_host_vector

__all__ = [
    "AutoResetState",
    "auto_reset",
    "batch",
    "make",
    "make_atari",
    "make_dmc",
    "make_gymnasium",
    "make_host_vector",
    "names",
    "wrap_gymnax",
    "wrap_vector",
]

# Imported when first asked for: a worker process of one suite has no use for the others, whose
# imports take seconds.
_LAZY = {
    "make_atari": "atari",
    "make_dmc": "dmc",
    "make_gymnasium": "gymnasium",
    "make_host_vector": "host_vector",
    "wrap_gymnax": "gymnax",
    "wrap_vector": "gymnasium_vector",
}
# gymnax downloads its images when the environment is made.
_NEEDS_DOWNLOAD = "MNISTBandit-bsuite"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def names() -> tuple[str, ...]:
    """Returns the names that `make` takes, sorted.

    ``"MNISTBandit-bsuite"`` can be made too, but is not listed: it downloads a data set. Those of
    Craftax need ``pip install 'worldmodels_jax[craftax]'``.
    """
    import gymnax

    from worldmodels_jax.envs import craftax

    suite = set(gymnax.registered_envs) - {_NEEDS_DOWNLOAD}
    return tuple(sorted({scroll_grid.NAME, sprite_jump.NAME, *craftax.NAMES, *suite}))


def make(name: str, **kwargs: Any) -> Environment:
    """Makes a JAX-native environment.

    Args:
      name: one of `names`.
      **kwargs: ``max_episode_steps``, and for gymnax whatever its constructor takes.

    Returns:
      An unbatched environment whose ``step`` never resets; see `auto_reset` and `batch`.

    Raises:
      ModuleNotFoundError: if the package of an optional suite is not installed.
      ValueError: for an unknown name, or for that of a host environment.
    """
    suite = name.partition("/")[0]
    if suite in ("atari", "dmc", "gymnasium"):
        raise ValueError(
            f"{name!r} is stepped on the host: make it with "
            f"worldmodels_jax.envs.make_{suite}, or train on it with a preset whose env is of that "
            "suite."
        )
    if name == sprite_jump.NAME:
        return sprite_jump.make_sprite_jump(**kwargs)
    if name == scroll_grid.NAME:
        return scroll_grid.make_scroll_grid(**kwargs)
    import gymnax

    from worldmodels_jax.envs import craftax
    from worldmodels_jax.envs.gymnax import make_gymnax

    if name in craftax.NAMES:
        return craftax.make_craftax(name, **kwargs)
    if name not in gymnax.registered_envs:
        raise unknown_name_error("environment", name, names(), "worldmodels_jax.envs.names()")
    return make_gymnax(name, **kwargs)
