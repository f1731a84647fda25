"""The recurrent actor-critic, against a slow version that acts frame by frame in NumPy loops."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from worldmodels_jax.agents.actor_critic import Dream, History
from worldmodels_jax.agents.recurrent_actor_critic import (
    RecurrentActorCriticConfig,
    make_recurrent_actor_critic,
)
from worldmodels_jax.nn.recurrent_policy import LSTMCell
from worldmodels_jax.types import EnvSpec

SPEC = EnvSpec("frames", (6, 5, 1), "uint8", 3, True, 10)
F = 30
TINY = RecurrentActorCriticConfig(
    image_size=8,
    channels=(4,),
    latent=2,
    halve_after=(),
    patch=2,
    width=5,
    num_bins=11,
    gamma=0.9,
    lambda_=0.5,
    entropy_scale=0.1,
)
ONLINE = dataclasses.replace(TINY, target="online", critic_head="mse", mask_after_end=False)
C, L, B = 4, 3, 4


@pytest.fixture(scope="module", params=[TINY, ONLINE], ids=["delta-iris", "iris"])
def setup(request):
    agent = make_recurrent_actor_critic(request.param, F, SPEC)
    variables = jax.jit(agent.init)(jax.random.key(0))
    # The value head begins at zero, and the target as a copy: move both.
    keys = iter(jax.random.split(jax.random.key(1), 100))
    variables = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), variables)
    return request.param, agent, variables, jax.jit(jax.value_and_grad(agent.loss, has_aux=True))


def random_dream(seed=0):
    rng = np.random.default_rng(seed)
    is_first = np.zeros((C, B), bool)
    is_first[2, 1] = is_first[3, 2] = True  # inside the history of 1, at the start of dream 2
    ends = np.ones((L, B), np.float32)
    ends[0, 0] = ends[1, 3] = ends[2, 3] = 0.0
    dream = Dream(
        features=rng.uniform(size=(L + 1, B, F)),
        action=rng.integers(0, 3, (L, B)),
        reward=rng.normal(size=(L, B)),
        continuation=ends,
        weight=np.array([1.0, 1.0, 1.0, 1.0]),
        history=History(rng.uniform(size=(C - 1, B, F)), is_first),
    )
    return jax.tree.map(
        lambda x: jnp.asarray(x, None if np.asarray(x).dtype == bool else jnp.float32), dream
    )._replace(action=jnp.asarray(dream.action, jnp.int32))


def numpy_lstm(params, state, x):
    h, c = state
    gates = x @ params["input"]["kernel"] + params["input"]["bias"]
    gates = gates + h @ params["recurrent"]["kernel"] + params["recurrent"]["bias"]
    i, f, g, o = np.split(np.asarray(gates, np.float64), 4, -1)
    c = scipy.special.expit(f) * c + scipy.special.expit(i) * np.tanh(g)
    return scipy.special.expit(o) * np.tanh(c), c


def test_the_lstm_is_that_of_the_equations():
    rng = np.random.default_rng(0)
    x, h, c = (rng.normal(size=(2, n)).astype(np.float32) for n in (3, 4, 4))
    cell = LSTMCell(4)
    params = cell.init(jax.random.key(0), (h, c), x)["params"]
    assert all(np.abs(p).max() <= 0.5 for p in jax.tree.leaves(params))  # 1 / sqrt(4)
    assert params["recurrent"]["bias"].std() > 0.05
    for got, expected in zip(
        cell.apply({"params": params}, (h, c), x), numpy_lstm(params, (h, c), x), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "actions", "parameters"),
    [
        (RecurrentActorCriticConfig(), 17, 3_745_216),
        (
            RecurrentActorCriticConfig(
                encoder="pool", channels=(32, 32, 64, 64), critic_head="mse", target="online"
            ),
            18,
            3_225_139,
        ),
    ],
    ids=["delta-iris", "iris"],
)
def test_parameter_counts_are_the_published_ones(config, actions, parameters):
    spec = EnvSpec("crafter", (64, 64, 3), "uint8", actions, True, 10)
    agent = make_recurrent_actor_critic(config, 64 * 64 * 3, spec)
    variables = jax.eval_shape(agent.init, jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])) == parameters
    assert ("target" in variables) == (config.target == "ema")


def heads_frame_by_frame(agent, config, params, dream):
    """Policy logits, values of s_0 .. s_L by the functions that act, one frame at a time."""
    network = {"params": params, "target": params}
    features = jnp.concatenate([dream.history.features, dream.features])
    first = jnp.concatenate([dream.history.is_first, jnp.zeros((L, B), bool)])
    memory, hidden = agent.init_memory(B), []
    step = jax.jit(lambda memory, x: agent.act_greedy(network, memory, x)[1])
    for x, begins in zip(features, first, strict=True):
        memory = jax.tree.map(lambda m, b=begins: m * (1 - b[:, None]), memory)
        memory = step(memory, x)
        hidden.append(np.asarray(memory[0], np.float64))
    hidden = np.stack(hidden[C - 1 :])
    logits = hidden @ params["policy"]["kernel"] + params["policy"]["bias"]
    values = hidden @ params["value"]["kernel"] + params["value"]["bias"]
    return np.asarray(logits, np.float64), np.asarray(values, np.float64)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def symexp(x):
    return np.sign(x) * np.expm1(np.abs(x))


def test_the_loss_is_that_of_a_policy_that_acts_frame_by_frame(setup):
    """In NumPy: returns from behind, two-hot codes by their definition, masks step by step."""
    config, agent, variables, loss = setup
    dream = random_dream()
    (value, (_, metrics)), _ = loss(variables, dream)
    logits, outputs = heads_frame_by_frame(agent, config, variables["params"], dream)
    bins = np.linspace(-20, 20, config.num_bins)
    if config.target == "ema":
        _, target_outputs = heads_frame_by_frame(agent, config, variables["target"], dream)
        v = symexp((np.exp(log_softmax(target_outputs)) * bins).sum(-1))
    else:
        v = outputs[..., 0]
    reward, goes_on = np.asarray(dream.reward), np.asarray(dream.continuation)
    actor, critic, entropy, weights = [], [], [], []
    for b in range(B):
        g, alive, returns = v[L, b], 1.0, np.zeros(L)
        for t in reversed(range(L)):
            mixed = (1 - config.lambda_) * v[t + 1, b] + config.lambda_ * g
            g = returns[t] = reward[t, b] + config.gamma * goes_on[t, b] * mixed
        for t in range(L):
            log_p = log_softmax(logits[t, b])
            actor.append(-log_p[dream.action[t, b]] * (returns[t] - v[t, b]))
            entropy.append(-(np.exp(log_p) * log_p).sum())
            if config.critic_head == "mse":
                critic.append((outputs[t, b, 0] - returns[t]) ** 2)
            else:
                y = np.sign(returns[t]) * np.log1p(abs(returns[t]))
                k = np.searchsorted(bins, y, "right") - 1
                share = (bins[k + 1] - y) / (bins[k + 1] - bins[k])
                log_q = log_softmax(outputs[t, b])
                critic.append(-share * log_q[k] - (1 - share) * log_q[k + 1])
            weights.append(alive if config.mask_after_end else 1.0)
            alive *= goes_on[t, b]
    mean = functools.partial(np.average, weights=weights)
    np.testing.assert_allclose(metrics["actor_loss"], mean(actor), rtol=2e-4)
    np.testing.assert_allclose(metrics["critic_loss"], mean(critic), rtol=2e-4)
    np.testing.assert_allclose(metrics["actor_entropy"], mean(entropy), rtol=1e-4)
    expected = mean(actor) + mean(critic) - config.entropy_scale * mean(entropy)
    np.testing.assert_allclose(value, expected, rtol=2e-4)
    assert sum(weights) == (9 if config.mask_after_end else 12)


def test_what_no_gradient_reaches(setup):
    """Neither frames, rewards, nor the target; but the convolutions and the LSTM it does."""
    _, agent, variables, loss = setup
    dream = random_dream()
    gradient = loss(variables, dream)[1]
    for name, leaf in jax.tree_util.tree_leaves_with_path(gradient["params"]):
        assert np.abs(leaf).max() > 0, name
    assert all((np.abs(x) == 0).all() for x in jax.tree.leaves(gradient.get("target", {})))
    parts = (dream.features, dream.reward, dream.history.features)

    def of(features, reward, before):
        history = dream.history._replace(features=before)
        other = dream._replace(features=features, reward=reward, history=history)
        return agent.loss(variables, other)[0]

    features, _, before = jax.jit(jax.grad(of, argnums=(0, 1, 2)))(*parts)
    assert (np.asarray(features) == 0).all()
    assert (np.asarray(before) == 0).all()


def test_the_gradient_is_that_of_the_rollout_itself(setup):
    """As if the policy's own steps had been differentiated while it dreamt (spec, check 13)."""
    config, agent, variables, _ = setup
    dream = random_dream()
    target = jnp.asarray(np.random.default_rng(2).normal(size=(L, B)), jnp.float32)

    def log_probs(params, memory):
        """Summed log-probabilities, step by step, with the LSTM's state passed along."""
        total = 0.0
        for t in range(L):
            _, memory = agent.act_greedy({**variables, "params": params}, memory, dream.features[t])
            logits = memory[0] @ params["policy"]["kernel"] + params["policy"]["bias"]
            log_p = jax.nn.log_softmax(logits)
            chosen = jnp.take_along_axis(log_p, dream.action[t][:, None], -1)[:, 0]
            total = total + (target[t] * chosen).sum()
        return total

    memory = agent.init_memory(B)
    naive = jax.jit(jax.grad(log_probs))(variables["params"], memory)

    # The loss with no history, values, entropy or ends whose advantage is ``target``.
    plain = dataclasses.replace(
        config, target="online", critic_head="mse", lambda_=0.0, gamma=1e-9, entropy_scale=0.0
    )
    two_pass = make_recurrent_actor_critic(plain, F, SPEC)
    params = dict(variables["params"])
    params["value"] = {"kernel": jnp.zeros((5, 1)), "bias": jnp.zeros(1)}
    history = History(jnp.zeros((0, B, F)), jnp.zeros((1, B), bool))
    other = dream._replace(
        reward=target, continuation=jnp.ones((L, B)), history=history, weight=jnp.ones(B)
    )
    got = jax.jit(jax.grad(lambda p: two_pass.loss({"params": p}, other)[1][1]["actor_loss"]))(
        params
    )
    for name in ("cell", "convolutions", "policy"):
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(naive[name]), strict=True):
            np.testing.assert_allclose(-a * L * B, b, rtol=1e-3, atol=1e-5)


def test_a_memory_forgets_the_episode_before(setup):
    _, _, variables, loss = setup
    dream = random_dream()
    (value, _), _ = loss(variables, dream)

    def with_history(t, b):
        features = dream.history.features.at[t, b].add(1.0)
        return loss(variables, dream._replace(history=dream.history._replace(features=features)))

    assert with_history(1, 1)[0][0] == value  # an episode begins at 2
    assert with_history(2, 2)[0][0] == value  # the dream is an episode's beginning
    assert with_history(2, 1)[0][0] != value
    assert with_history(0, 0)[0][0] != value


def test_dreams_without_weight_are_not_learned_from(setup):
    _, _, variables, loss = setup
    dream = random_dream()
    keep = dream._replace(weight=jnp.array([1.0, 0.0, 1.0, 1.0]))
    other = keep._replace(reward=keep.reward.at[:, 1].add(5.0))
    assert loss(variables, keep)[0][0] == loss(variables, other)[0][0]
    assert loss(variables, dream)[0][0] != loss(variables, keep)[0][0]


def test_dreams_split_over_devices_give_the_loss_of_all(setup):
    """Two halves with different numbers of steps before the end, and of dreams that count."""
    config, _, variables, loss = setup
    dream = random_dream()._replace(weight=jnp.array([1.0, 0.0, 1.0, 1.0]))
    (_, (_, metrics)), gradient = loss(variables, dream)
    agent = make_recurrent_actor_critic(config, F, SPEC, "device")

    def halves(x):
        axis = 0 if x.ndim == 1 else 1
        return jnp.stack(jnp.split(x, 2, axis))

    @jax.jit
    def split(variables, dream):
        def part(dream):
            run = jax.grad(lambda v: agent.loss(v, dream), has_aux=True)
            gradient, (_, metrics) = run(variables)
            return jax.lax.pmean((gradient, metrics), "device")

        return jax.vmap(part, axis_name="device")(jax.tree.map(halves, dream))

    split_gradient, split_metrics = split(variables, dream)
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], [value] * 2, rtol=1e-4, err_msg=name)
    for a, b in zip(
        jax.tree.leaves(split_gradient["params"]), jax.tree.leaves(gradient["params"]), strict=True
    ):
        np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-5)


def test_the_target_follows_slowly(setup):
    config, agent, variables, _ = setup
    after = agent.refresh(variables)
    if config.target == "online":
        assert after is variables
        return
    old, new = variables["target"]["value"]["bias"], variables["params"]["value"]["bias"]
    expected = 0.995 * np.asarray(old) + 0.005 * np.asarray(new)
    np.testing.assert_allclose(after["target"]["value"]["bias"], expected, rtol=1e-5)


def test_an_untrained_agent_is_sure_of_nothing():
    agent = make_recurrent_actor_critic(TINY, F, SPEC)
    variables = agent.init(jax.random.key(3))
    assert (np.asarray(variables["params"]["value"]["kernel"]) == 0).all()
    features = jax.random.uniform(jax.random.key(4), (2000, F))
    actions, memory = jax.jit(agent.act)(
        variables, agent.init_memory(2000), features, jax.random.key(5)
    )
    assert np.bincount(actions, minlength=3).min() > 300
    assert [x.shape for x in memory] == [(2000, 5), (2000, 5)]
    assert agent.has_memory


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({}, 31, r"vectors of 31 and observations of 'frames' have the shape \(6, 5, 1\)"),
        ({"image_size": 4}, F, r"frames of 6x5 do not fit agent\.image_size=4"),
        ({"image_size": 7}, F, r"agent\.image_size=7 is not a multiple of 2"),
    ],
)
def test_what_does_not_fit_is_named(config, size, message):
    with pytest.raises(ValueError, match=message):
        make_recurrent_actor_critic(dataclasses.replace(TINY, **config), size, SPEC)
