"""Craftax-Classic, Crafter rewritten in JAX, behind the library's protocol."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.envs.time_limit import NO_TIME_LIMIT, check_time_limit
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import Environment, Metrics, PyTree

PIXELS = "Craftax-Classic-Pixels"
SYMBOLIC = "Craftax-Classic-Symbolic"
NAMES = (PIXELS, SYMBOLIC)
ACHIEVEMENT = "achievement/"  # what the names of the outcomes begin with

_NUM_ACTIONS = 17


class _Limit(NamedTuple):
    max_steps_in_episode: int


def make_craftax(name: str = PIXELS, *, max_episode_steps: int = 10_000) -> Environment:
    """Makes Craftax-Classic (Matthews et al. 2024, arXiv 2402.16801), which has Crafter's rules.

    Pixels are uint8 (64, 64, 3): the suite draws 63x63 of them, to which a black row is added
    below and a black column on the right, so that the sides can be halved. The symbolic
    observation is a float32 vector (1345,). The reward is 1 for every achievement unlocked for the
    first time in the episode (two at once are 2, in Crafter 1) and 0.1 for every point of health,
    gained or lost. To have no health left, as in lava, is a termination; reaching the time limit
    is a truncation, unless the player died at that very step.

    ``outcomes`` is one number for each of the 22 achievements, named as in Crafter, e.g.
    ``"achievement/collect_coal"``: 1 if it was unlocked in the episode so far, else 0.

    Args:
      name: one of `NAMES`.
      max_episode_steps: the time limit in steps.

    Returns:
      An environment whose ``step`` never resets. State and time step keep their types from call
      to call, so that they can be carried by ``lax.scan`` and do not cause a second compilation.

    Raises:
      ModuleNotFoundError: if ``craftax`` is not installed.
      ValueError: for an unknown name or a time limit below 1.
    """
    # On import gymnax computes, after which hosts can no longer be joined.
    from gymnax.environments import spaces

    from worldmodels_jax.envs.gymnax import wrap_gymnax

    if name not in NAMES:
        raise unknown_name_error(
            "Craftax environment", name, NAMES, "worldmodels_jax.envs.craftax.NAMES"
        )
    check_time_limit(max_episode_steps)
    try:
        from craftax.craftax_classic import constants, game_logic, renderer, world_gen
        from craftax.craftax_classic.envs.craftax_state import EnvParams, StaticEnvParams
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs {error.name}, which is not installed: run "
            "`pip install 'worldmodels_jax[craftax]'`."
        ) from error

    draw = _pixels(constants, renderer) if name == PIXELS else renderer.render_craftax_symbolic
    # The suite does not tell its time limit from death; without one, a game is over by death alone.
    rules, sizes = EnvParams(max_timesteps=NO_TIME_LIMIT), StaticEnvParams()
    achievements = {ACHIEVEMENT + a.name.lower(): a.value for a in constants.Achievement}

    def reset_env(key: jax.Array, limit: _Limit) -> tuple[jax.Array, PyTree]:
        state = world_gen.generate_world(key, rules, sizes)
        return draw(state), state

    def step_env(key: jax.Array, state: PyTree, action: jax.Array, limit: _Limit) -> tuple:
        state, reward = game_logic.craftax_step(key, state, action, rules, sizes)
        terminated = game_logic.is_game_over(state, rules)
        truncated = state.timestep >= limit.max_steps_in_episode
        return draw(state), state, reward, terminated, truncated, {}

    def outcomes(state: PyTree) -> Metrics:
        unlocked = state.achievements.astype(jnp.float32)
        return {achievement: unlocked[index] for achievement, index in achievements.items()}

    game = SimpleNamespace(
        reset_env=reset_env,
        step_env=step_env,
        observation_space=lambda limit: (
            spaces.Box(0, 255, (64, 64, 3)) if name == PIXELS else spaces.Box(0, 1, (1345,))
        ),
        action_space=lambda limit: spaces.Discrete(_NUM_ACTIONS),
    )
    env = wrap_gymnax(game, _Limit(max_episode_steps), name=name)
    return env._replace(outcomes=outcomes)


def _pixels(constants: Any, renderer: Any) -> Callable[[PyTree], jax.Array]:
    """Returns the suite's drawing of a state, as uint8 and with sides of 64."""
    size = constants.BLOCK_PIXEL_SIZE_AGENT
    # The suite's loader prepares two larger sizes as well, for minutes, and keeps all three in its
    # package directory, which may be read-only or just being written by another process. The one
    # size that is drawn here takes seconds.
    load_all_textures = renderer.load_all_textures
    renderer.load_all_textures = lambda: {size: constants.load_all_textures_given_size(size)}
    try:
        render = renderer.make_craftax_pixel_renderer(size)
    finally:
        renderer.load_all_textures = load_all_textures

    def draw(state: PyTree) -> jax.Array:
        pixels = jnp.round(jnp.clip(render(state), 0.0, 255.0)).astype(jnp.uint8)
        return jnp.pad(pixels, ((0, 1), (0, 1), (0, 0)))

    return draw
