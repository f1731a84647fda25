"""Whole episodes: a perfect and a random player of Catch, and a host environment with a script."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax import envs
from worldmodels_jax.agents.acting import Actor, Memory, make_actor, newest
from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.evaluation.episodes import (
    record_host_steps,
    record_steps,
    run_episodes,
    run_host_episodes,
)
from worldmodels_jax.types import Environment, EnvSpec, TimeStep


def make_memory(spec: EnvSpec) -> Actor:
    """An actor's memory of one frame, without a model."""

    return make_actor(None, Agent(*[None] * 5), spec, 1)


def catch_ball(memory: Memory, key: jax.Array) -> tuple[Memory, jax.Array]:
    """Move the paddle (bottom row) under the ball, as read off the pixels."""
    del key
    frame = newest(memory).observation[..., 0]
    ball = frame[:, :-1].max(1).argmax(-1)
    return memory, jnp.sign(ball - frame[:, -1].argmax(-1)).astype(jnp.int32) + 1


def test_a_perfect_player_catches_every_ball() -> None:
    env = envs.make("Catch-bsuite")
    memory = make_memory(env.spec)
    returns, lengths, outcomes = jax.jit(
        lambda k: run_episodes(env, memory, catch_ball, k, episodes=30)
    )(jax.random.key(0))
    assert outcomes == {}
    np.testing.assert_array_equal(returns, np.ones(30))
    np.testing.assert_array_equal(lengths, np.full(30, 9))


def test_a_random_player_misses_most() -> None:
    env = envs.make("Catch-bsuite")
    memory = make_memory(env.spec)
    returns, lengths, _ = jax.jit(
        lambda k: run_episodes(env, memory, memory.act_random, k, episodes=500)
    )(jax.random.key(0))
    assert set(np.unique(returns)) == {-1.0, 1.0}
    assert -0.75 < returns.mean() < -0.45
    np.testing.assert_array_equal(lengths, np.full(500, 9))


class Countdown(NamedTuple):
    """Steps to go and steps gone."""

    left: jax.Array
    gone: jax.Array


def countdown() -> Environment:
    """Episodes of 1 to 9 steps; the outcomes are the steps gone and the steps to go."""

    def show(state: Countdown) -> tuple[Countdown, TimeStep]:
        false = jnp.zeros((), bool)
        flags = {"truncated": false, "is_first": state.gone == 0, "terminated": state.left == 0}
        return state, TimeStep(jnp.zeros(2), jnp.float32(0.0), **flags)

    def reset(key: jax.Array) -> tuple[Countdown, TimeStep]:
        return show(Countdown(jax.random.randint(key, (), 1, 10), jnp.int32(0)))

    def step(state: Countdown, action: jax.Array, key: jax.Array) -> tuple[Countdown, TimeStep]:
        return show(Countdown(state.left - 1, state.gone + 1))

    spec = EnvSpec("countdown", (2,), "float32", 2, True, 9)
    return Environment(spec, reset, step, lambda state: state._asdict())


def test_outcomes_are_those_of_the_end_of_each_first_episode() -> None:
    env = countdown()
    memory = make_memory(env.spec)
    _, lengths, outcomes = jax.jit(
        lambda k: run_episodes(env, memory, memory.act_random, k, episodes=20)
    )(jax.random.key(0))
    # While the longest episode lasts, the short ones are long followed by others.
    assert {1, 9} <= set(lengths.tolist())
    np.testing.assert_array_equal(outcomes["gone"], lengths)
    np.testing.assert_array_equal(outcomes["left"], np.zeros(20))


def test_records_go_on_across_resets() -> None:
    env = envs.make("Catch-bsuite")
    memory = make_memory(env.spec)
    records = jax.jit(lambda k: record_steps(env, memory, catch_ball, k, steps=25))(
        jax.random.key(1)
    )
    assert records.observation.shape == (1, 25, 10, 5, 1)
    np.testing.assert_array_equal(np.flatnonzero(records.is_first[0]), [0, 10, 20])
    np.testing.assert_array_equal(np.flatnonzero(records.terminated[0]), [9, 19])
    np.testing.assert_array_equal(np.flatnonzero(records.reward[0]), [9, 19])


class ScriptedEnv:
    """Environment i plays episodes of i + 1 steps, with a reward of 1 a step."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.clock = np.zeros(num_envs, int)

    def _step(self) -> TimeStep:
        n = self.num_envs
        last = self.clock == np.arange(n) + 1
        return TimeStep(
            observation=np.zeros((n, 2), np.float32),
            reward=(self.clock > 0).astype(np.float32),
            terminated=last,
            truncated=np.zeros(n, bool),
            is_first=self.clock == 0,
        )

    def reset(self) -> TimeStep:
        self.clock[:] = 0
        return self._step()

    def step(self, actions: np.ndarray) -> TimeStep:
        assert actions.shape == (self.num_envs,)
        self.clock = np.where(self.clock == np.arange(self.num_envs) + 1, 0, self.clock + 1)
        return self._step()


@pytest.mark.parametrize(("episodes", "per_env"), [(6, 2), (7, 3)])
def test_short_episodes_are_no_favourites(episodes: int, per_env: int) -> None:
    spec = EnvSpec("scripted", (2,), "float32", 2, True, 10)
    memory = make_memory(spec)
    returns, lengths, outcomes = run_host_episodes(
        ScriptedEnv(3),
        memory,
        memory.act_random,
        jax.random.key(0),
        episodes=episodes,
    )
    np.testing.assert_array_equal(returns, np.repeat([1.0, 2.0, 3.0], per_env))
    np.testing.assert_array_equal(lengths, np.repeat([1, 2, 3], per_env))
    assert outcomes == {}


def test_host_records_go_on_across_resets() -> None:
    spec = EnvSpec("scripted", (2,), "float32", 3, True, 10)
    memory = make_memory(spec)
    records = record_host_steps(
        ScriptedEnv(2),
        memory,
        memory.act_random,
        jax.random.key(0),
        steps=7,
    )
    assert records.observation.shape == (2, 7, 2)
    np.testing.assert_array_equal(np.flatnonzero(records.is_first[0]), [0, 2, 4, 6])
    np.testing.assert_array_equal(np.flatnonzero(records.is_first[1]), [0, 3, 6])
    np.testing.assert_array_equal(np.flatnonzero(records.terminated[1]), [2, 5])
    actions = [jax.random.randint(k, (2,), 0, 3) for k in jax.random.split(jax.random.key(0), 7)]
    np.testing.assert_array_equal(records.action, np.stack(actions, axis=1))
