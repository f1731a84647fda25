"""What Delta-tokens decide: dreams with tokens from the transformer beside dreams with any tokens.

Delta-IRIS's section 3.4, with numbers: in ScrollGrid it is known of every pixel whether the start
frame and the actions determine it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.token_training import (
    Budget,
    configuration,
    experience,
    make_reconstruct,
    train_tokenizer,
    train_transformer,
)
from worldmodels_jax.envs.scroll_grid import (
    BLOCKING,
    MOVES,
    SIDE,
    TILE,
    VIEW,
    ScrollGridState,
    make_scroll_grid,
)
from worldmodels_jax.evaluation.open_loop import open_loop
from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.types import PyTree, Record
from worldmodels_jax.viz.dream import dream_panels, write_contact_sheet, write_gif

CONTEXT, HORIZON = 4, 8
REGIONS = ("determined", "mobs", "revealed")
_DETERMINED, _MOBS, _REVEALED = range(3)
_UNSEEN, _HIDDEN = -1, -2  # beside the types of tile: never in view, and under a mob or the agent


class Belief(NamedTuple):
    """What follows from a frame and the actions since."""

    tiles: np.ndarray  # (24, 24) int, types of tile where they are known
    maybe_mob: np.ndarray  # (24, 24) bool
    agent: np.ndarray | None  # (2,) int; None once it may be at either of two places


def belief_of(state: ScrollGridState) -> Belief:
    """What the frame of a state shows: no tile that is out of view or under somebody.

    Args:
      state: of one environment, NumPy arrays.
    """
    agent, mobs = np.asarray(state.agent), np.asarray(state.mobs)
    around = np.arange(VIEW) - VIEW // 2
    view = np.ix_(*((agent[:, None] + around) % SIDE))
    tiles = np.full((SIDE, SIDE), _UNSEEN)
    tiles[view] = np.asarray(state.tiles)[view]
    for place in (*mobs, agent):
        if tiles[tuple(place)] != _UNSEEN:
            tiles[tuple(place)] = _HIDDEN
    return Belief(tiles, tiles < 0, agent)


def follow(belief: Belief, action: int) -> Belief:
    """What still follows from the frame one action later.

    Mobs may have gone to any free neighbouring tile, and come from where nobody could see them. A
    rewarded tile becomes another when stepped on: it stays one that is known and free.
    """
    tiles, agent = belief.tiles, belief.agent
    blocked = np.isin(tiles, BLOCKING)
    if agent is not None:
        target = tuple((agent + MOVES[action]) % SIDE)
        if tiles[target] == _UNSEEN:
            agent = None
        elif not blocked[target]:
            agent = np.array(target)
    came = [np.roll(belief.maybe_mob, move, (0, 1)) for move in MOVES]
    return Belief(tiles, np.any(came, axis=0) & ~blocked, agent)


def regions(belief: Belief) -> np.ndarray:
    """Of every pixel of the frame, an index of ``REGIONS``: (16, 16) int.

    * determined: all that follows from the start frame and the actions;
    * mobs: in view at the start, but a mob may have come, or somebody hid the tile;
    * revealed: out of view at the start; where the agent's own place is unknown, everything.

    At the first step each is exactly that. Later a mob that must have left counts as one that may
    have stayed: what is called determined always is.
    """
    if belief.agent is None:
        return np.full((VIEW * TILE, VIEW * TILE), _REVEALED)
    around = np.arange(VIEW) - VIEW // 2
    view = np.ix_(*((belief.agent[:, None] + around) % SIDE))
    tiles, maybe_mob = belief.tiles[view], belief.maybe_mob[view]
    region = np.where(maybe_mob, _MOBS, _DETERMINED)
    region = np.where(tiles == _UNSEEN, _REVEALED, region)
    region[VIEW // 2, VIEW // 2] = _DETERMINED  # the agent, over all else
    return region.repeat(TILE, 0).repeat(TILE, 1)


def dreamed_regions(states: PyTree, actions: np.ndarray) -> np.ndarray:
    """Regions of the frames that follow a start.

    Args:
      states: of the environment at the starts, ``(B, ...)``.
      actions: ``(B, L)``.

    Returns:
      ``(B, L, 16, 16)`` int.
    """

    def one(state: ScrollGridState, row: np.ndarray) -> Iterator[np.ndarray]:
        belief = belief_of(state)
        for action in row:
            belief = follow(belief, int(action))
            yield regions(belief)

    single = (jax.tree.map(lambda x, b=b: np.asarray(x[b]), states) for b in range(len(actions)))
    return np.stack([list(one(*pair)) for pair in zip(single, actions, strict=True)])


def mean_difference(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> dict[str, list[Any]]:
    """Mean absolute difference of pixels in [0, 1], by region and step.

    Args:
      a: ``(B, L, 16, 16, C)`` uint8.
      b: the same.
      region: ``(B, L, 16, 16)``.

    Returns:
      A list of L numbers for each region; None where it has no pixel.
    """
    difference = np.abs(a.astype(np.int16) - b).mean(-1) / 255
    result: dict[str, list[Any]] = {}
    for index, name in enumerate(REGIONS):
        inside = region == index
        rows = [difference[:, t][inside[:, t]] for t in range(region.shape[1])]
        result[name] = [float(row.mean()) if row.size else None for row in rows]
    return result


def measure_seed(seed: int, budget: Budget, out: Path | None) -> dict[str, Any]:
    """Train, dream twice from the same starts with the same actions, measure and draw.

    Args:
      seed: of experience, networks and dreams.
      budget: how much to train.
      out: directory of ``dream_predicted.gif``, ``dream_uniform.gif`` and ``disentangle.png``; None
        draws nothing.

    Returns:
      Mean differences by region and imagined step: of predicted and uniform dreams from one
      another and from what happened, of two predicted dreams of different keys, and of what the
      tokenizer makes of the first frame when it is shown, which bounds what a dream can reach.
    """
    env, config = make_scroll_grid(), configuration("delta", 4)
    keys = jax.random.split(jax.random.key(seed), 6)
    records, _ = experience(env, keys[0], budget.episodes)
    variables, _ = train_tokenizer(config, env.spec, records, keys[1], budget)
    variables, trained = train_transformer(config, env.spec, variables, records, keys[2], budget)
    windows, starts = _windows(*experience(env, keys[3], budget.held_out))
    region = dreamed_regions(starts, np.asarray(windows.action[:, CONTEXT - 1 : -1]))
    real = np.asarray(windows.observation[:, CONTEXT:])

    def dreamer(uniform: bool) -> Callable[[jax.Array], np.ndarray]:
        model = make_delta_iris(config, env.spec, uniform_tokens=uniform)
        run = jax.jit(lambda v, w, k: open_loop(model, v, w, k, context=CONTEXT))
        return lambda key: np.asarray(run(variables, windows, key))[:, CONTEXT:]

    predict = dreamer(uniform=False)
    predicted, again = predict(keys[4]), predict(keys[5])
    uniform = dreamer(uniform=True)(keys[4])
    shown = windows.observation[:, CONTEXT - 1], windows.action[:, CONTEXT - 1]
    encoded = make_reconstruct(config, env.spec)(variables, real[:, 0], *shown)
    encoded = np.rint(np.asarray(encoded)[:, None] * 255).astype(np.uint8)
    if out is not None:
        draw(out, windows, predicted, uniform, region)
    row = {
        "uniform against predicted": mean_difference(uniform, predicted, region),
        "predicted against predicted again": mean_difference(again, predicted, region),
        "uniform against real": mean_difference(uniform, real, region),
        "predicted against real": mean_difference(predicted, real, region),
        "reconstruction against real": mean_difference(encoded, real[:, :1], region[:, :1]),
        "share of pixels": {
            name: (region == index).mean((0, 2, 3)).tolist() for index, name in enumerate(REGIONS)
        },
    }
    for name, values in row.items():
        print(f"seed {seed}, step 1, {name}: { {k: v[0] for k, v in values.items()} }", flush=True)
    return {**row, "dreams": len(real), "token_loss": trained["token_loss"]}


def conclude(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, of the first imagined step, where the regions are exact."""
    names = [name for name, values in rows[0].items() if isinstance(values, dict)]
    return {
        "means of the first step": {
            name: {part: float(np.mean([row[name][part][0] for row in rows])) for part in REGIONS}
            for name in names
        }
    }


def _windows(records: Record, states: PyTree) -> tuple[Record, PyTree]:
    """Stretches ``(B, C + L, ...)`` that do not overlap, and the states at their last seen."""
    episodes, total = records.reward.shape
    length = CONTEXT + HORIZON
    count = total // length

    def cut(x: jax.Array) -> jax.Array:
        return x[:, : count * length].reshape(episodes * count, length, *x.shape[2:])

    return jax.tree.map(cut, records), jax.tree.map(lambda x: cut(x)[:, CONTEXT - 1], states)


def draw(
    out: Path, windows: Record, predicted: np.ndarray, uniform: np.ndarray, region: np.ndarray
) -> None:
    """The dreams of the stretch that reveals most, as two GIFs and a map.

    It is chosen by the actions alone, among those that leave the agent's place known throughout.

    The map's rows: what happened, the predicted and the uniform dream, their difference, and the
    regions (determined black, mobs grey, revealed white); its columns: the imagined steps.
    """
    known = (region != _REVEALED).any((2, 3)).all(1)
    one = int(((region == _REVEALED).sum((1, 2, 3)) * known).argmax())
    real = np.asarray(windows.observation[one])
    for name, dream in (("predicted", predicted), ("uniform", uniform)):
        frames = np.concatenate([real[:CONTEXT], dream[one]])
        panels = dream_panels(real, frames, context=CONTEXT)
        write_gif(out / f"dream_{name}.gif", panels, fps=2)
    difference = np.abs(predicted[one].astype(np.int16) - uniform[one]).astype(np.uint8)
    shades = np.repeat((region[one] * 127).astype(np.uint8)[..., None], 3, -1)
    rows = [real[CONTEXT:], predicted[one], uniform[one], difference, shades]
    cells = np.concatenate(rows).repeat(5, 1).repeat(5, 2)
    write_contact_sheet(out / "disentangle.png", cells, columns=HORIZON)
