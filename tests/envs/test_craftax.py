"""Craftax-Classic behind the protocol: situations with a known end, and the suite's own pictures.

One compiled step serves all tests, because compiling it takes far longer than running it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from worldmodels_jax import envs
from worldmodels_jax.envs.craftax import make_craftax
from worldmodels_jax.types import EnvSpec

pytest.importorskip("craftax")

ACHIEVEMENTS = """
collect_coal collect_diamond collect_drink collect_iron collect_sapling collect_stone collect_wood
defeat_skeleton defeat_zombie eat_cow eat_plant make_iron_pickaxe make_iron_sword
make_stone_pickaxe make_stone_sword make_wood_pickaxe make_wood_sword place_furnace place_plant
place_stone place_table wake_up
"""
NOOP, UP, DO = 0, 3, 5
WATER, STONE, TREE, SAND, LAVA = 3, 4, 5, 13, 14
LIMIT = 100
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def game():
    """The environment, compiled, and a state in which nothing lives but the player."""
    env = make_craftax(max_episode_steps=LIMIT)
    reset = jax.jit(env.reset)
    state, _ = reset(KEY)
    # On sand nothing spawns. Step 60 of a day is its noon.
    desert = state.replace(map=jnp.full_like(state.map, SAND), timestep=jnp.int32(59))
    return SimpleNamespace(env=env, reset=reset, step=jax.jit(env.step), desert=desert)


def _facing(state, block):
    """The player stands at (32, 32), looking up."""
    assert state.player_position.tolist() == [32, 32]
    return state.replace(map=state.map.at[31, 32].set(block))


def test_the_specs(game):
    assert game.env.spec == EnvSpec(
        name="Craftax-Classic-Pixels",
        observation_shape=(64, 64, 3),
        observation_dtype="uint8",
        num_actions=17,
        discrete=True,
        max_episode_steps=LIMIT,
    )
    assert envs.make("Craftax-Classic-Symbolic").spec == EnvSpec(
        name="Craftax-Classic-Symbolic",
        observation_shape=(1345,),
        observation_dtype="float32",
        num_actions=17,
        discrete=True,
        max_episode_steps=10_000,
    )


def test_an_achievement_is_rewarded_once_and_stays_an_outcome(game):
    names = {f"achievement/{name}" for name in ACHIEVEMENTS.split()}
    assert game.env.outcomes(game.desert) == dict.fromkeys(names, 0.0)
    state, step = game.step(_facing(game.desert, TREE), jnp.int32(DO), KEY)
    assert float(step.reward) == 1.0
    for _ in range(2):
        outcomes = game.env.outcomes(state)
        assert {value.dtype for value in outcomes.values()} == {jnp.dtype("float32")}
        assert {name for name in names if outcomes[name] == 1.0} == {"achievement/collect_wood"}
        assert sum(outcomes.values()) == 1.0
        state, step = game.step(_facing(state, TREE), jnp.int32(DO), KEY)
        assert float(step.reward) == 0.0


def test_lava_terminates_and_costs_all_health(game):
    _, step = game.step(_facing(game.desert, LAVA), jnp.int32(UP), KEY)
    assert float(step.reward) == pytest.approx(-0.9)
    assert step.terminated
    assert not step.truncated
    assert not step.is_first


@pytest.mark.parametrize("health", [1, 2])
def test_the_last_point_of_health_is_the_one_that_terminates(game, health):
    # At -15 a starving player is one step from the next loss.
    starving = game.desert.replace(
        player_food=jnp.int32(0), player_recover=jnp.float32(-15), player_health=jnp.int32(health)
    )
    _, step = game.step(starving, jnp.int32(NOOP), KEY)
    assert float(step.reward) == pytest.approx(-0.1)
    assert bool(step.terminated) == (health == 1)
    assert not step.truncated


def test_the_time_limit_truncates_unless_the_player_dies(game):
    for timestep, block, ends in [
        (LIMIT - 2, SAND, (False, False)),
        (LIMIT - 1, SAND, (False, True)),
        (LIMIT, SAND, (False, True)),
        (LIMIT - 1, LAVA, (True, False)),
    ]:
        state = _facing(game.desert, block).replace(timestep=jnp.int32(timestep))
        _, step = game.step(state, jnp.int32(UP), KEY)
        assert (bool(step.terminated), bool(step.truncated)) == ends


def _tile(name):
    """A texture of the suite in the size it is drawn, read without the suite."""
    folder = Path(find_spec("craftax").submodule_search_locations[0]) / "craftax_classic/assets"
    with Image.open(folder / name) as image:
        return np.asarray(image.convert("RGB").resize((7, 7), Image.Resampling.NEAREST))


def test_the_picture_at_noon_is_made_of_the_textures(game):
    # The view is rows 29..35 and columns 28..36; below it are two rows of inventory.
    blocks = game.desert.map.at[29, 28].set(WATER).at[35, 36].set(STONE)
    _, step = game.step(game.desert.replace(map=blocks), jnp.int32(NOOP), KEY)
    picture = np.asarray(step.observation)
    assert picture.dtype == np.uint8
    assert picture.shape == (64, 64, 3)
    assert (picture[63] == 0).all()
    assert (picture[:, 63] == 0).all()
    tiles = picture[:63, :63].reshape(9, 7, 9, 7, 3).swapaxes(1, 2)
    expected = np.broadcast_to(_tile("sand.png"), (7, 9, 7, 7, 3)).copy()
    expected[0, 0], expected[6, 8] = _tile("water.png"), _tile("stone.png")
    differs = (tiles[:7] != expected).any(axis=(2, 3, 4))
    # Only the player, in the middle, hides its ground.
    np.testing.assert_array_equal(np.argwhere(differs), [[3, 4]])
    assert tiles[7, :4].any(axis=(1, 2, 3)).all()  # health, food, drink, energy
    assert not tiles[7, 4:].any()
    assert not tiles[8].any()  # no possessions


def test_random_play_is_rewarded_for_achievements_and_health_alone(game):
    state, first = game.reset(jax.random.key(1))
    assert first.is_first
    assert not first.is_last
    assert float(first.reward) == 0.0
    _, other = game.reset(jax.random.key(2))
    assert (first.observation != other.observation).any()
    actions = np.random.default_rng(0).integers(0, 17, LIMIT)
    total = 0.0
    for index, action in enumerate(actions):
        state, step = game.step(state, jnp.int32(action), jax.random.key(index))
        total += float(step.reward)
        assert not step.terminated
        assert bool(step.truncated) == (index == LIMIT - 1)
    unlocked = float(sum(game.env.outcomes(state).values()))
    assert unlocked >= 2
    assert total == pytest.approx(unlocked + 0.1 * (int(state.player_health) - 9), abs=1e-4)
    # States of a reset, of a step and those made here have one type.
    assert game.step._cache_size() == 1


def test_the_symbolic_observation_shows_map_and_player():
    env = make_craftax("Craftax-Classic-Symbolic")
    _, first = jax.jit(env.reset)(KEY)
    assert first.observation.dtype == jnp.float32
    observation = np.asarray(first.observation)
    # 17 blocks one-hot and 4 kinds of mob, of which there are none yet.
    tiles = observation[: 7 * 9 * 21].reshape(7, 9, 21)
    np.testing.assert_array_equal(tiles[..., :17].sum(-1), 1.0)
    assert tiles[3, 4, 2] == 1.0  # grass below the player
    assert not tiles[..., 17:].any()
    possessions, needs, direction, light, sleeping = np.split(observation[1323:], [12, 16, 20, 21])
    assert not possessions.any()
    np.testing.assert_allclose(needs, 0.9, atol=1e-3)
    np.testing.assert_array_equal(direction, [0, 0, 1, 0])  # up
    # 1 - cos(0.3 pi)^3, the light of the morning.
    np.testing.assert_allclose(light, 0.79693, atol=1e-4)
    assert sleeping == 0


def test_the_suites_texture_cache_is_neither_made_nor_needed(monkeypatch):
    from craftax.craftax_classic import constants, renderer

    def refuse(*args):
        raise AssertionError("writes to the package directory")

    monkeypatch.setattr(constants, "save_compressed_pickle", refuse)
    monkeypatch.setattr(renderer, "load_all_textures", refuse)
    make_craftax()
    assert renderer.load_all_textures is refuse


def test_errors_name_the_value_and_the_remedy(monkeypatch):
    with pytest.raises(ValueError, match=r"'Craftax-Pixels'.*Did you mean Craftax-Classic-Pixels"):
        make_craftax("Craftax-Pixels")
    with pytest.raises(ValueError, match="max_episode_steps=0"):
        make_craftax(max_episode_steps=0)
    monkeypatch.setitem(sys.modules, "craftax.craftax_classic", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs craftax.*worldmodels_jax\[craftax\]"):
        make_craftax()
