"""ScrollGrid: its tiles, moves, rewards, and what of a frame the one before determines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.envs import scroll_grid
from worldmodels_jax.envs.auto_reset import auto_reset, batch
from worldmodels_jax.envs.scroll_grid import ScrollGridState, make_scroll_grid, render

KEY = jax.random.key(0)
E = 32


@pytest.fixture(scope="module")
def steps_and_actions(random_rollout):
    env = batch(auto_reset(make_scroll_grid()), E)
    return random_rollout(env, 129, batch_shape=(E,))


def world(tiles=None, agent=(10, 10), mobs=((0, 0),)):
    tiles = np.zeros((24, 24), np.int32) if tiles is None else tiles
    places = (jnp.asarray(x, jnp.int32) for x in (tiles, agent, mobs))
    return ScrollGridState(*places, jnp.zeros((), jnp.int32))


def cells(frames):
    """(..., 16, 16, 3) pixels to the (..., 8, 8) colours of the tiles, as one number each."""
    frames = np.asarray(frames).astype(int)
    tiles = frames.reshape(*frames.shape[:-3], 8, 2, 8, 2, 3)
    assert (tiles == tiles[..., :1, :, :1, :]).all()  # every tile has one colour
    return tiles[..., 0, :, 0, :] @ np.array([1, 256, 65536])


def test_frame_shows_the_tiles_around_the_agent_across_the_edge_of_the_torus():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 8, (24, 24))
    palette = cells(scroll_grid._PALETTE[:, None, None].repeat(16, 1).repeat(16, 2))[:, 0, 0]
    assert len(set(palette)) == 10
    agent, mobs = (1, 22), ((23, 0), (2, 1), (12, 12))
    frame = render(world(tiles, agent, mobs))
    assert frame.shape == (16, 16, 3)
    assert frame.dtype == jnp.uint8
    expected = np.zeros((8, 8), int)
    for row, column in np.ndindex(8, 8):
        place = ((agent[0] - 4 + row) % 24, (agent[1] - 4 + column) % 24)
        expected[row, column] = palette[8 if place in mobs else tiles[place]]
    expected[4, 4] = palette[9]
    np.testing.assert_array_equal(cells(frame), expected)
    assert (cells(frame) == palette[8]).sum() == 2


def test_tiles_are_drawn_with_their_probabilities_and_all_stand_on_free_ones():
    env = make_scroll_grid(num_mobs=3)
    states, first = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 100))
    frequency = np.bincount(states.tiles.ravel(), minlength=8) / states.tiles.size
    # 57,600 draws: a frequency's standard deviation is below 0.0015.
    np.testing.assert_allclose(frequency, scroll_grid.PROBABILITIES, atol=0.008)
    places = np.concatenate([states.agent[:, None], states.mobs], 1)
    under = np.asarray(states.tiles)[np.arange(100)[:, None], places[..., 0], places[..., 1]]
    assert not np.isin(under, (1, 2)).any()
    assert len(set(map(tuple, states.agent.tolist()))) > 50
    assert first.is_first.all()
    assert not first.reward.any()


@pytest.mark.parametrize(
    ("action", "move"), [(0, (0, 0)), (1, (-1, 0)), (2, (1, 0)), (3, (0, -1)), (4, (0, 1))]
)
def test_actions_move_the_agent_unless_something_blocks_the_way(action, move):
    env = make_scroll_grid(num_mobs=1)
    step = jax.jit(env.step)
    start = (0, 23)  # a corner of the torus
    target = ((start[0] + move[0]) % 24, (start[1] + move[1]) % 24)
    for kind in range(8):
        tiles = np.zeros((24, 24), np.int32)
        tiles[target] = kind
        state, time_step = step(world(tiles, start), jnp.asarray(action), KEY)
        blocked = kind in (1, 2)
        assert tuple(state.agent.tolist()) == (start if blocked else target)
        rewarded = kind == 7 and action > 0
        assert time_step.reward == rewarded
        assert state.tiles[target] == (0 if rewarded else kind)


def test_mobs_take_one_of_four_steps_unless_it_is_blocked():
    env = make_scroll_grid(num_mobs=1)
    tiles = np.zeros((24, 24), np.int32)
    tiles[4, 5] = 1  # above the mob
    state = world(tiles, mobs=((5, 5),))
    keys = jax.random.split(KEY, 2000)
    after, _ = jax.jit(jax.vmap(env.step, (None, None, 0)))(state, jnp.asarray(0), keys)
    places, counts = np.unique(np.asarray(after.mobs)[:, 0], axis=0, return_counts=True)
    # Blocked above, it stays.
    np.testing.assert_array_equal(places, [[5, 4], [5, 5], [5, 6], [6, 5]])
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)


def test_what_scrolls_is_determined_and_the_rest_is_not(steps_and_actions):
    steps, actions = steps_and_actions
    colours = cells(steps.observation)
    mob = cells(np.broadcast_to(scroll_grid._PALETTE[8], (16, 16, 3)))[0, 0]
    agent = cells(np.broadcast_to(scroll_grid._PALETTE[9], (16, 16, 3)))[0, 0]
    moved = 0
    for e in range(4):
        for t in range(64):
            before, after = colours[t, e], colours[t + 1, e]
            if steps.is_first[t + 1, e]:
                continue
            row, column = scroll_grid.MOVES[actions[t, e]]
            # Seen by the agent, the world moves the other way, or not at all.
            kept = before[max(row, 0) : 8 + min(row, 0), max(column, 0) : 8 + min(column, 0)]
            shown = after[max(-row, 0) : 8 + min(-row, 0), max(-column, 0) : 8 + min(-column, 0)]
            known = ~np.isin(kept, (mob, agent)) & ~np.isin(shown, (mob, agent))
            scrolled = (kept == shown)[known].all()
            still = ~np.isin(before, (mob, agent)) & ~np.isin(after, (mob, agent))
            assert scrolled or (before == after)[still].all()
            moved += scrolled and bool(actions[t, e])
    # 4 in 5 actions move, unless the tile is one of the blocking fifth.
    assert 4 * 64 * 0.5 < moved < 4 * 64 * 0.8


def test_episodes_are_truncated_after_64_steps_and_worth_little_to_a_random_agent(
    steps_and_actions,
):
    steps, _ = steps_and_actions
    assert not steps.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated[:, 0]), [64, 129])
    np.testing.assert_array_equal(np.flatnonzero(steps.is_first[:, 0]), [0, 65])
    # An eighth of the tiles is rewarded, but a random walk comes back to where it was.
    per_step = steps.reward.mean()
    assert 0.01 < per_step < 0.125


def test_other_tiles_and_no_rewards():
    env = make_scroll_grid(probabilities=(0.5, 0.15, 0.15, 0.2), reward_tile=3, num_mobs=0)
    state, _ = env.reset(KEY)
    assert set(np.unique(state.tiles)) == {0, 1, 2, 3}
    assert state.mobs.shape == (0, 2)
    tiles = np.full((24, 24), 3, np.int32)
    # Every step onto a fresh tile is rewarded, staying is not.
    for action, expected in ((0, 0.0), (1, 1.0)):
        state = world(tiles)._replace(mobs=jnp.zeros((0, 2), jnp.int32))
        assert env.step(state, jnp.asarray(action), KEY)[1].reward == expected
    silent = make_scroll_grid(reward_tile=None, num_mobs=1)
    state, time_step = silent.step(world(np.full((24, 24), 7)), jnp.asarray(1), KEY)
    assert time_step.reward == 0
    assert (state.tiles == 7).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probabilities": (0.5, 0.6)}, r"probabilities=\(0\.5, 0\.6\)"),
        ({"probabilities": (0.0, 0.5, 0.5)}, "on which nothing can stand"),
        ({"probabilities": (0.1,) * 10}, "one to 8 numbers"),
        ({"reward_tile": 8}, "reward_tile=8 must be a type from 1 to 7"),
        ({"reward_tile": 1}, "reward_tile=1 "),
        ({"num_mobs": -1}, "num_mobs=-1"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
    ],
)
def test_worlds_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scroll_grid(**arguments)
