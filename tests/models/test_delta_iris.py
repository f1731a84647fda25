"""Delta-IRIS: its losses and whom they train, episodes, the cache, dreams and their ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iris_toys import (
    ACTIONS,
    DELTA,
    KEY,
    K,
    N,
    expected_losses,
    random_variables,
    rollout,
    total,
    vary,
)
from jax.sharding import PartitionSpec as P

from worldmodels_jax.data import views
from worldmodels_jax.models import delta_iris, iris_imagination
from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.ops.frames import to_square, to_uint8

NO_I = vary(DELTA, i_tokens=False)
CONFIGS = {"I-tokens": DELTA, "no I-tokens": NO_I}
B, T = 2, 8  # of the fixture `records`


@pytest.fixture(scope="module", params=CONFIGS)
def system(request, spec):
    """The networks, the model and random variables, with and without I-tokens."""
    config = CONFIGS[request.param]
    model = make_delta_iris(config, spec)
    return networks(config, spec), model, random_variables(model)


@pytest.fixture(scope="module")
def default(spec):
    model = make_delta_iris(DELTA, spec)
    return networks(DELTA, spec), model, random_variables(model)


def networks(config, spec):
    return delta_iris._networks(config, spec, None, jnp.float32)


def tokens_of(m, variables, batch):
    return jax.jit(lambda v, b: delta_iris._tokens(m, v, m.frames(b), b.action[:, :-1]))(
        variables, batch
    )


def slots_of(m, variables, batch, tokens):
    return jax.jit(lambda v, b, z: delta_iris._slots(m, v, b, z, None))(variables, batch, tokens)


# Sizes


def test_an_episode_does_not_see_the_one_before(system, records):
    m, _, variables = system
    tokens = tokens_of(m, variables, records)
    segments = np.asarray(views.segment_ids(records.is_first))[:, :-1]
    plain = slots_of(m, variables, records, tokens)
    # Another first frame of the sequence, another action and other tokens at once.
    frames = records.observation.at[:, 0].set(0)
    changed = records._replace(observation=frames, action=records.action.at[:, 0].add(1) % 3)
    other = slots_of(m, variables, changed, tokens.at[:, 0].set(0))
    same = np.abs(plain.tokens - other.tokens).max((-1, -2)) == 0
    np.testing.assert_array_equal(same, segments > segments[:, :1])
    # A first frame, whose slot follows those of another episode, is seen by its own.
    first = 4  # of row 0
    frames = records.observation.at[0, first].set(0)
    other = slots_of(m, variables, records._replace(observation=frames), tokens)
    changed = np.abs(plain.tokens - other.tokens).max((-1, -2))[0] > 1e-6
    np.testing.assert_array_equal(changed, np.arange(T - 1) >= first)


@pytest.mark.parametrize("kind", ["delta", "frame"])
def test_tokenizer_loss_is_that_of_the_valid_pairs(kind, spec, records):
    config = vary(DELTA, "tokenizer", kind=kind)
    m, losses = networks(config, spec), make_delta_iris(config, spec).parts
    variables = random_variables(make_delta_iris(config, spec))
    loss, (state, metrics) = jax.jit(losses["tokenizer"])(variables, records, KEY)

    @jax.jit
    def reconstruct(variables):
        frames = m.frames(records)
        pair = (frames[:, :-1], records.action[:, :-1])
        codes = m.tokenize(variables, "encode", frames[:, 1:], *pair)
        return codes, m.tokenize(variables, "decode", codes.vectors, *pair)

    codes, decoded = reconstruct(variables)
    error = np.asarray(decoded)[:, :, :10, :5] - np.asarray(records.observation[:, 1:]) / 255.0
    valid = np.asarray(~records.is_first[:, 1:])
    error = error[valid]
    expected = 0.1 * np.abs(error).mean() + (error**2).mean()
    expected += 0.01 * (error**2).max((1, 2, 3)).mean()
    expected += np.asarray(codes.loss)[valid].mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert metrics["reconstruction_l2"] == pytest.approx((error**2).mean(), rel=1e-4)
    usage = 0.98 / N + 0.02 * np.bincount(codes.tokens[valid].ravel(), minlength=N) / (12 * K)
    np.testing.assert_allclose(state["vq"]["quantiser"]["codebook"].usage, usage, atol=1e-6)


def test_world_model_loss_is_that_of_the_tokens_of_the_tokenizer(system, spec, records):
    m, _, variables = system
    config = vary(m.config, token_weight=2.0, reward_weight=3.0, termination_weight=5.0)
    losses = make_delta_iris(config, spec).parts
    loss, (state, metrics) = jax.jit(losses["dynamics"])(variables, records, KEY)
    tokens = tokens_of(m, variables, records)
    slots = slots_of(m, variables, records, tokens)
    valid = np.broadcast_to(~records.is_first[:, 1:, None], tokens.shape)
    token, reward, end = expected_losses(slots, np.asarray(tokens), valid, records)
    assert metrics["token_loss"] == pytest.approx(token, rel=1e-4)
    assert metrics["reward_loss"] == pytest.approx(reward, rel=1e-4)
    assert metrics["termination_loss"] == pytest.approx(end, rel=1e-4)
    assert loss == pytest.approx(2 * token + 3 * reward + 5 * end, rel=1e-4)
    assert state == {}


def test_the_loss_is_the_sum_of_two_that_train_separate_parameters(default, spec, records):
    variables = default[2]
    losses = make_delta_iris(DELTA, spec).parts

    def gradient(loss):
        def of_params(params):
            return loss({**variables, "params": params}, records, KEY)

        return jax.jit(jax.value_and_grad(of_params, has_aux=True))(variables["params"])

    (first, (state, _)), of_first = gradient(losses["tokenizer"])
    (second, _), of_second = gradient(losses["dynamics"])
    assert total(of_first["tokenizer"]) > 0
    assert total(of_first["dynamics"]) == 0
    assert total(of_second["dynamics"]) > 0
    assert total(of_second["tokenizer"]) == 0
    scaled = dataclasses.replace(DELTA, tokenizer_scale=2.0, world_model_scale=3.0)
    (both, (both_state, metrics)), of_both = gradient(make_delta_iris(scaled, spec).loss)
    assert both == pytest.approx(float(2 * first + 3 * second), rel=1e-4)
    assert both == metrics["loss"].item()
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c, 2 * a + 3 * b, rtol=1e-3, atol=1e-5),
        of_first, of_second, of_both,
    )  # fmt: skip
    # The tokens are those of the codebook before its update, in either.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, both_state)


def test_a_part_of_weight_zero_is_left_as_it_is(default, spec, records):
    _, _, variables = default
    frozen = dataclasses.replace(DELTA, tokenizer_scale=0.0)
    loss, (state, metrics) = jax.jit(make_delta_iris(frozen, spec).loss)(variables, records, KEY)
    assert state == {}
    assert "tokenizer_loss" not in metrics
    parts = [float(metrics[f"{name}_loss"]) for name in ("token", "reward", "termination")]
    assert loss == pytest.approx(sum(parts), rel=1e-5)


def test_what_was_never_done_has_no_influence_on_the_loss(default, records):
    _, model, variables = default
    loss = jax.jit(lambda batch: model.loss(variables, batch, KEY)[0])
    plain = loss(records)
    # The action of a last record was never executed; the sequence's last leads beyond it.
    unused = records.action.at[0, 3].add(1).at[1, 5].add(1).at[:, -1].add(1) % 3
    assert loss(records._replace(action=unused)) == pytest.approx(float(plain), rel=1e-6)
    used = records.action.at[0, 2].add(1) % 3
    assert abs(loss(records._replace(action=used)) - plain) > 1e-4


def test_log_likelihood_is_that_of_the_encoded_tokens(default, records):
    m, model, variables = default
    log_p = jax.jit(model.log_likelihood)(variables, records, KEY)
    assert log_p.shape == (B, T - 1, K)
    tokens = tokens_of(m, variables, records)
    logits = slots_of(m, variables, records, tokens).tokens
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_p, expected, atol=1e-4)


def test_loss_over_devices_is_that_of_the_whole_batch(default, spec, records):
    _, model, variables = default
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    # Four rows with different numbers of valid transitions.
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1, ::-1]]), records)
    batch = batch._replace(is_first=batch.is_first.at[0, 1:].set(True))
    mapped = make_delta_iris(DELTA, spec, axis_name="device")

    def local(variables, batch):
        def of_params(params):
            return mapped.loss({**variables, "params": params}, batch, KEY)

        gradient, (state, _) = jax.grad(of_params, has_aux=True)(variables["params"])
        return jax.tree.map(lambda x: jax.lax.pmean(x, "device"), (gradient, state["vq"]))

    sharded = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(P(), P("device")), out_specs=P(), check_vma=False)
    )

    @jax.jit
    def whole(variables, batch):
        def of_params(params):
            return model.loss({**variables, "params": params}, batch, KEY)

        gradient, (state, _) = jax.grad(of_params, has_aux=True)(variables["params"])
        return gradient, state["vq"]

    (actual, book), (expected, whole_book) = sharded(variables, batch), whole(variables, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), actual, expected
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), book, whole_book)


# Observing and imagining


@pytest.mark.parametrize("length", [1, 4])
def test_imagining_equals_the_full_forward(system, records, length, monkeypatch):
    m, model, variables = system
    traced = []
    imagine_step = iris_imagination.imagine_step

    def record(*args):
        traced.append(imagine_step(*args))
        return traced[-1]

    monkeypatch.setattr(iris_imagination, "imagine_step", record)

    @jax.jit
    def dream(variables, context):
        carry, features = model.observe(variables, context, KEY, 3)
        frames, predictions = [carry.frame], []
        start = carry.cache.position
        for action in ACTIONS[:2]:
            carry, prediction = model.imagine(variables, carry, action, KEY)
            frames.append(carry.frame)
            predictions.append(prediction)
        return features, start, carry, frames, predictions, [step.tokens for step in traced]

    # Row 0 begins an episode at 4, row 1 at 6: with 4 records, at the last of row 0.
    context = jax.tree.map(lambda x: x[:, 5 - length : 5], records)
    features, start, carry, frames, predictions, dreamt = dream(variables, context)
    np.testing.assert_allclose(
        features, context.observation[:, -1].reshape(B, -1) / 255.0, atol=1e-6
    )

    # The same in one pass over context and dream, without any cache.
    real = m.frames(context)
    known = [tokens_of(m, variables, context)] if length > 1 else []
    tokens = jnp.concatenate([*known, *(z[:, None] for z in dreamt)], 1)
    actions = jnp.concatenate([context.action[:, :-1], ACTIONS[:2].T], 1)
    dreamed = [to_square(frame, 16)[:, None] for frame in frames[1:]]
    every = jnp.concatenate([real, *dreamed], 1)
    segments = views.segment_ids(context.is_first)
    segments = jnp.concatenate([segments, jnp.repeat(segments[:, -1:], 2, 1)], 1)

    @jax.jit
    def full(params):
        def apply(*args, method):
            return m.dynamics.apply({"params": params}, *args, method=method)

        embedded = apply(every, method="embed_frames")
        x, token_segments = apply(embedded, actions, tokens, segments, method="sequence")
        cache = iris_imagination.new_cache(m.dynamics, B, x.shape[1])
        _, cache = apply(x, token_segments, cache, method="feed")
        slots = apply(every[:, :-1], actions, tokens, segments[:, :-1], method="predict")
        return cache, slots

    cache, slots = full(variables["params"]["dynamics"])
    assert cache.position == carry.cache.position
    size = int(cache.position)
    np.testing.assert_array_equal(carry.cache.segments[:, :size], cache.segments)
    for carried, expected in zip(
        (*carry.cache.keys, *carry.cache.values), (*cache.keys, *cache.values), strict=True
    ):
        np.testing.assert_allclose(carried[:, :, :size], expected, atol=1e-4)
    np.testing.assert_array_equal(start, size - 2 * m.dynamics.block)
    for i, prediction in enumerate(predictions):
        logits = slots.reward[:, length - 1 + i]
        expected = iris_imagination.read_reward(m.config.world_model, logits, KEY)
        np.testing.assert_allclose(prediction.reward, expected, rtol=1e-3, atol=1e-4)
        # The frame is decoded from the tokens, the frame before and the action.
        previous = to_square(frames[i], 16)
        vectors = m.tokenize(variables, "embed", dreamt[i])
        decoded = m.tokenize(variables, "decode", vectors, previous, ACTIONS[i])[:, :10, :5]
        expected = np.round(np.clip(decoded, 0, 1) * 255)
        np.testing.assert_allclose(frames[i + 1] * 255, expected, atol=1e-3)
        np.testing.assert_array_equal(prediction.features, frames[i + 1].reshape(B, -1))


def test_numbers_of_tokens_in_the_cache_are_the_published_ones(spec, records):
    # Six frames, then 15 steps: 31 tokens, 6 more with each step, 121 at the end.
    model = make_delta_iris(vary(DELTA, max_blocks=21), spec)
    variables = random_variables(model)
    context = jax.tree.map(lambda x: x[:, :6], records)
    carry, _, carries, _ = rollout(model, variables, context, jnp.zeros((15, B), jnp.int32))
    assert carry.cache.position == 31
    np.testing.assert_array_equal(carries.cache.position, 31 + 6 * np.arange(1, 16))
    assert carry.cache.segments.shape == (B, 121)


def test_a_dream_beyond_the_table_goes_on_from_its_latest_frame(system, records, spec):
    m, model, variables = system
    # 8 blocks: two of context, six of dream, then the memory is empty but for I_t.
    context = jax.tree.map(lambda x: x[:, :3], records)
    actions = jnp.zeros((8, B), jnp.int32)
    _, _, carries, predictions = rollout(model, variables, context, actions)
    block, size = m.dynamics.block, m.dynamics.max_tokens
    start = 2 * block + 1
    before = (size - start) // block
    expected = [start + block * (i + 1) for i in range(before)]
    expected += [1 + block * (i + 1) for i in range(8 - before)]
    np.testing.assert_array_equal(carries.cache.position, expected)
    assert before == 5 + (not m.dynamics.i_tokens)
    # The step after is that of an observed single frame, but for its past.
    last = jax.tree.map(lambda x: x[before - 1], carries)
    frame = to_uint8(last.frame)[:, None]
    single = jax.tree.map(lambda x: x[:, :1], records)._replace(
        observation=frame, is_first=jnp.zeros((B, 1), bool)
    )
    fresh, _ = jax.jit(model.observe, static_argnums=3)(variables, single, KEY, 1)
    key = jax.random.split(KEY, 8)[before]
    _, prediction = jax.jit(model.imagine)(variables, fresh, actions[0], key)
    np.testing.assert_allclose(predictions.reward[before], prediction.reward, atol=1e-3)
    np.testing.assert_allclose(predictions.features[before], prediction.features, atol=0.005)


def test_the_same_key_dreams_the_same_and_another_does_not(default, records):
    _, model, variables = default
    context = jax.tree.map(lambda x: x[:, :3], records)
    carry, _ = jax.jit(model.observe, static_argnums=3)(variables, context, KEY, 2)
    imagine = jax.jit(model.imagine)
    first = imagine(variables, carry, ACTIONS[0], KEY)
    jax.tree.map(np.testing.assert_array_equal, first, imagine(variables, carry, ACTIONS[0], KEY))
    frames = {
        np.asarray(imagine(variables, carry, ACTIONS[0], jax.random.key(i))[0].frame).tobytes()
        for i in range(5)
    }
    assert len(frames) > 1


def test_decoding_gives_the_frames_of_the_environment(default, records, spec):
    _, model, variables = default
    context = jax.tree.map(lambda x: x[:, :3], records)
    carry, _, carries, predictions = rollout(model, variables, context, ACTIONS)
    np.testing.assert_array_equal(model.decode(variables, carry), records.observation[:, 2])
    last = jax.tree.map(lambda x: x[-1], carries)
    frame = model.decode(variables, last)
    assert frame.dtype == jnp.uint8
    expected = predictions.features[-1].reshape(frame.shape) * 255
    np.testing.assert_allclose(frame, expected, atol=1e-3)
    assert model.feature_size == predictions.features.shape[-1] == 50


def test_bfloat16_computes_about_the_same(default, spec, records):
    _, model, variables = default
    half = make_delta_iris(DELTA, spec, dtype=jnp.bfloat16)
    exact, _ = jax.jit(model.loss)(variables, records, KEY)
    rough, (state, _) = jax.jit(half.loss)(variables, records, KEY)
    assert rough.dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
    # Near, not equal: a rounded vector may have another nearest code.
    assert rough == pytest.approx(float(exact), rel=0.2)
    carry, _ = jax.jit(half.observe, static_argnums=3)(variables, records, KEY, 1)
    assert carry.cache.keys[0].dtype == jnp.bfloat16
    after, prediction = jax.jit(half.imagine)(variables, carry, ACTIONS[0], KEY)
    dtypes = [jax.tree.map(lambda x: x.dtype, state) for state in (carry, after)]
    assert dtypes[0] == dtypes[1]
    assert {x.dtype.name for x in prediction} == {"float32"}


# Errors


def test_a_context_longer_than_the_table_is_refused(default, records):
    _, model, variables = default
    context = jax.tree.map(lambda x: jnp.concatenate([x, x], 1), records)
    with pytest.raises(ValueError, match=r"context of 16 frames .*max_blocks=8"):
        model.observe(variables, context, KEY, 0)


def test_dreams_from_other_frames_than_the_last_are_refused(default, records):
    _, model, variables = default
    with pytest.raises(ValueError, match="starts=2"):
        model.observe(variables, records, KEY, 1, starts=2)


def test_a_sequence_of_one_record_is_refused(default, spec, records):
    single = jax.tree.map(lambda x: x[:, :1], records)
    losses = make_delta_iris(DELTA, spec).parts
    for loss in losses.values():
        with pytest.raises(ValueError, match=r"1 record: raise training\.batch_length"):
            loss(default[2], single, KEY)
