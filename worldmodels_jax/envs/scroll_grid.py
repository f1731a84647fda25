"""ScrollGrid: a procedural world that scrolls under its agent, for comparing frame tokenizers.

The agent walks over a torus of random tiles and sees those around it. What scrolls is determined by
the frame and the action before; the row or column that comes into view and the wandering mobs are
not. That is the split which tokens of a frame given the one before (Delta-IRIS) exploit: frames are
of high entropy, most of which the frame before explains.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.types import Environment, EnvSpec, TimeStep

NAME = "ScrollGrid"
SIDE = 24  # of the torus, in tiles
VIEW = 8  # tiles along either side of what is seen; the agent is at (4, 4) of it
TILE = 2  # pixels along either side of a tile
BLOCKING = (1, 2)  # types of tile that nothing can step on
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # of the five actions, in rows and columns
PROBABILITIES = (0.15, 0.10, 0.10, 0.15, 0.125, 0.125, 0.125, 0.125)

# The eight types of tile, a mob, the agent.
_PALETTE = np.array(
    [
        [96, 160, 64],
        [112, 112, 112],
        [32, 80, 192],
        [224, 200, 136],
        [24, 96, 40],
        [144, 88, 40],
        [232, 136, 184],
        [248, 208, 24],
        [208, 32, 32],
        [255, 255, 255],
    ],
    np.uint8,
)
_MOB, _AGENT = 8, 9
_MAX_TYPES = 8


class ScrollGridState(NamedTuple):
    """The world, and who is where in it."""

    tiles: jax.Array  # (24, 24) int32, types
    agent: jax.Array  # (2,) int32, row and column
    mobs: jax.Array  # (M, 2) int32
    time: jax.Array  # () int32, steps since the reset


def render(state: ScrollGridState) -> jax.Array:
    """The tiles around the agent as pixels, (16, 16, 3) uint8; agent over mobs over tiles."""
    world = state.tiles.at[state.mobs[:, 0], state.mobs[:, 1]].set(_MOB)
    around = jnp.arange(VIEW) - VIEW // 2
    rows, columns = ((state.agent[side] + around) % SIDE for side in range(2))
    view = world[rows[:, None], columns].at[VIEW // 2, VIEW // 2].set(_AGENT)
    return jnp.repeat(jnp.repeat(jnp.asarray(_PALETTE)[view], TILE, 0), TILE, 1)


def make_scroll_grid(
    *,
    probabilities: tuple[float, ...] = PROBABILITIES,
    reward_tile: int | None = 7,
    num_mobs: int = 12,
    max_episode_steps: int = 64,
) -> Environment:
    """Makes the environment.

    Five actions stay or move the agent by one tile, if nothing blocks the way. Mobs then try one
    of the four directions each, all alike; they share tiles with one another and with the agent.
    Moving onto a tile of the rewarded type is worth 1 and turns it into type 0. Episodes end only
    by truncation.

    Args:
      probabilities: of the types of tile, which are drawn independently; at most eight of them.
      reward_tile: the rewarded type; None for no rewards at all.
      num_mobs: M.
      max_episode_steps: the length of every episode in steps.

    Returns:
      An environment with observations (16, 16, 3) uint8 and A = 5 discrete actions.

    Raises:
      ValueError: for probabilities that are none, a type that does not exist, or no steps.
    """
    _check(probabilities, reward_tile, num_mobs, max_episode_steps)
    spec = EnvSpec(
        name=NAME,
        observation_shape=(VIEW * TILE, VIEW * TILE, 3),
        observation_dtype="uint8",
        num_actions=len(MOVES),
        discrete=True,
        max_episode_steps=max_episode_steps,
    )
    log_probs = jnp.log(jnp.asarray(probabilities, jnp.float32))
    moves = jnp.asarray(MOVES, jnp.int32)

    def try_to_move(tiles: jax.Array, place: jax.Array, move: jax.Array) -> jax.Array:
        """``(..., 2), (..., 2) -> (..., 2)``."""
        target = (place + move) % SIDE
        blocked = _blocks(tiles[target[..., 0], target[..., 1]])
        return jnp.where(blocked[..., None], place, target)

    def arrive(state: ScrollGridState, reward: jax.Array) -> tuple[ScrollGridState, TimeStep]:
        time_step = TimeStep(
            observation=render(state),
            reward=reward.astype(jnp.float32),
            terminated=jnp.zeros((), bool),
            truncated=state.time >= max_episode_steps,
            is_first=state.time == 0,
        )
        return state, time_step

    def reset(key: jax.Array) -> tuple[ScrollGridState, TimeStep]:
        key_tiles, key_places = jax.random.split(key)
        tiles = jax.random.categorical(key_tiles, log_probs, shape=(SIDE, SIDE)).astype(jnp.int32)
        free = jnp.where(_blocks(tiles), -jnp.inf, 0.0).reshape(-1)
        places = jax.random.categorical(key_places, free, shape=(1 + num_mobs,))
        places = jnp.stack(jnp.divmod(places, SIDE), -1).astype(jnp.int32)
        state = ScrollGridState(tiles, places[0], places[1:], jnp.zeros((), jnp.int32))
        return arrive(state, jnp.zeros(()))

    def step(
        state: ScrollGridState, action: jax.Array, key: jax.Array
    ) -> tuple[ScrollGridState, TimeStep]:
        chex.assert_shape(action, ())
        agent = try_to_move(state.tiles, state.agent, moves[action])
        tiles, reward = state.tiles, jnp.zeros(())
        if reward_tile is not None:
            row, column = agent
            found = (tiles[row, column] == reward_tile) & jnp.any(agent != state.agent)
            tiles = jnp.where(found, tiles.at[row, column].set(0), tiles)
            reward = found
        directions = jax.random.randint(key, (num_mobs,), 1, len(MOVES))
        mobs = try_to_move(tiles, state.mobs, moves[directions])
        return arrive(ScrollGridState(tiles, agent, mobs, state.time + 1), reward)

    return Environment(spec, reset, step)


def _blocks(types: jax.Array) -> jax.Array:
    return jnp.isin(types, jnp.asarray(BLOCKING))


def _check(
    probabilities: tuple[float, ...],
    reward_tile: int | None,
    num_mobs: int,
    max_episode_steps: int,
) -> None:
    types = len(probabilities)
    free = sum(p for kind, p in enumerate(probabilities) if kind not in BLOCKING)
    if (
        not 1 <= types <= _MAX_TYPES
        or min(probabilities) < 0
        or abs(sum(probabilities) - 1) > 1e-6
        or free <= 0
    ):
        raise ValueError(
            f"probabilities={probabilities} must be one to {_MAX_TYPES} numbers that sum to 1, not "
            f"all of them of the types {BLOCKING}, on which nothing can stand."
        )
    if reward_tile is not None and (not 0 < reward_tile < types or reward_tile in BLOCKING):
        raise ValueError(
            f"reward_tile={reward_tile} must be a type from 1 to {types - 1} that can be stepped "
            f"on, not one of {BLOCKING}, or None."
        )
    if num_mobs < 0:
        raise ValueError(f"num_mobs={num_mobs} must not be negative.")
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps={max_episode_steps} leaves no step; give at least 1.")
