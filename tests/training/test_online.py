"""The compiled loop: order of acting, recording and learning, reproducibility, seeds."""

import dataclasses
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from worldmodels_jax import envs
from worldmodels_jax.agents.acting import Actor, Memory, make_actor
from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.training.config import Config, EnvConfig, TrainingConfig
from worldmodels_jax.training.learner import Learner, TrainState, Update, Updates
from worldmodels_jax.training.online import SEED_AXES, Loop, make_halves, make_loop, over_seeds
from worldmodels_jax.types import Environment, EnvSpec, Record, TimeStep

ROWS, COLUMNS = 10, 5  # of Catch


def test_the_same_key_gives_the_same_bits(
    loop: Loop, history: Any, assert_identical: Callable
) -> None:
    state = loop.init(jax.random.key(0))
    for chunk in range(3):
        state, metrics = loop.run(state)
        assert_identical(metrics, history.metrics[chunk])
    assert_identical(state, history.states[3])


def test_another_key_gives_another_run(loop: Loop, history: Any, to_numpy: Callable) -> None:
    state = to_numpy(loop.run(loop.init(jax.random.key(1)))[0])
    other = history.states[1]
    assert (state.replay.storage.observation != other.replay.storage.observation).any()
    assert (state.replay.storage.action != other.replay.storage.action).any()
    for mine, its in zip(
        jax.tree.leaves(state.train.world_model.variables["params"]),
        jax.tree.leaves(other.train.world_model.variables["params"]),
        strict=True,
    ):
        # Matrices start at random, but for zero output layers; vectors start as constants, and
        # after one step of Adam some of them are equal by chance.
        assert mine.ndim < 2 or (mine != its).any() or not mine.any()


def test_a_chunk_talks_to_the_host_neither_implicitly_nor_by_callback(
    loop: Loop, history: Any, to_numpy: Callable, assert_identical: Callable
) -> None:
    state = loop.init(jax.random.key(0))
    assert "callback" not in str(loop.run.trace(state).jaxpr)
    with jax.transfer_guard("disallow"):
        state, _ = loop.run(state)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            loop.run(state._replace(iteration=to_numpy(state.iteration)))
    assert_identical(state, history.states[1])


def test_chunks_are_compiled_once(history: Any) -> None:
    assert len(history.metrics) == 4
    (program,) = history.compiled
    assert "run" in program


def test_seeds_at_once_are_the_seeds_one_by_one(
    pure_loop: Loop, loop: Loop, history: Any, to_numpy: Callable
) -> None:
    """Over a chunk whose last iteration updates both; its actions are random, so none can flip."""
    seeds = over_seeds(pure_loop)
    keys = jax.vmap(jax.random.key)(np.arange(2))
    state, metrics = jax.jit(seeds.run, donate_argnums=0)(jax.jit(seeds.init)(keys))
    state, metrics = to_numpy(state), to_numpy(metrics)
    assert state.iteration.shape == state.replay.written.shape == ()

    other = loop.run(loop.init(jax.random.key(1)))
    alone = [(history.states[1], history.metrics[0]), to_numpy(other)]
    for seed, (single, single_metrics) in enumerate(alone):
        assert (single_metrics["world_model/updates"].sum(), single.iteration) == (1, 20)
        mine = jax.tree.map(
            lambda axis, part, seed=seed: (
                part if axis is None else jax.tree.map(operator.itemgetter(seed), part)
            ),
            SEED_AXES,
            state,
            is_leaf=lambda x: x is None or isinstance(x, int),
        )
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(single), strict=True
        ):
            check = (
                np.testing.assert_array_equal
                if x.dtype.kind in "buiU"
                else lambda a, b, err_msg: np.testing.assert_allclose(
                    a, b, rtol=1e-3, atol=1e-5, err_msg=err_msg
                )
            )
            check(x, y, err_msg=jax.tree_util.keystr(path))
        assert metrics.keys() == single_metrics.keys()
        for name, values in single_metrics.items():
            np.testing.assert_allclose(
                metrics[name][seed], values, rtol=1e-3, atol=1e-5, err_msg=name
            )


def _catch(ball: int, paddle: int, row: int) -> np.ndarray:
    """Catch as a picture: the ball, and the paddle on the last row."""
    image = np.zeros((ROWS, COLUMNS, 1), np.uint8)
    image[row, ball] = image[ROWS - 1, paddle] = 255
    return image


def test_records_are_aligned_on_arrival(history: Any) -> None:
    """Plays Catch along with the replay: picture, reward and flags of every record follow."""
    replay = history.states[-1].replay
    assert replay.written == 80
    for i in range(2):
        record = jax.tree.map(lambda x, i=i: x[i, :80], replay.storage)
        caught = []
        ball = paddle = row = 0
        last = True  # before the first record there is nothing
        for t in range(80):
            if last:
                (ball,) = np.flatnonzero(record.observation[t, 0, :, 0])
                paddle, row, reward = COLUMNS // 2, 0, 0.0
            else:
                paddle = min(max(paddle + record.action[t - 1] - 1, 0), COLUMNS - 1)
                row += 1
                reward = 0.0 if row < ROWS - 1 else 1.0 if ball == paddle else -1.0
            assert record.is_first[t] == last
            last = row == ROWS - 1
            np.testing.assert_array_equal(record.observation[t], _catch(ball, paddle, row))
            assert record.reward[t] == reward
            assert record.terminated[t] == last
            assert not record.truncated[t]
            caught += [reward] * last
        assert len(caught) == 8
    assert set(np.unique(replay.storage.action[:, :80])) == {0, 1, 2}


def test_episode_metrics_are_those_of_the_replay(history: Any) -> None:
    """Iteration i acts on record i and arrives at record i + 1; the last arrival is not written."""
    final = history.states[-1]
    records = jax.tree.map(lambda x: x[:, :80], final.replay.storage)
    steps = {
        name: np.concatenate(
            [getattr(records, name)[:, 1:], getattr(final.time_step, name)[:, None]], axis=1
        )
        for name in ("reward", "terminated", "truncated", "is_first")
    }
    ends = steps["terminated"] | steps["truncated"]
    returns, lengths = np.zeros((2, 80)), np.zeros((2, 80))
    for i in range(2):
        total = length = 0.0
        for t in range(80):
            fresh = steps["is_first"][i, t]
            total = 0.0 if fresh else total + steps["reward"][i, t]
            length = 0.0 if fresh else length + 1
            returns[i, t], lengths[i, t] = ends[i, t] * total, ends[i, t] * length
    found = {
        name: np.concatenate([chunk[f"episode/{name}"] for chunk in history.metrics])
        for name in ("count", "return_sum", "length_sum")
    }
    np.testing.assert_array_equal(found["count"], ends.sum(0))
    np.testing.assert_array_equal(found["return_sum"], returns.sum(0))
    np.testing.assert_array_equal(found["length_sum"], lengths.sum(0))
    assert found["count"].sum() == 16
    np.testing.assert_array_equal(lengths[ends], 9)


def test_the_first_update_comes_with_the_last_record_of_the_warm_up(history: Any) -> None:
    """40 steps of 2 environments: iterations 0 to 18 only act; then an update in each."""
    counts = np.concatenate([chunk["world_model/updates"] for chunk in history.metrics])
    np.testing.assert_array_equal(counts, [0] * 19 + [1] * 61)
    losses = np.concatenate([chunk["world_model/loss"] for chunk in history.metrics])
    np.testing.assert_array_equal(losses[:19], 0)
    assert (losses[19:] > 0).all()


# What follows replaces world model, agent and environment by counters.

SPEC = EnvSpec("counter", (1,), "float32", 2, True, 100)


def _counter_env() -> Environment:
    """Episodes of 3 steps whose observation is the step within the episode."""

    def at(state: jax.Array) -> tuple[jax.Array, TimeStep]:
        false = jnp.zeros((), bool)
        step = TimeStep(state[None] * 1.0, state * 1.0, state == 3, false, state == 0)
        return state, step

    return Environment(
        SPEC,
        reset=lambda key: at(jnp.zeros((), jnp.int32)),
        step=lambda state, action, key: at(state + 1),
    )


def _counting_updates(config: TrainingConfig) -> Updates:
    """Updates that count themselves and report the count and what they were given."""

    def update(name: str) -> Callable:
        def step(
            train: TrainState, seen: jax.Array, key: jax.Array
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            count = getattr(train, name).variables + 1
            metrics = {"count": count * 1.0, "records": seen, "noise": jax.random.uniform(key)}
            return train._replace(**{name: Learner(count, ())}), metrics

        return step

    none = Learner(jnp.zeros((), jnp.int32), ())
    return Updates(
        init=lambda key: TrainState(none, none),
        parts={
            "world_model": Update(
                lambda replay, draws, key: (draws, replay.written),
                update("world_model"),
                (1, 1),
                config.world_model_ratio,
                config.world_model_start,
                config.world_model_first,
            ),
            "agent": Update(
                lambda replay, draws, key: (draws, 100 + replay.written),
                update("agent"),
                (1, 1),
                config.agent_ratio,
            ),
        },
    )


def _random_then_policy() -> Actor:
    """Random actions are 0, the policy's are 1."""
    actor = make_actor(None, Agent(*[None] * 5), SPEC, 2)

    def always(memory: Memory, action: int) -> tuple[Memory, jax.Array]:
        actions = jnp.full(memory.records.reward.shape[0], action)
        return actor.record_action(memory, actions), actions

    return actor._replace(
        act=lambda model, agent, memory, key: always(memory, 1),
        act_random=lambda memory, key: always(memory, 0),
    )


def _counting_loop(
    num_envs: int, chunk: int, start: int = 0, updates: Updates | None = None, **training: Any
) -> tuple:
    """Final state and metrics of a loop of counters, begun at iteration ``start``."""
    config = Config(
        env=EnvConfig(num_envs=num_envs),
        training=dataclasses.replace(
            TrainingConfig(), chunk=chunk, replay_capacity=num_envs * chunk, **training
        ),
    )
    updates = updates or _counting_updates(config.training)
    halves = make_halves(config, SPEC, updates, _random_then_policy())
    env = envs.batch(envs.auto_reset(_counter_env()), num_envs)
    loop = make_loop(config, env, halves)

    @jax.jit
    def run(key: jax.Array) -> tuple:
        state = loop.init(key)
        return loop.run(state._replace(iteration=state.iteration + start))

    state, metrics = run(jax.random.key(0))
    return jax.tree.map(np.asarray, (state._replace(key=()), metrics))


@pytest.mark.parametrize(
    ("ratio", "num_envs", "warmup"),
    [
        (0.5, 1, 5),
        (0.5, 2, 7),  # not a multiple of E: iterations are rounded up
        (0.25, 4, 8),  # one in each iteration
        (0.25, 3, 9),
        (1.5, 1, 1),
        (1.5, 2, 0),
        (1 / 3, 2, 6),
        (0.0, 2, 6),
    ],
)
def test_updates_follow_the_ratio_exactly(ratio: float, num_envs: int, warmup: int) -> None:
    """After k iterations floor(k r) updates, but none of those that fell before the warm-up."""
    K = 30
    state, metrics = _counting_loop(
        num_envs, K, warmup=warmup, world_model_ratio=ratio, agent_ratio=0.5
    )
    first = max(math.ceil(warmup / num_envs), 1)
    for name, per_step in (("world_model", ratio), ("agent", 0.5)):
        r = Fraction(per_step).limit_denominator(100) * num_envs
        done = [max(0, math.floor(k * r) - math.floor((first - 1) * r)) for k in range(K + 1)]
        np.testing.assert_array_equal(metrics[f"{name}/updates"], np.diff(done))
        assert getattr(state.train, name).variables == done[-1]
    if ratio == 0:
        assert "world_model/count" not in metrics


def test_the_ratio_holds_late_in_a_long_cycle() -> None:
    """9999/10000 of 63 updates; 32 bits do not hold 10,000 * 629,937."""
    _, metrics = _counting_loop(
        63, 40, start=9_980, warmup=0, world_model_ratio=0.9999, agent_ratio=0.0
    )
    r = Fraction(9999, 10_000) * 63
    done = [math.floor(k * r) for k in range(9_980, 10_021)]
    np.testing.assert_array_equal(metrics["world_model/updates"], np.diff(done))


def test_updates_of_an_epoch_are_made_at_its_end_and_begin_when_they_are_told_to() -> None:
    """Epochs of 4 steps of 2 environments; the model's updates from step 12 on, with 3 more."""
    _, metrics = _counting_loop(
        2,
        12,
        warmup=2,
        epoch=8,
        world_model_ratio=0.25,
        world_model_start=12,
        world_model_first=3,
        agent_ratio=0.5,
    )
    np.testing.assert_array_equal(metrics["agent/updates"], [0, 0, 0, 4] * 3)
    np.testing.assert_array_equal(metrics["world_model/updates"], [0] * 7 + [2 + 3] + [0] * 3 + [2])
    # The mean of numbers 1 to 5, and of 6 and 7.
    np.testing.assert_array_equal(metrics["world_model/count"][[7, 11]], [3, 6.5])


def test_a_share_of_actions_is_random_in_every_environment() -> None:
    state, _ = _counting_loop(40, 50, warmup=1, exploration=0.2)
    explored = np.asarray(state.replay.storage.action) == 0
    explored = explored[:, 1:]  # the first is random
    assert scipy.stats.binomtest(int(explored.sum()), explored.size, 0.2).pvalue > 1e-4
    assert (explored.any(1) & ~explored.all(1)).all()


def test_metrics_are_means_over_the_updates_of_an_iteration() -> None:
    """Ratio 1.5: update 1, then updates 2 and 3, then 4, ...; skipped updates report nothing."""
    _, metrics = _counting_loop(1, 6, warmup=1, world_model_ratio=1.5, agent_ratio=0.5)
    np.testing.assert_array_equal(metrics["world_model/updates"], [1, 2, 1, 2, 1, 2])
    np.testing.assert_array_equal(metrics["world_model/count"], [1, 2.5, 4, 5.5, 7, 8.5])
    np.testing.assert_array_equal(metrics["world_model/records"], [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(metrics["agent/updates"], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(metrics["agent/count"], [0, 1, 0, 2, 0, 3])
    np.testing.assert_array_equal(metrics["agent/records"], [0, 102, 0, 104, 0, 106])
    assert np.unique(metrics["world_model/noise"]).size == 6  # every update has a key of its own


def test_joint_updates_take_the_place_of_both() -> None:
    def joint(
        train: TrainState, seen: jax.Array, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        train = TrainState(*(Learner(learner.variables + 1, ()) for learner in train))
        return train, {"world_model/records": seen, "agent/noise": jax.random.uniform(key)}

    updates = _counting_updates(TrainingConfig())
    model = updates.parts["world_model"]._replace(step=joint, ratio=1.5, joint=True)
    state, metrics = _counting_loop(
        1, 6, updates=updates._replace(parts={"world_model": model}), warmup=1
    )
    for name in ("world_model", "agent"):
        np.testing.assert_array_equal(metrics[f"{name}/updates"], [1, 2, 1, 2, 1, 2])
        assert getattr(state.train, name).variables == 9
    np.testing.assert_array_equal(metrics["world_model/records"], [1, 2, 3, 4, 5, 6])
    assert np.unique(metrics["agent/noise"]).size == 6


def test_actions_are_random_until_the_warm_up_is_over() -> None:
    state, _ = _counting_loop(2, 9, warmup=8, world_model_ratio=0.5, agent_ratio=0.5)
    np.testing.assert_array_equal(state.replay.storage.action, [[0] * 4 + [1] * 5] * 2)


def test_records_of_the_counter_env_are_whole_episodes() -> None:
    """Four records an episode: 0 1 2 3, then a reset; what comes after the chunk is kept."""
    state, metrics = _counting_loop(2, 9, warmup=8)
    record: Record = jax.tree.map(lambda x: x[0], state.replay.storage)
    np.testing.assert_array_equal(record.observation[:, 0], [0, 1, 2, 3, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(record.reward, [0, 1, 2, 3, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(record.terminated, [0, 0, 0, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(record.is_first, [1, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(metrics["episode/count"], [0, 0, 2, 0, 0, 0, 2, 0, 0])
    np.testing.assert_array_equal(metrics["episode/return_sum"], [0, 0, 12, 0, 0, 0, 12, 0, 0])
    np.testing.assert_array_equal(metrics["episode/length_sum"], [0, 0, 6, 0, 0, 0, 6, 0, 0])
    np.testing.assert_array_equal(state.time_step.observation, [[1], [1]])
    np.testing.assert_array_equal(state.episode_return, [1, 1])
    np.testing.assert_array_equal(state.episode_length, [1, 1])
