"""Auto-reset one record later, and the batch axis, on an environment that counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.envs.auto_reset import auto_reset, batch
from worldmodels_jax.types import Environment, EnvSpec, TimeStep


class _Count(NamedTuple):
    start: jax.Array
    count: jax.Array


def _counter(length: int, terminates: bool) -> Environment:
    """Shows (a number drawn at the reset, steps, last action); ends after ``length`` steps."""

    def show(state, action, reward):
        last = state.count >= length
        return state, TimeStep(
            observation=jnp.stack([state.start, state.count, action]).astype(jnp.float32),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=last & terminates,
            truncated=last & (not terminates),
            is_first=state.count == 0,
        )

    def reset(key):
        start = jax.random.randint(key, (), 0, 1_000_000)
        return show(_Count(start, jnp.int32(0)), jnp.int32(-1), 0.0)

    def step(state, action, key):
        return show(_Count(state.start, state.count + 1), action, action)

    spec = EnvSpec("Counter", (3,), "float32", 10, True, length)
    return Environment(spec, reset, step, lambda state: {"count": state.count.astype(jnp.float32)})


@pytest.mark.parametrize("terminates", [True, False])
def test_the_step_after_a_last_one_is_a_reset(terminates, random_rollout):
    steps, actions = random_rollout(auto_reset(_counter(3, terminates)), 10)
    np.testing.assert_array_equal(steps.observation[:, 1], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(steps.is_first), [0, 4, 8])
    last, never = (
        (steps.terminated, steps.truncated) if terminates else (steps.truncated, steps.terminated)
    )
    np.testing.assert_array_equal(np.flatnonzero(last), [3, 7])
    assert not never.any()
    # The action of a last record is ignored, all others arrive.
    arrived = np.concatenate([[-1], actions])
    np.testing.assert_array_equal(steps.observation[:, 2], np.where(steps.is_first, -1, arrived))
    np.testing.assert_array_equal(steps.reward, np.where(steps.is_first, 0, arrived))


def test_the_reset_step_is_the_reset_of_its_key():
    env = _counter(1, True)
    wrapped = auto_reset(env)
    state, _ = wrapped.reset(jax.random.key(0))
    state, last = wrapped.step(state, jnp.int32(4), jax.random.key(1))
    assert last.terminated
    _, first = wrapped.step(state, jnp.int32(4), jax.random.key(2))
    _, expected = env.reset(jax.random.key(2))
    np.testing.assert_array_equal(first.observation, expected.observation)


def test_the_wrapped_environment_itself_never_resets(random_rollout):
    steps, _ = random_rollout(_counter(3, True), 5)
    np.testing.assert_array_equal(steps.observation[:, 1], [0, 1, 2, 3, 4, 5])


def test_a_batch_equals_its_members_one_by_one():
    env = auto_reset(_counter(2, True))
    many = batch(env, 3)
    assert many.spec == env.spec
    reset_key, step_key = jax.random.split(jax.random.key(7))
    states, first = many.reset(reset_key)
    assert first.observation.shape == (3, 3)
    assert len(set(first.observation[:, 0].tolist())) == 3
    # One member is a step ahead, so that only that one resets in the second step.
    ahead, _ = env.step(jax.tree.map(lambda leaf: leaf[1], states), jnp.int32(0), step_key)
    states = jax.tree.map(lambda leaf, new: leaf.at[1].set(new), states, ahead)
    actions = jnp.array([4, 5, 6])
    expected_states = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(3)]
    for key in jax.random.split(step_key):
        states, steps = jax.jit(many.step)(states, actions, key)
        singles = [
            env.step(state, action, single_key)
            for state, action, single_key in zip(
                expected_states, actions, jax.random.split(key, 3), strict=True
            )
        ]
        expected_states = [state for state, _ in singles]
        for index, (_, single) in enumerate(singles):
            jax.tree.map(
                lambda many_leaf, leaf, i=index: np.testing.assert_array_equal(many_leaf[i], leaf),
                steps,
                single,
            )
    np.testing.assert_array_equal(steps.is_first, [False, True, False])
    np.testing.assert_array_equal(steps.terminated, [True, False, True])


def test_outcomes_are_those_of_the_episode_of_the_time_step():
    env = auto_reset(_counter(2, True))
    many = batch(env, 2)
    key = jax.random.key(0)
    states, _ = many.reset(key)
    ahead, _ = env.step(jax.tree.map(lambda leaf: leaf[1], states), jnp.int32(0), key)
    states = jax.tree.map(lambda leaf, new: leaf.at[1].set(new), states, ahead)
    step = jax.jit(many.step)
    for counts in ([0, 1], [1, 2], [2, 0], [0, 1]):
        outcomes = many.outcomes(states)
        assert list(outcomes) == ["count"]
        np.testing.assert_array_equal(outcomes["count"], counts)
        states, _ = step(states, jnp.zeros(2, jnp.int32), key)


def test_an_environment_without_outcomes_has_none_in_a_batch_either():
    env = _counter(2, True)
    many = batch(auto_reset(Environment(env.spec, env.reset, env.step)), 2)
    states, _ = many.reset(jax.random.key(0))
    assert many.outcomes(states) == {}


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="num_envs=0"):
        batch(_counter(1, True), 0)


def test_a_batch_resets_only_what_ended_and_only_then():
    """Two counters out of step, against each of them alone; resets are behind one branch."""
    env = auto_reset(_counter(2, True))
    keys = jax.random.split(jax.random.key(3), 12)
    ahead, _ = env.reset(keys[0])
    ahead, _ = env.step(ahead, jnp.int32(7), keys[0])
    behind, _ = env.reset(keys[1])
    state = jax.tree.map(lambda *x: jnp.stack(x), ahead, behind)
    together = jax.jit(jax.vmap(env.step, in_axes=(0, None, 0)))  # an action common to both
    for key in keys:
        both = jax.random.split(key)
        state, time_step = together(state, jnp.int32(5), both)
        ahead, first = env.step(ahead, jnp.int32(5), both[0])
        behind, second = env.step(behind, jnp.int32(5), both[1])
        expected = jax.tree.map(lambda *x: np.stack(x), first, second)
        jax.tree.map(np.testing.assert_array_equal, time_step, expected)
    jaxpr = jax.make_jaxpr(together)(state, jnp.int32(5), both)
    draws = str(jaxpr).count("random_bits")
    branches = [e for e in jaxpr.jaxpr.eqns[0].params["jaxpr"].eqns if e.primitive.name == "cond"]
    assert len(branches) == 1
    assert draws > 0
    assert str(branches[0]).count("random_bits") == draws
