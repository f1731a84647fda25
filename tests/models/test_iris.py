"""IRIS: its losses and whom they train, episodes, the cache, dreams and their ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iris_toys import ACTIONS, IRIS, KEY, K, expected_losses, random_variables, rollout, total, vary

from worldmodels_jax.data import views
from worldmodels_jax.models import iris, iris_imagination
from worldmodels_jax.models.iris import make_iris

VQGAN = dataclasses.replace(IRIS, architecture="vqgan")
B, T = 2, 8  # of the fixture `records`


def networks(config, spec):
    return iris._networks(config, spec, None, jnp.float32)


@pytest.fixture(scope="module", params=["resnet", "vqgan"])
def system(request, spec):
    """The networks, the model and random variables, with either tokenizer."""
    config = IRIS if request.param == "resnet" else VQGAN
    model = make_iris(config, spec)
    return networks(config, spec), model, random_variables(model)


@pytest.fixture(scope="module")
def default(spec):
    model = make_iris(IRIS, spec)
    return networks(IRIS, spec), model, random_variables(model)


def codes_of(m, variables, batch):
    return jax.jit(lambda v, b: m.tokenize(v, "encode", m.frames(b)))(variables, batch)


def slots_of(m, variables, batch, tokens):
    return jax.jit(lambda v, b, z: iris._slots(m, v, b, z, None))(variables, batch, tokens)


def test_losses_are_those_of_all_frames_and_of_what_can_be_predicted(system, spec, records):
    m, model, variables = system
    loss, (state, metrics) = jax.jit(model.loss)(variables, records, KEY)

    codes = codes_of(m, variables, records)
    decoded = jax.jit(lambda v, x: m.tokenize(v, "decode", x))(variables, codes.vectors)
    error = np.asarray(decoded)[:, :, :10, :5] - np.asarray(records.observation) / 255.0
    expected = 0.1 * np.abs(error).mean() + (error**2).mean()
    expected += 0.01 * (error**2).max((2, 3, 4)).mean() + np.asarray(codes.loss).mean()
    assert metrics["tokenizer_loss"] == pytest.approx(expected, rel=1e-4)

    # Nothing precedes the first token of an episode's first frame, nor that of the sequence.
    valid = np.ones((B, T, K), bool)
    valid[:, 0, 0] = False
    valid[np.asarray(records.is_first), 0] = False
    slots = slots_of(m, variables, records, codes.tokens)
    parts = expected_losses(slots, np.asarray(codes.tokens), valid, records)
    for name, value in zip(("token", "reward", "termination"), parts, strict=True):
        assert metrics[f"{name}_loss"] == pytest.approx(value, rel=1e-4)
    assert loss == pytest.approx(expected + sum(parts), rel=1e-4)
    assert set(state) == ({"vq"} if m.config.architecture == "resnet" else set())


def test_the_losses_train_separate_parameters(system, spec, records):
    m, _, variables = system
    losses = make_iris(m.config, spec).parts

    def gradient(loss):
        def of_params(params):
            return loss({**variables, "params": params}, records, KEY)[0]

        return jax.jit(jax.grad(of_params))(variables["params"])

    of_tokenizer, of_dynamics = map(gradient, losses.values())
    assert total(of_tokenizer["tokenizer"]) > 0
    assert total(of_tokenizer["dynamics"]) == 0
    assert total(of_dynamics["dynamics"]) > 0
    assert total(of_dynamics["tokenizer"]) == 0
    if m.config.architecture == "vqgan":
        assert total(of_tokenizer["tokenizer"]["quantiser"]) > 0


def test_single_frames_are_enough_for_the_tokenizer(default, spec, records):
    # 256 x 1 is the batch of the original; its order and its episodes mean nothing.
    variables = default[2]
    loss = jax.jit(make_iris(IRIS, spec).parts["tokenizer"])
    single = jax.tree.map(lambda x: x.reshape(B * T, 1, *x.shape[2:]), records)
    alone, _ = loss(variables, single, KEY)
    together, _ = loss(variables, records, KEY)
    assert alone == pytest.approx(float(together), rel=1e-5)


def test_dropout_is_on_in_training_only(spec, records):
    model = make_iris(vary(IRIS, dropout=0.5), spec)
    variables = random_variables(model)
    loss = jax.jit(lambda key: model.loss(variables, records, key)[1][1]["token_loss"])
    assert loss(jax.random.key(1)) == loss(jax.random.key(1))
    assert abs(loss(jax.random.key(1)) - loss(jax.random.key(2))) > 1e-3
    log_p = jax.jit(model.log_likelihood)
    plain = log_p(variables, records, jax.random.key(1))
    np.testing.assert_array_equal(plain, log_p(variables, records, jax.random.key(2)))


def test_log_likelihood_is_that_of_the_encoded_tokens(default, records):
    m, model, variables = default
    log_p = jax.jit(model.log_likelihood)(variables, records, KEY)
    tokens = codes_of(m, variables, records).tokens
    logits = slots_of(m, variables, records, tokens).tokens
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    assert log_p.shape == (B, T - 1, K)
    np.testing.assert_allclose(log_p, expected[:, 1:], atol=1e-4)


# Observing and imagining


@pytest.mark.parametrize("seen", [1, 3])
def test_imagining_equals_the_full_forward(seen, spec, records):
    config = vary(IRIS, context=seen)
    m, model = networks(config, spec), make_iris(config, spec)
    variables = random_variables(model)
    # Row 0 begins an episode at 4, the last but one of these.
    context = jax.tree.map(lambda x: x[:, 1:6], records)
    start, features, carries, predictions = rollout(model, variables, context, ACTIONS)

    real = codes_of(m, variables, context).tokens[:, -seen:]
    np.testing.assert_array_equal(start.tokens, real[:, -1])
    tokens = jnp.concatenate([real, jnp.moveaxis(carries.tokens, 0, 1)], 1)
    actions = context.action[:, 5 - seen : 4]
    actions = jnp.concatenate([actions, ACTIONS.T], 1)
    segments = views.segment_ids(context.is_first)[:, -seen:]
    segments = jnp.concatenate([segments, jnp.repeat(segments[:, -1:], 3, 1)], 1)

    @jax.jit
    def full(params):
        def apply(*args, method):
            return m.dynamics.apply({"params": params}, *args, method=method)

        x, token_segments = apply(tokens, actions, segments, method="sequence")
        cache = iris_imagination.new_cache(m.dynamics, B, x.shape[1])
        _, cache = apply(x, token_segments, cache, method="feed")
        return cache, apply(tokens, actions, segments, method="predict")

    cache, slots = full(variables["params"]["dynamics"])
    last = jax.tree.map(lambda x: x[-1], carries.cache)
    assert cache.position == last.position == (K + 1) * (seen + 3) - 1
    np.testing.assert_array_equal(last.segments, cache.segments)
    np.testing.assert_allclose(last.keys, cache.keys, atol=1e-4)
    np.testing.assert_allclose(last.values, cache.values, atol=1e-4)
    expected = iris_imagination.read_reward(config.world_model, slots.reward[:, seen - 1 :], KEY)
    np.testing.assert_allclose(predictions.reward.T, expected, rtol=1e-3, atol=1e-4)

    # Every frame that the policy sees, the real one too, is decoded from its tokens.
    def reconstruct(tokens):
        decoded = m.tokenize(variables, "decode", m.tokenize(variables, "embed", tokens))
        return np.round(np.clip(decoded[:, :10, :5], 0, 1) * 255)

    frames = [features, *predictions.features]
    for i, frame in enumerate(frames):
        expected = reconstruct(tokens[:, seen - 1 + i]).reshape(B, -1)
        np.testing.assert_allclose(frame * 255, expected, atol=1e-3)
    last = jax.tree.map(lambda x: x[-1], carries)
    np.testing.assert_allclose(
        model.decode(variables, last).reshape(B, -1), frames[-1] * 255, atol=1e-3
    )
    assert model.decode(variables, last).dtype == jnp.uint8


def test_a_dream_beyond_the_table_goes_on_from_its_latest_frame(default, spec, records):
    m, model, variables = default
    # 8 blocks of 5 tokens: 3 of context, 4 whole ones of dream, the next does not fit.
    context = jax.tree.map(lambda x: x[:, :4], records)
    actions = jnp.zeros((7, B), jnp.int32)
    start, _, carries, predictions = rollout(model, variables, context, actions)
    assert start.cache.position == 19
    np.testing.assert_array_equal(carries.cache.position, [24, 29, 34, 39, 9, 14, 19])
    # The step after is as if the dreamt frame were the first that is observed.
    last = jax.tree.map(lambda x: x[3], carries)
    x, segments = m.dynamics.apply(
        {"params": variables["params"]["dynamics"]},
        last.tokens[:, None],
        actions[:0].T,
        last.segment[:, None],
        method="sequence",
    )
    cache = iris_imagination.new_cache(m.dynamics, B, 40)
    _, cache = m.dynamics.apply(
        {"params": variables["params"]["dynamics"]}, x, segments, cache, method="feed"
    )
    key = jax.random.split(KEY, 7)[4]
    imagine = jax.jit(model.imagine)
    carry, prediction = imagine(variables, last._replace(cache=cache), actions[0], key)
    np.testing.assert_allclose(predictions.reward[4], prediction.reward, atol=1e-4)
    np.testing.assert_array_equal(carries.tokens[4], carry.tokens)


def test_the_published_horizon_needs_one_new_start(spec, records):
    # 16 tokens a frame, 20 blocks, one frame of context: 16 + 17 * 19 = 339 of 340 tokens.
    config = vary(vary(IRIS, "resnet", num_tokens=16), max_blocks=20, context=1, layers=1)
    model = make_iris(config, spec)
    shapes = jax.eval_shape(
        lambda variables: model.observe(variables, records, KEY, 20), random_variables(model)
    )
    assert shapes[0].cache.segments.shape == (B, 340)
    short = jax.eval_shape(
        lambda variables: model.observe(variables, records, KEY, 2), random_variables(model)
    )
    assert short[0].cache.segments.shape == (B, 16 + 2 * 17)


def test_the_same_key_dreams_the_same_and_another_does_not(default, records):
    _, model, variables = default
    context = jax.tree.map(lambda x: x[:, :3], records)
    carry, _ = jax.jit(model.observe, static_argnums=3)(variables, context, KEY, 2)
    imagine = jax.jit(model.imagine)
    first = imagine(variables, carry, ACTIONS[0], KEY)
    jax.tree.map(np.testing.assert_array_equal, first, imagine(variables, carry, ACTIONS[0], KEY))
    tokens = {
        np.asarray(imagine(variables, carry, ACTIONS[0], jax.random.key(i))[0].tokens).tobytes()
        for i in range(5)
    }
    assert len(tokens) > 1


def test_bfloat16_computes_about_the_same(spec, records):
    losses = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = make_iris(VQGAN, spec, dtype=dtype)
        loss, (_, metrics) = jax.jit(model.loss)(random_variables(model), records, KEY)
        assert loss.dtype == jnp.float32
        losses.append(float(metrics["token_loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    carry, _ = jax.eval_shape(
        lambda variables: model.observe(variables, records, KEY, 1), random_variables(model)
    )
    assert carry.cache.keys[0].dtype == jnp.bfloat16
    assert carry.frame.dtype == jnp.float32


def test_dreams_from_other_frames_than_the_last_are_refused(default, records):
    _, model, variables = default
    with pytest.raises(ValueError, match="starts=2"):
        model.observe(variables, records, KEY, 1, starts=2)
