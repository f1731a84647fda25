"""DreamerV3's states: resets, starts, imagination, and every version and kind of observation.

Most tests use vector observations, which spare the compilation of convolutions, and random
parameters, because those that start at zero hide mistakes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from dreamer_toys import (
    CONFIG,
    GRID,
    KEY,
    SPEC,
    V1,
    B,
    D,
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


@pytest.fixture(scope="module")
def tools():
    """The model for vectors, random variables, and its functions, compiled."""
    model, variables = make_dreamer_v3(CONFIG, SPEC), random_variables(CONFIG)
    return (
        model,
        variables,
        jax.jit(model.observe, static_argnums=(3, 4)),
        jax.jit(model.imagine),
    )


def test_starts_are_the_last_posterior_states_in_order(tools):
    model, variables, observe, _ = tools
    batch = batch_of()
    _, (_, _, states, features) = jax.jit(model.loss_and_states)(variables, batch, KEY)
    assert features.shape == (B, T, model.feature_size)
    for starts in (1, 2, T):
        carry, some = observe(variables, batch, KEY, 15, starts)
        assert some.shape == (B * starts, model.feature_size)
        expected = features[:, T - starts :].reshape(B * starts, -1)
        np.testing.assert_array_equal(some, expected)
        last = jax.tree.map(lambda x, n=starts: x.reshape(B, T, *x.shape[1:])[:, T - n :], states)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.ravel(), b.ravel()), carry, last)
    for starts in (0, T + 1):
        with pytest.raises(ValueError, match=f"{starts} starts do not fit a sequence of 5 steps"):
            observe(variables, batch, KEY, 15, starts)


def test_a_filter_goes_step_by_step_where_observe_goes_in_one(tools):
    """From an episode's beginning on, across a reset, with the keys of the steps."""
    model, variables, _, _ = tools
    batch = batch_of()
    batch = batch._replace(is_first=batch.is_first.at[:, 0].set(True))
    _, (_, _, _, features) = jax.jit(model.loss_and_states)(variables, batch, KEY)
    update = jax.jit(model.filter.update)
    # What comes before the first record of an episode is nothing.
    state = jax.tree.map(lambda x: x + 7.0, model.filter.init(B))
    action = jnp.full_like(batch.action[:, 0], 1)
    for t, key in enumerate(jax.random.split(KEY, T)):
        record = jax.tree.map(lambda x, t=t: x[:, t], batch)
        state, seen = update(variables, state, record, action, key)
        np.testing.assert_allclose(seen, features[:, t], atol=1e-5)
        action = record.action
    assert batch.is_first[:, 1:].any()


def test_two_episodes_in_one_sequence_are_those_apart():
    # Posteriors so sharp that the keys, which differ, cannot change a sample.
    config = vary(unimix=0.0)
    variables = random_variables(config)
    output = variables["params"]["rssm"]["q"]["Dense_0"]
    output["kernel"] = 1e4 * output["kernel"]
    model = make_dreamer_v3(config, SPEC)
    observe = jax.jit(model.observe, static_argnums=(3, 4))
    batch = jax.tree.map(lambda x: x[:, :4], batch_of())  # a first record at 2

    def features(context):
        length = context.reward.shape[1]
        return observe(variables, context, KEY, 0, length)[1].reshape(B, length, -1)

    whole = features(batch)
    halves = [features(jax.tree.map(lambda x, i=i: x[:, i : i + 2], batch)) for i in (0, 2)]
    np.testing.assert_allclose(whole, jnp.concatenate(halves, 1), atol=1e-5)
    joined = features(batch._replace(is_first=jnp.zeros((B, 4), bool)))
    assert np.abs(joined - whole)[:, 2:].max() > 0.01


def test_imagination_needs_no_decoder(tools):
    _, variables, observe, imagine = tools
    blind = {"params": dict(variables["params"])}
    blind["params"]["decoder"] = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan), variables["params"]["decoder"]
    )

    def rollout(variables):
        carry, _ = observe(variables, batch_of(), KEY, 3, 1)
        predictions = []
        for step in range(3):
            action = jnp.full((B,), step)
            carry, prediction = imagine(variables, carry, action, jax.random.key(step))
            predictions.append(prediction)
        return jnp.concatenate([jnp.concatenate([x.reshape(-1) for x in p]) for p in predictions])

    seen = rollout(variables)
    assert np.isfinite(seen).all()
    np.testing.assert_array_equal(rollout(blind), seen)


def test_actions_change_what_is_imagined(tools):
    _, variables, observe, imagine = tools
    carry, _ = observe(variables, batch_of(), KEY, 1, 1)
    some, other = (imagine(variables, carry, jnp.full((B,), a), KEY)[1] for a in (0, 1))
    assert (some.features[:, :D] != other.features[:, :D]).all(0).any()
    assert (some.reward != other.reward).all()


def test_an_untrained_reward_is_exactly_zero():
    model = make_dreamer_v3(CONFIG, SPEC)

    @jax.jit
    def run(key):
        variables = model.init(key)
        carry, _ = model.observe(variables, batch_of(), key, 1)
        return model.imagine(variables, carry, jnp.zeros((B,), jnp.int32), key)[1]

    prediction = run(KEY)
    np.testing.assert_array_equal(prediction.reward, 0.0)
    assert (np.abs(prediction.continuation - 0.5) < 0.45).all()


@pytest.mark.parametrize("discounted", [True, False])
def test_continuation_is_without_the_discount(tools, discounted):
    _, variables, observe, _ = tools
    imagine = jax.jit(make_dreamer_v3(vary(discounted_continuation=discounted), SPEC).imagine)
    carry, _ = observe(variables, batch_of(), KEY, 1, 1)

    def continuation(probability):
        params = dict(variables["params"])
        params["continuation"] = jax.tree.map(jnp.zeros_like, params["continuation"])
        bias = jnp.full((1,), scipy.special.logit(probability), jnp.float32)
        params["continuation"]["Dense_0"]["bias"] = bias
        _, prediction = imagine({"params": params}, carry, jnp.zeros((B,), jnp.int32), KEY)
        return prediction.continuation

    gamma = 1 - 1 / 333
    for probability in (0.0, 0.3, gamma, 0.9999):
        expected = min(1.0, probability / gamma) if discounted else probability
        np.testing.assert_allclose(continuation(probability), expected, rtol=1e-5)


def test_log_likelihood_is_that_of_the_posterior_sample_given_the_past(tools):
    model, variables, observe, _ = tools
    batch = batch_of()
    actual = jax.jit(model.log_likelihood)(variables, batch, KEY)
    carry, _ = observe(variables, batch, KEY, 0, T)
    log_p = part(CONFIG, variables, lambda m, h: m.rssm.prior(h), carry.deter)
    log_p = np.asarray(log_p).reshape(B, T, N, V)
    classes = np.asarray(carry.stoch).reshape(B, T, N, V).argmax(-1)
    assert actual.shape == (B, T - 1, N)
    for b, t, n in np.ndindex(actual.shape):
        np.testing.assert_allclose(
            actual[b, t, n], log_p[b, t + 1, n, classes[b, t + 1, n]], rtol=1e-5
        )


def test_features_of_the_loss_carry_gradients_to_the_posterior_path(tools):
    model, variables, _, _ = tools

    @jax.jit
    @jax.grad
    def gradient(params):
        _, (_, _, _, features) = model.loss_and_states({"params": params}, batch_of(), KEY)
        return (features * jax.random.normal(KEY, features.shape)).sum()

    assert reached(gradient(variables["params"])) == {"encoder", "sequence", "q"}


def test_all_that_is_random_comes_from_the_key(tools):
    _, variables, observe, imagine = tools
    carry, first = observe(variables, batch_of(), KEY, 0, T)
    np.testing.assert_array_equal(observe(variables, batch_of(), KEY, 0, T)[1], first)
    assert (observe(variables, batch_of(), jax.random.key(1), 0, T)[1] != first).any()
    action = jnp.zeros((B * T,), jnp.int32)
    some, other = (imagine(variables, carry, action, jax.random.key(k))[1] for k in (0, 1))
    np.testing.assert_array_equal(some.features[:, :D], other.features[:, :D])
    assert (some.features != other.features).any()


def test_a_batch_without_its_time_axis_is_refused(tools):
    model, variables, _, _ = tools
    frames = jax.tree.map(lambda x: x[:, 0], batch_of())
    for function in (model.loss_and_states, model.log_likelihood):
        with pytest.raises(AssertionError):
            function(variables, frames, KEY)
    with pytest.raises(AssertionError):
        model.observe(variables, frames, KEY, 1)


# Every version and kind of observation and action

VERSIONS = {
    "vectors, mse, bfloat16": (vary(reward_head="mse"), SPEC),
    "flat grid, continuous actions": (
        vary(channels=()),
        dataclasses.replace(GRID, discrete=False),
    ),
    "grid": (CONFIG, GRID),
    "2023, grid": (V1, dataclasses.replace(GRID, observation_shape=(10, 10, 4))),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_every_version_trains_and_dreams(name):
    config, spec = VERSIONS[name]
    dtype = jnp.bfloat16 if "bfloat16" in name else jnp.float32
    model, batch = make_dreamer_v3(config, spec, dtype=dtype), batch_of(spec)
    params = random_variables(config, spec)["params"]

    @jax.jit
    def run(params, key):
        value, gradient = jax.value_and_grad(
            lambda p: model.loss({"params": p}, batch, key), has_aux=True
        )(params)
        carry, _ = model.observe({"params": params}, batch, key, 2, 2)

        def step(carry, step_key):
            action = batch.action[:, -2:].reshape(2 * B, *batch.action.shape[2:])
            return model.imagine({"params": params}, carry, action, step_key)

        carry, predictions = jax.lax.scan(step, carry, jax.random.split(key, 2))
        raw = part(config, {"params": params}, "reconstruct", carry, spec=spec)
        return value, gradient, predictions, model.decode({"params": params}, carry), raw

    (_, (state, metrics)), gradient, predictions, decoded, raw = run(params, KEY)
    assert state == {}
    leaves = jax.tree.leaves((metrics, gradient, predictions))
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(x).all() for x in leaves)
    unused = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not (leaf != 0.0).any()
    ]
    assert unused == []
    assert predictions.features.shape == (2, 2 * B, model.feature_size)
    assert predictions.reward.shape == predictions.continuation.shape == (2, 2 * B)
    assert decoded.shape == (2 * B, *spec.observation_shape)
    assert decoded.dtype == spec.observation_dtype
    if spec.observation_dtype == "uint8":
        np.testing.assert_array_equal(decoded, np.rint(np.clip(raw, 0, 1) * 255))
    elif dtype == jnp.float32:
        np.testing.assert_allclose(decoded, np.sign(raw) * np.expm1(np.abs(raw)), rtol=1e-5)
