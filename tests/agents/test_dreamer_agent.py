"""DreamerV3's agent: how it starts, and its critic's loss on replayed states against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_agent import (
    A,
    F,
    L,
    frozen_quantities,
    in_numpy,
    make,
    random_dream,
    random_variables,
    replay_targets,
    slow_replay_loss,
)

from worldmodels_jax.agents.actor_critic import ActorCriticConfig, Dream, make_actor_critic
from worldmodels_jax.types import EnvSpec, Record

ROWS, T = 3, 4
SPEC = EnvSpec("discrete", (F,), "float32", A, True, 10)


def test_it_starts_almost_uniform_and_values_everything_at_exactly_zero():
    config = ActorCriticConfig(width=64, depth=3, network="dreamer_v3", critic_head="symexp_twohot")
    agent = make_actor_critic(config, 96, SPEC)
    rng = np.random.default_rng(0)
    dream = random_dream()._replace(
        features=jnp.asarray(rng.normal(0, 3, (L + 1, 6, 96)), jnp.float32)
    )
    variables = jax.jit(agent.init)(jax.random.key(0))
    metrics = jax.jit(agent.loss)(variables, dream)[1][1]
    assert 0.99 * np.log(A) < metrics["actor_entropy"] < np.log(A)
    assert metrics["value_mean"] == 0.0
    kernel = variables["params"]["actor"]["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 0.01 / np.sqrt(64), rtol=0.2)
    # The layers are the world model's: RMSNorm and not LayerNorm.
    assert "RMSNorm_0" in str(jax.tree.structure(variables["params"]))
    assert "LayerNorm" not in str(jax.tree.structure(variables["params"]))


def test_advantages_are_those_of_the_returns_where_they_are_not_normalised():
    variables = random_variables(make()[1])
    dream = random_dream()
    sizes = {}
    for normalise in (True, False):
        config, agent = make(normalise_returns=normalise)
        metrics = jax.jit(agent.loss)(variables, dream)[1][1]
        sizes[normalise] = metrics["advantage_magnitude"]
        scale = frozen_quantities(config, in_numpy(variables), in_numpy(dream))[-1]
        expected = scale[1] - scale[0] if normalise else 1.0
        np.testing.assert_allclose(metrics["return_scale"], expected, rtol=1e-4)
    np.testing.assert_allclose(sizes[False] / sizes[True], scale[1] - scale[0], rtol=1e-4)


# On replayed states


def replayed():
    """Records with every kind of end, their dreams, and their features."""
    rng = np.random.default_rng(3)
    flags = {name: np.zeros((ROWS, T), bool) for name in ("terminated", "truncated", "is_first")}
    flags["terminated"][0, 1] = flags["is_first"][0, 2] = True
    flags["truncated"][1, 2] = flags["is_first"][1, 3] = True
    flags["is_first"][2, 1] = True  # the environment of row 2 was lost, without a last record
    flags["terminated"][2, 3] = True
    batch = Record(
        observation=np.zeros((ROWS, T, F)),
        action=np.zeros((ROWS, T), int),
        reward=rng.normal(0, 3, (ROWS, T)),
        **flags,
    )
    dreams = [random_dream(seed=seed) for seed in (0, 1)]
    dream: Dream = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b], axis=min(a.ndim - 1, 1)), *dreams
    )
    return dream, jax.tree.map(jnp.asarray, batch), rng.normal(size=(ROWS, T, F))


@pytest.mark.parametrize(
    "changes", [{}, {"critic_head": "mse", "continuation": "probability"}], ids=["two_hot", "mse"]
)
def test_replay_loss_and_its_gradients_equal_slow_numpy(changes):
    config, agent = make(**changes)
    variables = random_variables(agent)
    dream, batch, features = replayed()
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def run(params, dream, features):
        return jax.value_and_grad(
            lambda p, d, f: agent.replay_loss({"params": p, **rest}, d, batch, f),
            (0, 1, 2),
            has_aux=True,
            allow_int=True,
        )(params, dream, features)

    (loss, metrics), gradients = run(params, dream, jnp.asarray(features, jnp.float32))
    to_params, to_dream, to_features = gradients
    slow_variables = in_numpy(variables)
    critic = slow_variables["params"]["critic"]
    targets = replay_targets(config, slow_variables, in_numpy(dream), batch, features)
    expected = slow_replay_loss(config, critic, features, targets)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    returns, _, weight = targets
    assert weight.sum() == 6
    np.testing.assert_allclose(
        metrics["replay_return_mean"], (weight * returns).sum() / 6, rtol=1e-4
    )

    # It trains the critic and what made the features; neither the actor nor what was dreamed.
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(to_params["actor"]))
    dreamed = (to_dream.features, to_dream.reward, to_dream.continuation)
    assert all((leaf == 0).all() for leaf in dreamed)
    direction = in_numpy(random_variables(agent, seed=1)["params"]["critic"])
    turn = np.random.default_rng(4).normal(size=features.shape)

    def moved(step):
        there = jax.tree.map(lambda p, d: p + step * d, critic, direction)
        return slow_replay_loss(config, there, features + step * turn, targets)

    slope = (to_features * turn).sum() + sum(
        jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), to_params["critic"], direction))
    )
    np.testing.assert_allclose(slope, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-3)
    assert (to_features[:, :-1][weight == 0] == 0).all()
    assert (to_features[:, :-1][weight == 1] != 0).any(-1).all()


def test_real_and_dreamed_rewards_are_one_discounted_return():
    """A perfect model: the spec's section 10, number 8."""
    gamma = 1 - 1 / 333
    _, agent = make(gamma=gamma, lambda_=1.0, continuation="probability")
    real, dreamed = np.array([9.0, 1.0, 2.0]), np.array([3.0, 4.0, 5.0])
    dream = Dream(
        features=jnp.zeros((4, 3, F)),
        action=jnp.zeros((3, 3), jnp.int32),
        # What was dreamed from the last of three records; from the others, nothing of worth.
        reward=jnp.zeros((3, 3)).at[:, 2].set(dreamed),
        continuation=jnp.ones((3, 3)).at[2].set(0.0),  # and then it ended
        weight=jnp.ones(3),
    )
    never = jnp.zeros((1, 3), bool)
    batch = Record(jnp.zeros((1, 3, F)), never, jnp.asarray(real[None]), never, never, never)
    variables = jax.jit(agent.init)(jax.random.key(0))
    _, metrics = jax.jit(agent.replay_loss)(variables, dream, batch, jnp.zeros((1, 3, F)))
    rewards = np.concatenate([real[1:], dreamed])
    expected = [sum(gamma**k * r for k, r in enumerate(rewards[start:])) for start in (0, 1)]
    np.testing.assert_allclose(metrics["replay_return_mean"], np.mean(expected), rtol=1e-6)


def test_dreams_of_another_batch_are_refused():
    _, agent = make()
    dream, batch, features = replayed()
    fewer = jax.tree.map(lambda x: x[:2], batch)
    with pytest.raises(AssertionError):
        agent.replay_loss(random_variables(agent), dream, fewer, features[:2])
