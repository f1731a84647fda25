"""DreamerV3's loss: its terms in NumPy, where their gradients go, and a toy problem."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from dreamer_toys import (
    CONFIG,
    KEY,
    SPEC,
    V1,
    A,
    B,
    N,
    T,
    V,
    batch_of,
    part,
    random_variables,
    reached,
    vary,
)

from worldmodels_jax.models.dreamer_v3 import make_dreamer_v3
from worldmodels_jax.types import EnvSpec, Record


def two_hot(value, bins):
    code = np.zeros(len(bins))
    k = min(int(np.searchsorted(bins, value, side="right")) - 1, len(bins) - 2)
    code[k + 1] = (value - bins[k]) / (bins[k + 1] - bins[k])
    code[k] = 1 - code[k + 1]
    return code


@pytest.mark.parametrize("config", [CONFIG, V1], ids=["2024", "2023"])
def test_loss_is_the_mean_of_its_terms_over_all_records(config):
    config = dataclasses.replace(config, free_bits=1.2)
    model, variables, batch = (
        make_dreamer_v3(config, SPEC),
        random_variables(config),
        batch_of(),
    )

    @jax.jit
    def run():
        state, log_q = part(config, variables, "posterior", batch, KEY)
        pieces = (
            log_q,
            part(config, variables, lambda m, h: m.rssm.prior(h), state.deter),
            part(config, variables, "reconstruct", state),
            part(config, variables, lambda m, x: m.reward(x), state.features),
            part(config, variables, lambda m, x: m.continuation(x)[..., 0], state.features),
        )
        return pieces, state.features, model.loss_and_states(variables, batch, KEY)

    pieces, expected_features, (loss, (model_state, metrics, _, features)) = run()
    log_q, log_p, decoded, reward, logit = (np.asarray(x, np.float64) for x in pieces)
    steps = np.linspace(-20, 20, config.num_bins)
    symlog = lambda x: np.sign(x) * np.log1p(np.abs(x))  # noqa: E731
    symexp_bins = np.sign(steps) * np.expm1(np.abs(steps))
    rows = {name: [] for name in ("reward_loss", "continuation_loss", "dynamics_kl", "free")}
    for b, t in np.ndindex(B, T):
        y = float(batch.reward[b, t])
        raw = config.reward_head == "symexp_twohot"
        code = two_hot(y, symexp_bins) if raw else two_hot(symlog(y), steps)
        rows["reward_loss"].append(-code @ scipy.special.log_softmax(reward[b, t]))
        gamma = 1 - 1 / 333 if config.cell == "block_gru" else 1.0
        goes_on = 0.0 if batch.terminated[b, t] else gamma
        rows["continuation_loss"].append(
            -goes_on * scipy.special.log_expit(logit[b, t])
            - (1 - goes_on) * scipy.special.log_expit(-logit[b, t])
        )
        kl = (np.exp(log_q[b, t]) * (log_q[b, t] - log_p[b, t])).sum()
        rows["dynamics_kl"].append(kl)
        rows["free"].append(max(1.2, kl))
    expected = {name: np.mean(values) for name, values in rows.items()}
    free = expected.pop("free")
    # The maximum is that of each step, and both sides of it occur.
    assert 0 < metrics["free_steps"] < 1
    expected["dynamics_loss"] = expected["representation_loss"] = free
    error = decoded - symlog(np.asarray(batch.observation, np.float64))
    expected["reconstruction_loss"] = (error**2).sum(-1).mean()
    expected["loss"] = (
        expected["reconstruction_loss"]
        + expected["reward_loss"]
        + expected["continuation_loss"]
        + ((0.5 if config.cell == "gru" else 1.0) + 0.1) * free
    )
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    assert loss == metrics["loss"]
    assert model_state == {}
    np.testing.assert_array_equal(features, expected_features)


@pytest.fixture(scope="module")
def jacobian():
    """The parts that a loss term reaches, of a batch of sequences of a length."""
    config = vary(free_bits=0.0)
    model, variables = make_dreamer_v3(config, SPEC), random_variables(config)

    @jax.jit
    def run(params, batch):
        def terms(params):
            metrics = model.loss({"params": params}, batch, KEY)[1][1]
            return {name: x for name, x in metrics.items() if name.endswith("_loss")}

        return jax.jacrev(terms)(params)

    of_length = {
        length: run(variables["params"], jax.tree.map(lambda x, n=length: x[:, :n], batch_of()))
        for length in (1, 3)
    }
    return lambda metric, length: reached(of_length[length][metric])


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("reconstruction_loss", {"decoder", "encoder", "sequence", "q"}),
        ("reward_loss", {"reward", "encoder", "sequence", "q"}),
        ("continuation_loss", {"continuation", "encoder", "sequence", "q"}),
        ("dynamics_loss", {"p", "sequence"}),  # not the posterior it is drawn to
        ("representation_loss", {"q", "encoder", "sequence"}),  # nor the prior
    ],
)
def test_where_each_loss_term_sends_its_gradient(jacobian, term, parts):
    assert jacobian(term, 1) == parts
    # Along a sequence, what a step depends on is reached through h.
    assert jacobian(term, 3) == parts | {"encoder", "q", "sequence"}


def test_kl_gradients_are_balanced_and_vanish_where_bits_are_free():
    """Both KL losses in one number: beta_dyn trains the prior, beta_rep the posterior."""
    variables, batch = random_variables(CONFIG), batch_of()
    batch = jax.tree.map(lambda x: x[:, :1], batch)

    def gradients(config, whole):
        model = make_dreamer_v3(config, SPEC)

        def terms(rssm):
            params = {"params": {**variables["params"], "rssm": rssm}}
            metrics = model.loss(params, batch, KEY)[1][1]
            if whole:
                return whole_kl(config, params)
            return metrics["dynamics_loss"] * 0.7 + metrics["representation_loss"] * 0.2

        def whole_kl(config, params):
            state, log_q = part(config, params, "posterior", batch, KEY)
            log_p = part(config, params, lambda m, h: m.rssm.prior(h), state.deter)
            return (jnp.exp(log_q) * (log_q - log_p)).sum((-1, -2)).mean()

        return jax.jit(jax.grad(terms))(variables["params"]["rssm"])

    balanced = gradients(vary(free_bits=0.0), whole=False)
    plain = gradients(vary(free_bits=0.0), whole=True)
    for name, scale in {"p": 0.7, "q": 0.2}.items():
        jax.tree.map(
            lambda a, b, s=scale: np.testing.assert_allclose(a, s * b, rtol=1e-3, atol=1e-5),
            balanced[name],
            plain[name],
        )
        assert any((leaf != 0).any() for leaf in jax.tree.leaves(plain[name]))
    free = gradients(vary(free_bits=1e3), whole=False)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(free))


def test_unimix_bounds_the_kl():
    variables = jax.tree.map(lambda x: 1e3 * x, random_variables(CONFIG))
    model = make_dreamer_v3(CONFIG, SPEC)
    metrics = jax.jit(model.loss)(variables, batch_of(), KEY)[1][1]
    bound = N * np.log(V / 0.01)
    assert 0.3 * bound < metrics["dynamics_kl"] <= bound * (1 + 1e-5)


def test_rewards_of_arrival_states_are_fitted_and_those_of_departures_are_not():
    """States follow each other at random; the reward of a record is that of arriving there."""
    spec = EnvSpec("toy", (3,), "float32", A, True, 100)
    config = vary(reward_head="mse", unimix=0.0)  # neither of which has a loss that cannot be zero
    model, optimiser = make_dreamer_v3(config, spec), optax.adam(1e-2)

    def records(key, shift):
        states = jax.random.randint(key, (16, 4), 0, 3)
        reward = jnp.where(states == 2, 5.0, 0.0)
        never = jnp.zeros(states.shape, bool)
        reward = jnp.where(shift, jnp.roll(reward, -1, axis=1), reward)
        return Record(jax.nn.one_hot(states, 3), jnp.zeros_like(states), reward, *3 * (never,))

    @jax.jit
    def fit(shift):
        def step(carry, key):
            params, state = carry
            gradient, (_, metrics) = jax.grad(
                lambda p: model.loss({"params": p}, records(key, shift), key), has_aux=True
            )(params)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, updates), state), metrics["reward_loss"]

        params = model.init(KEY)["params"]
        keys = jax.random.split(KEY, 200)
        return jax.lax.scan(step, (params, optimiser.init(params)), keys)[1]

    aligned, shifted = fit(False), fit(True)
    assert aligned[0] > 5.0
    assert jnp.median(aligned[-20:]) < 0.05
    # Nothing tells which state comes next: the variance of its reward, 5^2 2/9, remains.
    assert shifted[-10:].mean() > 3.0
