"""The actor-critic: its loss against NumPy, its switches one by one, and a two-armed bandit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from slow_agent import (
    CONTINUOUS,
    DISCRETE,
    A,
    B,
    F,
    L,
    frozen_quantities,
    in_numpy,
    make,
    mlp,
    random_dream,
    random_variables,
    slow_loss,
)

from worldmodels_jax.agents.actor_critic import (
    ActorCriticConfig,
    Dream,
    make_actor_critic,
    policy_distribution,
)
from worldmodels_jax.ops.returns import ReturnScale
from worldmodels_jax.types import EnvSpec

VARIANTS = {
    "default": {},
    "current_value": {"bootstrap": "current"},
    "ema_return": {"critic_regulariser": "ema_return"},
    "probability": {"continuation": "probability"},
    "no_mask": {"mask_after_end": False},
    "unimix": {"actor_unimix": 0.2},
    "continuous": {},
    "symexp": {"critic_head": "symexp_twohot"},
    "mse": {"critic_head": "mse"},
    "discounted": {"weighting": "discounted"},
    "no_scale": {"normalise_returns": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_equal_slow_numpy(variant):
    spec = CONTINUOUS if variant == "continuous" else DISCRETE
    config, agent = make(spec, **VARIANTS[variant])
    variables, dream = random_variables(agent), random_dream(spec.discrete)

    @jax.jit
    def loss_and_gradient(variables, dream):
        rest = {name: value for name, value in variables.items() if name != "params"}
        return jax.value_and_grad(lambda p: agent.loss({"params": p, **rest}, dream), has_aux=True)(
            variables["params"]
        )

    (loss, (state, metrics)), gradient = loss_and_gradient(variables, dream)
    slow_variables, slow_dream = in_numpy(variables), in_numpy(dream)
    frozen = frozen_quantities(config, slow_variables, slow_dream)
    params = slow_variables["params"]
    np.testing.assert_allclose(loss, slow_loss(config, spec, params, slow_dream, frozen), rtol=1e-5)

    # The gradient along a random direction is the difference quotient of the slow loss whose
    # targets stay where they are.
    direction = in_numpy(random_variables(agent, seed=1)["params"])

    def moved(step):
        there = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return slow_loss(config, spec, there, slow_dream, frozen)

    products = jax.tree.map(lambda g, d: (np.asarray(g, float) * d).sum(), gradient, direction)
    np.testing.assert_allclose(
        sum(jax.tree.leaves(products)), (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-3
    )

    weight, target, _, advantage, scale = frozen
    np.testing.assert_allclose(state["return_scale"], scale, rtol=1e-4)
    assert scale[1] - scale[0] > 1.0  # so that the normaliser is not at its floor
    jax.tree.map(np.testing.assert_array_equal, state["slow_critic"], variables["slow_critic"])
    mean = (weight * target).sum() / weight.sum()
    std = np.sqrt((weight * (target - mean) ** 2).sum() / weight.sum())
    np.testing.assert_allclose(metrics["return_mean"], mean, rtol=1e-3)
    np.testing.assert_allclose(metrics["return_std"], std, rtol=1e-3)
    np.testing.assert_allclose(
        metrics["advantage_magnitude"],
        (weight * np.abs(advantage)).sum() / weight.sum(),
        rtol=1e-3,
    )


def test_every_variant_is_another_loss():
    dream = random_dream()
    losses = []
    for variant, changes in VARIANTS.items():
        if variant != "continuous":
            config, agent = make(**changes)
            variables, slow = in_numpy(random_variables(agent)), in_numpy(dream)
            frozen = frozen_quantities(config, variables, slow)
            losses.append(slow_loss(config, DISCRETE, variables["params"], slow, frozen))
    assert np.diff(sorted(losses)).min() > 1e-2, losses


@pytest.fixture(scope="module")
def default_loss():
    """The jitted loss of the default agent and its variables."""
    _, agent = make()
    return jax.jit(agent.loss), random_variables(agent)


def test_dreams_of_weight_zero_contribute_nothing(default_loss):
    loss, variables = default_loss
    dream = random_dream()
    other = random_dream(seed=1)
    absent = dream.weight == 0.0

    def swap(ours, theirs):
        return jnp.where(absent.reshape(1, B, *[1] * (ours.ndim - 2)), 50 * theirs, ours)

    swapped = Dream(*(swap(x, y) for x, y in zip(dream[:4], other[:4], strict=True)), dream.weight)
    swapped = swapped._replace(action=jnp.where(absent, other.action, dream.action))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        loss(variables, dream),
        loss(variables, swapped),
    )


def test_steps_after_a_predicted_end_contribute_nothing(default_loss):
    loss, variables = default_loss
    # All dreams end on arrival at s_2: steps 0 and 1 are what is left.
    ended = random_dream()._replace(continuation=jnp.ones((L, B)).at[1].set(0.0))
    metrics = loss(variables, ended)[1][1]
    changed = ended._replace(
        features=ended.features.at[3:].set(0.3), action=(ended.action.at[2:].set(0))
    )
    after = loss(variables, changed)[1][1]
    # The scale, which counts all steps, is left out: it divides the advantages.
    for name in ("critic_loss", "critic_slow_loss", "actor_entropy", "return_mean", "value_mean"):
        np.testing.assert_allclose(metrics[name], after[name], rtol=1e-5)
    # The first step of every dream and the second: two terms for each dream of weight 1.
    np.testing.assert_allclose(
        metrics["dream_reward"], ended.reward[:2][:, ended.weight > 0].mean(), rtol=1e-5
    )


def test_no_dream_of_any_weight_is_a_loss_of_zero_and_leaves_the_scale(default_loss):
    loss, variables = default_loss
    value, (state, _) = loss(variables, random_dream()._replace(weight=jnp.zeros(B)))
    assert value == 0.0
    np.testing.assert_allclose(state["return_scale"], variables["return_scale"], rtol=1e-6)


def test_no_gradient_reaches_the_dream(default_loss):
    loss, variables = default_loss
    dream = random_dream()

    def of(features, reward, continuation):
        changed = dream._replace(features=features, reward=reward, continuation=continuation)
        return loss(variables, changed)[0]

    gradient = jax.grad(of)(dream.features, dream.reward, dream.continuation)
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_dream_without_its_time_axis_is_refused():
    _, agent = make()
    with pytest.raises(AssertionError):
        agent.loss(random_variables(agent), random_dream()._replace(reward=jnp.zeros(B)))


# Variables


def test_refresh_moves_the_slow_critic_by_its_decay():
    config, agent = make()
    variables = {
        "params": {"actor": {"w": jnp.array(5.0)}, "critic": {"w": jnp.array(3.0)}},
        "slow_critic": {"w": jnp.array(1.0)},
        "return_scale": None,
    }
    assert config.slow_decay == 0.98
    refreshed = agent.refresh(variables)
    np.testing.assert_allclose(refreshed["slow_critic"]["w"], 0.98 * 1.0 + 0.02 * 3.0, rtol=1e-6)
    assert refreshed["params"] is variables["params"]


def test_an_untrained_agent_values_everything_at_zero_and_can_be_donated():
    _, agent = make()
    variables = jax.jit(agent.init)(jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, variables["slow_critic"], variables["params"]["critic"]
    )
    assert variables["return_scale"] == ReturnScale(0.0, 0.0)
    metrics = jax.jit(agent.loss)(variables, random_dream())[1][1]
    np.testing.assert_allclose(metrics["value_mean"], 0.0, atol=1e-5)
    jax.jit(agent.refresh, donate_argnums=0)(variables)  # no buffer is given twice


def test_number_of_parameters_is_storms():
    spec = EnvSpec("atari", (64, 64, 3), "uint8", 9, True, 27_000)
    agent = make_actor_critic(ActorCriticConfig(), 32 * 32 + 512, spec)
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves((shapes["params"], shapes["slow_critic"])))
    assert count == 3_418_119


# The policy


def test_discrete_policy_is_the_mixed_softmax():
    output = jnp.log(jnp.array([[0.1, 0.2, 0.7]]))
    policy = policy_distribution(output, discrete=True, unimix=0.3)
    expected = 0.7 * np.array([0.1, 0.2, 0.7]) + 0.1
    log_probs = [policy.log_prob(jnp.array([a]))[0] for a in range(3)]
    np.testing.assert_allclose(log_probs, np.log(expected), rtol=1e-5)
    assert policy.mode() == 2


def test_continuous_policy_is_the_normal_of_dreamer_v3():
    output = jnp.array([[0.0, 0.5, -2.0, -2.0, 0.0, 50.0]])  # three means, three spreads
    policy = policy_distribution(output, discrete=False)
    mean, std = np.tanh([0.0, 0.5, -2.0]), [0.1 + 0.9 * 0.5, 0.1 + 0.9 * 0.880797, 1.0]
    np.testing.assert_allclose(policy.mode()[0], mean, rtol=1e-5)
    np.testing.assert_allclose(policy.distribution.stddev()[0], std, rtol=1e-5)
    action = jnp.array([[0.3, -0.4, 1.0]])
    expected = scipy.stats.norm(mean, std).logpdf(np.asarray(action[0])).sum()
    np.testing.assert_allclose(policy.log_prob(action), [expected], rtol=1e-5)


def test_discrete_actions_are_sampled_from_the_policy():
    _, agent = make()
    variables = random_variables(agent)
    features = jnp.broadcast_to(random_dream().features[0, 0], (4000, F))
    actions = jax.jit(agent.act)(variables, (), features, jax.random.key(0))[0]
    output = mlp(in_numpy(variables["params"]["actor"]["params"]), np.asarray(features[0], float))
    probs = scipy.special.softmax(output)
    counts = np.bincount(actions, minlength=A)
    assert scipy.stats.chisquare(counts, probs * 4000).pvalue > 1e-4
    greedy = jax.jit(agent.act_greedy)(variables, (), features)[0]
    np.testing.assert_array_equal(greedy, np.argmax(probs))


def test_continuous_actions_are_sampled_from_the_policy():
    _, agent = make(CONTINUOUS)
    variables = random_variables(agent)
    features = jnp.broadcast_to(random_dream().features[0, 0], (4000, F))
    actions = jax.jit(agent.act)(variables, (), features, jax.random.key(0))[0]
    assert actions.shape == (4000, A)
    output = mlp(in_numpy(variables["params"]["actor"]["params"]), np.asarray(features[0], float))
    std = 0.1 + 0.9 * scipy.special.expit(output[A:] + 2.0)
    np.testing.assert_allclose(actions.mean(0), np.tanh(output[:A]), atol=0.06)
    np.testing.assert_allclose(actions.std(0), std, rtol=0.05)
    greedy = jax.jit(agent.act_greedy)(variables, (), features)[0]
    np.testing.assert_allclose(greedy[0], np.tanh(output[:A]), rtol=1e-4)


# A problem with a known answer


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_the_policy_finds_the_better_arm(spec):
    # One state, dreams of one step: arm 1 pays 1, the others nothing. The continuous arm pays the
    # more the closer the action is to 0.5 in every component.
    _, agent = make(spec, entropy_scale=1e-3)
    optimiser = optax.adam(1e-2)
    features = jnp.ones((2, 64, F))

    def step(carry, key):
        variables, state = carry
        action = agent.act(variables, (), features[0], key)[0]
        if spec.discrete:
            reward = (action == 1).astype(jnp.float32)
        else:
            reward = -((action - 0.5) ** 2).sum(-1)
        dream = Dream(features, action[None], reward[None], jnp.zeros((1, 64)), jnp.ones(64))
        rest = {name: value for name, value in variables.items() if name != "params"}
        gradient, (new, _) = jax.grad(
            lambda p: agent.loss({"params": p, **rest}, dream), has_aux=True
        )(variables["params"])
        updates, state = optimiser.update(gradient, state)
        params = optax.apply_updates(variables["params"], updates)
        return (agent.refresh({"params": params, **new}), state), reward.mean()

    @jax.jit
    def train(key):
        variables = agent.init(key)
        state = optimiser.init(variables["params"])
        keys = jax.random.split(key, 300)
        (variables, _), rewards = jax.lax.scan(step, (variables, state), keys)
        return rewards, agent.act_greedy(variables, (), features[0, :1])[0][0]

    rewards, action = train(jax.random.key(0))
    if spec.discrete:
        assert rewards[:5].mean() < 0.75
        assert rewards[-20:].mean() > 0.9
        assert action == 1
    else:
        np.testing.assert_allclose(action, 0.5, atol=0.15)
        assert rewards[-20:].mean() > rewards[:5].mean() + 0.3
