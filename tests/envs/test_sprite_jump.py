"""SpriteJump: its frames, the validity check, and the returns of a blind and a seeing agent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.envs.auto_reset import auto_reset, batch
from worldmodels_jax.envs.sprite_jump import is_valid_frame, make_sprite_jump, templates


def test_templates_are_nine_disjoint_shifts_of_one_sprite_that_fill_their_cells():
    frames = np.asarray(templates())
    assert frames.shape == (9, 12, 12, 1)
    assert frames.dtype == np.uint8
    assert set(np.unique(frames)) == {0, 255}
    assert ((frames > 0).sum(axis=0) <= 1).all()
    sprite = frames[0, :4, :4]
    for place in range(9):
        row, column = divmod(place, 3)
        cell = frames[place, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(cell, sprite)
        assert (frames[place] > 0).sum() == (sprite > 0).sum()
    quarters = {sprite[i : i + 2, j : j + 2].tobytes() for i in (0, 2) for j in (0, 2)}
    assert len(quarters) == 4
    assert np.zeros((2, 2, 1), np.uint8).tobytes() not in quarters


def test_exactly_one_whole_sprite_is_valid():
    frames = np.asarray(templates())
    two = frames[0] | frames[4]
    none = np.zeros_like(two)
    half = frames[3].copy()
    half[:, :2] = 0
    extra_pixel = frames[3].copy()
    extra_pixel[0, 0] = 255
    assert np.asarray(is_valid_frame(jnp.asarray(frames))).all()
    invalid = jnp.asarray(np.stack([two, none, half, extra_pixel]).reshape(2, 2, 12, 12, 1))
    np.testing.assert_array_equal(is_valid_frame(invalid), np.zeros((2, 2), bool))


def test_validity_tolerates_blur_up_to_one_half():
    frame = templates()[2] / 255.0
    on = frame > 0
    assert is_valid_frame(jnp.where(on, 0.51, 0.49))
    assert not is_valid_frame(jnp.where(on, 0.51, 0.51))
    assert not is_valid_frame(jnp.where(on, 0.49, 0.0))
    assert is_valid_frame(jnp.where(on, 128, 127).astype(jnp.uint8))
    assert not is_valid_frame(jnp.where(on, 127, 0).astype(jnp.uint8))


@pytest.fixture(scope="module")
def steps_and_actions(random_rollout):
    env = batch(auto_reset(make_sprite_jump()), 64)
    # 10 episodes of 33 records.
    return random_rollout(env, 329, batch_shape=(64,))


def test_every_frame_is_valid_and_every_place_is_equally_likely(steps_and_actions):
    steps, _ = steps_and_actions
    assert np.asarray(is_valid_frame(jnp.asarray(steps.observation))).all()
    places = _places(steps.observation)
    # 21,120 draws: a frequency's standard deviation is 0.0022.
    np.testing.assert_allclose(np.bincount(places.ravel()) / places.size, 1 / 9, atol=0.011)
    # The next place is independent of the present one.
    pairs = np.zeros((9, 9))
    np.add.at(pairs, (places[:-1].ravel(), places[1:].ravel()), 1)
    np.testing.assert_allclose(pairs / pairs.sum(), 1 / 81, atol=0.004)


def test_episodes_are_truncated_after_32_steps(steps_and_actions):
    steps, _ = steps_and_actions
    assert not steps.terminated.any()
    assert (np.flatnonzero(steps.is_first[:, 0]) == np.arange(0, 330, 33)).all()
    assert (np.flatnonzero(steps.truncated[:, 0]) == np.arange(32, 330, 33)).all()
    assert (steps.is_first == steps.is_first[:, :1]).all()


def test_the_reward_is_for_naming_the_place_the_action_was_chosen_from(steps_and_actions):
    steps, actions = steps_and_actions
    places = _places(steps.observation)
    expected = (actions == places[:-1]) & ~steps.is_first[1:]
    np.testing.assert_array_equal(steps.reward[1:], expected)
    # Random actions: 32 / 9 = 3.56 an episode; over 640 episodes the deviation is 0.07.
    assert steps.reward.sum() / 640 == pytest.approx(32 / 9, abs=0.35)


def test_a_seeing_agent_gets_the_episode_length():
    env = make_sprite_jump(max_episode_steps=5)

    def body(carry, key):
        state, frame = carry
        action = jnp.argmax((templates() == frame).all(axis=(1, 2, 3)))
        state, step = env.step(state, action, key)
        return (state, step.observation), (step.reward, step.truncated)

    state, first = env.reset(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 5)
    _, (rewards, truncated) = jax.lax.scan(body, (state, first.observation), keys)
    assert rewards.sum() == 5
    assert truncated.tolist() == [False] * 4 + [True]


def test_an_episode_without_steps_is_refused():
    with pytest.raises(ValueError, match="max_episode_steps=0"):
        make_sprite_jump(max_episode_steps=0)


def _places(frames: np.ndarray) -> np.ndarray:
    """Finds the sprite by its brightest cell, without the library's templates."""
    cells = frames.reshape(*frames.shape[:-3], 3, 4, 3, 4).astype(int).sum(axis=(-3, -1))
    return cells.reshape(*cells.shape[:-2], 9).argmax(axis=-1)
