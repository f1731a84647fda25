"""Which pixels a frame and actions determine, and dreams of uniform tokens."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from token_toys import delta_toy, run_part

from experiments import disentangle, token_experiments, token_training
from worldmodels_jax.envs.scroll_grid import ScrollGridState, make_scroll_grid, render
from worldmodels_jax.models import delta_iris, iris_imagination
from worldmodels_jax.models.delta_iris import make_delta_iris

KEY = jax.random.key(0)
SPEC = make_scroll_grid().spec


@pytest.fixture(scope="module")
def variables() -> Any:
    return jax.jit(make_delta_iris(delta_toy(), SPEC).init)(KEY)


# Which pixels a frame and an action determine


def grid(walls: dict[tuple[int, int], int], mobs: list[tuple[int, int]]) -> ScrollGridState:
    tiles = np.zeros((24, 24), int)
    for place, kind in walls.items():
        tiles[place] = kind
    return ScrollGridState(tiles, np.array([10, 10]), np.array(mobs), np.array(0))


def letters(region: np.ndarray) -> list[str]:
    assert (region == region[::2, ::2].repeat(2, 0).repeat(2, 1)).all()
    return ["".join(".mr"[index] for index in row) for row in region[::2, ::2]]


def test_regions_by_hand() -> None:
    # The agent steps to the right; a mob is two tiles above where it was, all tiles are free.
    belief = disentangle.follow(disentangle.belief_of(grid({}, [(8, 10)])), 4)
    assert letters(disentangle.regions(belief)) == [
        "mmmmmmmr",
        "...m..mr",
        "..mmm.mr",
        "...m..mr",
        "..mm..mr",
        "...m..mr",
        "......mr",
        "mmmmmmmr",
    ]


def test_regions_where_the_way_is_blocked() -> None:
    # A wall to the right and two at the border of the view; nobody can be there.
    state = grid({(10, 11): 1, (6, 8): 2, (13, 13): 1}, [(2, 2)])
    belief = disentangle.follow(disentangle.belief_of(state), 4)
    assert letters(disentangle.regions(belief)) == [
        "mm.mmmmm",
        "m......m",
        "m......m",
        "m...m..m",
        "m..m...m",
        "m...m..m",
        "m......m",
        "mmmmmmm.",
    ]


def test_what_lies_beyond_the_view_may_block_the_way() -> None:
    belief = disentangle.belief_of(grid({}, [(10, 10)]))
    for _ in range(3):
        belief = disentangle.follow(belief, 4)
    assert "." in "".join(letters(disentangle.regions(belief)))
    belief = disentangle.follow(disentangle.follow(belief, 4), 0)
    assert belief.agent is None
    assert letters(disentangle.regions(belief)) == ["rrrrrrrr"] * 8


def alternatives(state: ScrollGridState, count: int, rng: np.random.Generator) -> ScrollGridState:
    """Worlds that look alike: other tiles and mobs wherever the frame shows none."""
    around = np.arange(8) - 4
    view = np.zeros((24, 24), bool)
    view[np.ix_(*((state.agent[:, None] + around) % 24))] = True
    near = view | np.any([np.roll(view, move, (0, 1)) for move in disentangle.MOVES], axis=0)
    hidden = [m for m in state.mobs if view[tuple(m)]]
    tiles, mobs = [], []
    for _ in range(count):
        world = np.where(view, state.tiles, rng.integers(0, 8, (24, 24)))
        for place in (*hidden, state.agent):
            world[tuple(place)] = rng.choice([0, 3, 4, 5, 6, 7])
        places = np.argwhere(near & ~view & ~np.isin(world, disentangle.BLOCKING))
        free = np.concatenate([places, [state.agent] * 8])
        rest = free[rng.integers(len(free), size=12 - len(hidden))]
        tiles.append(world)
        mobs.append(np.concatenate([np.reshape(hidden, (-1, 2)), rest]).astype(int))
    agent = np.broadcast_to(state.agent, (count, 2))
    return ScrollGridState(np.stack(tiles), agent, np.stack(mobs), np.zeros(count, int))


def test_regions_are_what_differs_between_worlds_that_look_alike() -> None:
    env, rng, count = make_scroll_grid(), np.random.default_rng(0), 400
    records, states = token_training.experience(env, KEY, 4)
    seen = np.asarray(records.observation[:, 20])
    starts = jax.tree.map(lambda x: np.asarray(x[:, 20]), states)
    look = jax.jit(jax.vmap(render))
    actions = rng.integers(1, 5, (4, 3))
    predicted = disentangle.dreamed_regions(starts, actions)

    @jax.jit
    def step(worlds: ScrollGridState, action: int, key: jax.Array) -> Any:
        keys = jax.random.split(key, count)
        return jax.vmap(env.step, (0, None, 0))(worlds, action, keys)

    for b in range(4):
        start = jax.tree.map(lambda x, b=b: x[b], starts)
        worlds = jax.tree.map(jnp.asarray, alternatives(start, count, rng))
        frames = np.asarray(look(worlds))
        assert (frames == seen[b]).all()
        for t in range(3):
            worlds, time_step = step(worlds, actions[b, t], jax.random.key(3 * b + t))
            frames = np.asarray(time_step.observation)
            varies = (frames != frames[0]).any((0, -1))
            assert not varies[predicted[b, t] == 0].any()
            if t == 0:
                assert varies[predicted[b, t] > 0].all()


def test_differences_are_means_over_the_pixels_of_a_region() -> None:
    a, b = np.zeros((2, 2, 2, 2, 3), np.uint8), np.zeros((2, 2, 2, 2, 3), np.uint8)
    b[0, 0, 0, 0] = 255  # one pixel of dream 0 at step 0
    region = np.full((2, 2, 2, 2), 0)
    region[:, 0, 0] = 2  # at step 0 the upper half of both
    got = disentangle.mean_difference(a, b, region)
    assert got == {"determined": [0.0, 0.0], "mobs": [None, None], "revealed": [0.25, None]}


def test_what_is_drawn_reveals_most_where_the_agent_is_known(tmp_path: Path) -> None:
    length = disentangle.CONTEXT + disentangle.HORIZON
    region = np.zeros((3, disentangle.HORIZON, 16, 16), int)
    region[0, -1] = 2  # all of a frame: nobody knows where the agent is
    region[1, :, 0] = 2
    region[2, 0, 0, 0] = 2
    frames = np.zeros((3, length, 16, 16, 3), np.uint8)
    frames += 100 * np.arange(3, dtype=np.uint8)[:, None, None, None, None]
    no = np.zeros((3, length))
    windows = token_training.Record(frames, no, no, no, no, no)
    dream = frames[:, disentangle.CONTEXT :]
    disentangle.draw(tmp_path, windows, dream, dream + np.uint8(7), region)
    with Image.open(tmp_path / "disentangle.png") as sheet:
        column = [sheet.getpixel((0, 84 * row)) for row in range(5)]
    assert column == [(100,) * 3, (100,) * 3, (107,) * 3, (7,) * 3, (254,) * 3]


# Dreams of uniform tokens


def biased(variables: Any) -> Any:
    """The transformer predicts the last code whatever it sees."""
    variables = jax.tree.map(lambda x: x, variables)
    variables["params"]["dynamics"]["token_head"]["out"]["bias"] = 9.0 * jnp.arange(6.0)
    return variables


def test_uniform_tokens_are_uniform(variables: Any) -> None:
    config, count = delta_toy(), 6000
    m = delta_iris._networks(config, SPEC, None, jnp.float32)
    params = biased(variables)["params"]["dynamics"]
    cache = iris_imagination.new_cache(m.dynamics, count, 8)

    def draw(uniform: bool) -> np.ndarray:
        step = jax.jit(
            lambda action: iris_imagination.imagine_step(
                m.dynamics, config.world_model, params, cache, jnp.zeros(count, jnp.int32),
                action, KEY, uniform,
            )
        )(jnp.zeros((count, 8)))  # fmt: skip
        return np.asarray(step.tokens)

    assert (draw(False) == 5).mean() > 0.9
    tokens = draw(True)
    for k in range(4):
        share = np.bincount(tokens[:, k], minlength=6) / count
        np.testing.assert_allclose(share, 1 / 6, atol=5 * np.sqrt(5 / 36 / count))
    # Not the same one four times.
    assert (tokens[:, 0] == tokens[:, 1]).mean() == pytest.approx(1 / 6, abs=0.03)


def test_dreams_of_uniform_tokens_owe_nothing_to_the_transformer(variables: Any) -> None:
    context = token_experiments.random_records(SPEC, (8, 1))

    def dream(uniform: bool) -> list[np.ndarray]:
        model = make_delta_iris(delta_toy(), SPEC, uniform_tokens=uniform)

        @jax.jit
        def run(variables: Any) -> jax.Array:
            carry, _ = model.observe(variables, context, KEY, 1)
            return model.imagine(variables, carry, context.action[:, -1], KEY)[1].features

        return [np.asarray(run(v)) for v in (variables, biased(variables))]

    plain, other = dream(False)
    assert np.abs(plain - other).max() > 0
    plain, other = dream(True)
    np.testing.assert_array_equal(plain, other)


# The program


def test_disentangle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_experiments.cost, "matmul_ceiling", lambda: 1.0)
    monkeypatch.setattr(token_training, "delta_iris_tiny16", delta_toy)
    monkeypatch.setattr(disentangle, "HORIZON", 2)
    stored = run_part("disentangle", tmp_path)
    (row,) = stored["rows"]
    assert row["dreams"] == 2 * 10
    shares = np.array(list(row["share of pixels"].values()))
    np.testing.assert_allclose(shares.sum(0), [1.0, 1.0])
    first = row["uniform against predicted"]
    assert (
        stored["means of the first step"]["uniform against predicted"]["mobs"] == first["mobs"][0]
    )
    assert row["uniform against real"]["determined"][0] > 0
    assert len(row["reconstruction against real"]["mobs"]) == 1
    with Image.open(tmp_path / "out/dream_uniform.gif") as gif:
        assert gif.n_frames >= 3
    with Image.open(tmp_path / "out/disentangle.png") as sheet:
        assert sheet.size == (2 * 84 - 4, 5 * 84 - 4)
    assert (tmp_path / "out/dream_predicted.gif").exists()
