"""SpriteJump: the smallest world whose next frame cannot be predicted token by token.

A sprite jumps at every step to one of K places, whatever the agent does. The next frame is
therefore K-fold uncertain, but its parts depend on each other: exactly one whole sprite is
visible. A model that samples the parts independently paints several sprites, or none, or halves;
a model of the joint distribution paints one. `is_valid_frame` tells them apart.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.types import Environment, EnvSpec, TimeStep

NAME = "SpriteJump"
CELLS_PER_SIDE = 3
NUM_PLACES = CELLS_PER_SIDE**2  # K

# No two of its 2x2 quarters are alike and none is empty, so that a half of it cannot pass for
# another half.
_SPRITE = np.array(
    [
        [1, 1, 1, 0],
        [1, 0, 0, 1],
        [1, 1, 1, 1],
        [0, 1, 1, 1],
    ],
    np.uint8,
)
_SIDE = CELLS_PER_SIDE * _SPRITE.shape[0]  # H = W = 12


class SpriteJumpState(NamedTuple):
    """The place of the sprite, row by row, and the steps since the reset."""

    place: jax.Array  # () int32 in [0, K)
    time: jax.Array  # () int32


def templates() -> jax.Array:
    """Returns the K = 9 frames that the environment can show, (K, 12, 12, 1) uint8, 0 or 255."""
    cells = np.eye(NUM_PLACES, dtype=np.uint8).reshape(NUM_PLACES, CELLS_PER_SIDE, CELLS_PER_SIDE)
    frames = np.stack([np.kron(cell, _SPRITE) for cell in cells])
    return jnp.asarray(frames[..., None] * np.uint8(255))


def is_valid_frame(frames: jax.Array) -> jax.Array:
    """Tells whether frames show exactly one whole sprite and nothing else.

    Pixels are quantised at one half (of 255 for uint8, of 1 for floating point), so a blurred
    reconstruction passes as long as each pixel is on the right side; after that not a single
    pixel may differ from one of the `templates`.

    Args:
      frames: (..., 12, 12, 1), uint8 in 0..255 or floating point in [0, 1].

    Returns:
      (...,) bool.
    """
    chex.assert_shape(frames, (..., _SIDE, _SIDE, 1))
    middle = 127.5 if frames.dtype == jnp.uint8 else 0.5
    matches = (frames > middle)[..., None, :, :, :] == (templates() > 0)  # (..., K, H, W, 1)
    return matches.all(axis=(-3, -2, -1)).any(axis=-1)


def make_sprite_jump(*, max_episode_steps: int = 32) -> Environment:
    """Makes the environment.

    Action k says "the sprite is now at place k": the reward of the step is 1 if that is true of
    the frame the action was chosen from, else 0. Seeing is enough to get it all, so the best
    return is ``max_episode_steps`` and that of random actions a K-th of it. Episodes end only by
    truncation.

    Args:
      max_episode_steps: the length of every episode in steps.

    Returns:
      An environment with observations (12, 12, 1) uint8 and A = K = 9 discrete actions.

    Raises:
      ValueError: if ``max_episode_steps`` is below 1.
    """
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps={max_episode_steps} leaves no step; give at least 1.")
    spec = EnvSpec(
        name=NAME,
        observation_shape=(_SIDE, _SIDE, 1),
        observation_dtype="uint8",
        num_actions=NUM_PLACES,
        discrete=True,
        max_episode_steps=max_episode_steps,
    )

    def arrive(
        time: jax.Array, reward: jax.Array, key: jax.Array
    ) -> tuple[SpriteJumpState, TimeStep]:
        place = jax.random.randint(key, (), 0, NUM_PLACES)
        time_step = TimeStep(
            observation=templates()[place],
            reward=reward.astype(jnp.float32),
            terminated=jnp.zeros((), bool),
            truncated=time >= max_episode_steps,
            is_first=time == 0,
        )
        return SpriteJumpState(place, time), time_step

    def reset(key: jax.Array) -> tuple[SpriteJumpState, TimeStep]:
        return arrive(jnp.zeros((), jnp.int32), jnp.zeros(()), key)

    def step(
        state: SpriteJumpState, action: jax.Array, key: jax.Array
    ) -> tuple[SpriteJumpState, TimeStep]:
        chex.assert_shape(action, ())
        return arrive(state.time + 1, action == state.place, key)

    return Environment(spec, reset, step)
