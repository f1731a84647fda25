"""GIT-STORM: cache, resets, every ablation, every error."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from git_storm_toys import (
    CONFIG,
    HIDDEN,
    KEY,
    SPEC,
    A,
    B,
    D,
    F,
    N,
    T,
    V,
    batch_of,
    encode,
    head,
    part,
    random_variables,
    vary,
)

from worldmodels_jax.models.git_storm import make_git_storm
from worldmodels_jax.models.git_storm_config import GitStormConfig
from worldmodels_jax.ops import categorical, twohot
from worldmodels_jax.types import EnvSpec

# Numbers of parameters


def test_number_of_parameters_is_the_published_one():
    spec = EnvSpec("atari", (64, 64, 3), "uint8", 9, True, 27_000)

    def count(prior):
        model = make_git_storm(GitStormConfig(prior=prior), spec)
        params = jax.eval_shape(model.init, KEY)["params"]
        size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
        return size(params), size(params["prior"])

    assert count("mlp") == (16_508_547, 525_312)
    assert count("maskgit") == (16_508_547 - 525_312 + 458_784, 458_784)


# Cache, resets and what a step is made of


@pytest.mark.parametrize("mixer", ["concat", "unmixed"])
def test_observing_and_imagining_equal_the_full_forward(mixer):
    config = vary(mixer=mixer)
    model, variables = make_git_storm(config, SPEC), random_variables(config)
    horizon = 3
    actions = jnp.array([[0, 1], [2, 0], [1, 1]])

    @jax.jit
    def run(context, key):
        key_observe, key_imagine = jax.random.split(key)
        start, first = model.observe(variables, context, key_observe, horizon)

        def step(carry, inputs):
            action, step_key = inputs
            after, prediction = model.imagine(variables, carry, action, step_key)
            return after, (carry.vectors, prediction)

        keys = jax.random.split(key_imagine, horizon)
        _, (vectors, predictions) = jax.lax.scan(step, start, (actions, keys))

        # The same in one pass over context and dream, without any cache.
        key_posterior, _ = jax.random.split(key_observe)
        real = part(config, variables, encode, context.observation, key_posterior).vectors
        vectors = jnp.concatenate([real, jnp.moveaxis(vectors, 0, 1)[:, 1:]], 1)
        every_action = jnp.concatenate([context.action[:, :-1], actions.T], 1)
        segments = jnp.cumsum(context.is_first, 1)
        later = jnp.repeat(segments[:, -1:], horizon - 1, 1)
        segments = jnp.concatenate([segments, later], 1)
        full, _ = part(config, variables, "dynamics", vectors, every_action, segments, None, True)
        reward = part(config, variables, lambda m, h: m.reward(h), full[:, T - 1 :])
        logit = part(config, variables, lambda m, h: m.termination(h), full[:, T - 1 :])[..., 0]
        reward = twohot.two_hot_symlog_mean(reward, twohot.symlog_bins(config.num_bins))
        return first, predictions, (full, reward.T, jax.nn.sigmoid(-logit).T)

    for is_first in ([0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]):
        context = batch_of()._replace(is_first=jnp.tile(jnp.array(is_first, bool), (B, 1)))
        first, predictions, (full, reward, continuation) = run(context, KEY)
        hidden = first[:, N * V :]
        np.testing.assert_allclose(hidden, 0.0 if is_first[-1] else full[:, T - 2], atol=1e-4)
        imagined = predictions.features[..., N * V :].swapaxes(0, 1)
        np.testing.assert_allclose(imagined, full[:, T - 1 :], atol=1e-4)
        np.testing.assert_allclose(predictions.reward, reward, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(predictions.continuation, continuation, atol=1e-4)
        assert np.ptp(predictions.reward) > 0.1


def test_several_starts_are_windows_encoded_once(monkeypatch):
    """With the latents given, each start is what its own window of frames gives."""
    config, starts = vary(mixer="concat"), 3
    model, variables = make_git_storm(config, SPEC), random_variables(config)
    context = batch_of()._replace(is_first=jnp.zeros((B, T), bool).at[0, T - 2].set(True))
    # The likeliest class in place of a sample, so that a frame's latent is its own alone.
    monkeypatch.setattr(categorical, "sample_classes", lambda key, log_probs: log_probs.argmax(-1))

    @functools.partial(jax.jit, static_argnums=1)
    def run(context, starts):
        carry, features = model.observe(variables, context, KEY, 2, starts)
        action = jnp.zeros(features.shape[0], jnp.int32)
        return features, model.imagine(variables, carry, action, KEY)[1].reward

    features, reward = run(context, starts)
    assert features.shape[0] == starts * B
    for start in range(starts):
        window = jax.tree.map(lambda x, s=start: x[:, s : T - starts + 1 + s], context)
        expected = run(window, 1)
        np.testing.assert_allclose(features[start::starts], expected[0], atol=1e-5)
        np.testing.assert_allclose(reward[start::starts], expected[1], atol=1e-4)
    with pytest.raises(ValueError, match="starts do not fit"):
        model.observe(variables, context, KEY, 2, T + 1)


# Every ablation, several of them at once: each compiles for seconds.

ABLATIONS = {
    "storm_original": vary(prior="mlp", cross_episode_attention=True, acting_latent="prior"),
    "continuous actions, vq, concat_attention": vary(tokenizer="vq", mixer="concat_attention"),
    "confidence, broadcast, unmixed": dataclasses.replace(
        head(decoder="confidence", confidence_steps=3, condition="broadcast"), mixer="unmixed"
    ),
    "current, untied, cross_attention": dataclasses.replace(
        head(input="current", tied_logits=False), mixer="cross_attention"
    ),
    "bfloat16, revising, ivideogpt": dataclasses.replace(
        head(draft_rounds=2, revise_rounds=2, repetitions=2),
        mixer="ivideogpt",
    ),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_trains_and_dreams(ablation):
    config = dataclasses.replace(ABLATIONS[ablation], layers=1)
    spec = dataclasses.replace(SPEC, discrete="continuous" not in ablation)
    dtype = jnp.bfloat16 if "bfloat16" in ablation else jnp.float32
    model, batch = make_git_storm(config, spec, dtype=dtype), batch_of(spec)
    params = random_variables(config, spec)["params"]
    # Two dreams each, that differ in the first action.
    actions = jnp.stack([batch.action[:, 0], (batch.action[:, 0] + 1) % A])

    @jax.jit
    def run(params, key):
        value, gradient = jax.value_and_grad(
            lambda p: model.loss({"params": p}, batch, key), has_aux=True
        )(params)
        carry, _ = model.observe({"params": params}, batch, key, 2)

        def dream(action):
            def step(carry, step_key):
                return model.imagine({"params": params}, carry, action, step_key)

            return jax.lax.scan(step, carry, jax.random.split(key, 2))

        carry, predictions = jax.vmap(dream)(actions)
        decoded = jax.vmap(lambda c: model.decode({"params": params}, c))(carry)
        return value, gradient, predictions, decoded

    (loss, (state, metrics)), gradient, predictions, decoded = run(params, KEY)
    assert state == {}  # no frames, no BatchNorm
    leaves = jax.tree.leaves((loss, metrics, gradient, predictions, decoded))
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(x).all() for x in leaves)
    unused = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not (leaf != 0.0).any()
    ]
    assert unused == []
    code = config.code_size if config.tokenizer == "vq" else V
    assert model.feature_size == N * code + D
    assert predictions.features.shape == (2, 2, B, model.feature_size)
    assert predictions.reward.shape == predictions.continuation.shape == (2, 2, B)
    assert decoded.shape == (2, B, F)
    # The action reaches the hidden state of the very step it is taken in.
    hidden = predictions.features[:, 0, :, -D:]
    assert (np.abs(hidden[0] - hidden[1]).max(-1) > 1e-5).all()


def test_vectors_are_decoded_in_their_own_scale():
    variables = random_variables(CONFIG)
    model = make_git_storm(CONFIG, SPEC)

    @jax.jit
    def run():
        carry, _ = model.observe(variables, batch_of(), KEY, 0)
        raw = part(CONFIG, variables, lambda m, v: m.tokenizer.decode(v), carry.vectors)
        return model.decode(variables, carry), raw

    decoded, raw = run()
    np.testing.assert_allclose(decoded, np.sign(raw) * np.expm1(np.abs(raw)), rtol=1e-5)


def scan_lengths(config):
    variables = random_variables(config)
    jaxpr = jax.make_jaxpr(lambda hidden: part(config, variables, "prior_sample", hidden, KEY))(
        HIDDEN[:, 0]
    )
    return [int(length) for length in re.findall(r"scan\[.*?length=(\d+)", str(jaxpr), re.DOTALL)]


def test_decoders_get_the_rounds_of_the_config():
    assert scan_lengths(head()) == []
    assert scan_lengths(head(draft_rounds=3, revise_rounds=2, repetitions=4)) == [3 + 2 * 4]
    assert scan_lengths(head(decoder="confidence", confidence_steps=3)) == [3]


@pytest.mark.parametrize("decoder", ["draft_and_revise", "confidence"])
def test_a_temperature_near_zero_takes_the_mode(decoder):
    def samples(temperature):
        config = head(decoder=decoder, confidence_steps=1, temperature=temperature)
        variables = random_variables(config)
        sample = jax.jit(lambda key: part(config, variables, "prior_sample", HIDDEN[:, 0], key))
        return np.stack([sample(jax.random.key(seed)) for seed in range(8)])

    cold, warm = samples(1e-4), samples(1.0)
    np.testing.assert_array_equal(cold, cold[:1].repeat(8, 0))
    assert (warm != warm[:1]).any()


# Acting


@pytest.fixture(scope="module")
def observers():
    """Features of a context, per acting latent, and the prior's own sample."""
    variables = random_variables(CONFIG)

    def make(acting_latent):
        model = make_git_storm(vary(acting_latent=acting_latent), SPEC)
        return jax.jit(lambda context: model.observe(variables, context, KEY, 0)[1])

    return make("posterior"), make("prior"), variables


def test_acting_on_the_prior_ignores_the_current_frame_but_for_a_first_one(observers):
    posterior, prior, variables = observers
    context = batch_of()
    seen = context._replace(observation=context.observation.at[:, -1].multiply(-1.0))
    np.testing.assert_array_equal(prior(context), prior(seen))
    assert (posterior(context) != posterior(seen)).any()
    # The latent is the prior's sample from the hidden state beside it.
    features = prior(context)
    sample = part(CONFIG, variables, "prior_sample", features[:, N * V :], jax.random.split(KEY)[1])
    np.testing.assert_array_equal(features[:, : N * V], sample.reshape(B, -1))
    np.testing.assert_array_equal(features[:, N * V :], posterior(context)[:, N * V :])
    # A first frame has no prediction.
    first = context._replace(is_first=context.is_first.at[0, -1].set(True))
    np.testing.assert_array_equal(prior(first)[0], posterior(first)[0])
    np.testing.assert_array_equal(prior(first)[1], prior(context)[1])
    # Nor has a frame that nothing precedes.
    single = jax.tree.map(lambda x: x[:, -1:], context)
    np.testing.assert_array_equal(prior(single), posterior(single))
    np.testing.assert_array_equal(prior(single)[:, N * V :], 0.0)


# Errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (vary(heads=3), r"model.width=8 .* model.heads=3"),
        (head(heads=3), r"model.maskgit.width=8 .* model.maskgit.heads=3"),
        (vary(num_tokens=3), r"model.num_tokens=3 .* model.width=8 .* condition=broadcast"),
        (head(draft_rounds=5), r"model.maskgit.draft_rounds=5 .* model.num_tokens=4"),
        (head(revise_rounds=0), r"model.maskgit.revise_rounds=0 .* model.num_tokens=4"),
        (
            head(decoder="confidence", confidence_steps=5),
            r"model.maskgit.confidence_steps=5 .* model.num_tokens=4",
        ),
        (head(repetitions=-1), r"model.maskgit.repetitions=-1 must not be negative"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_git_storm(config, SPEC)


def test_settings_that_are_not_used_are_not_checked():
    make_git_storm(head(confidence_steps=99), SPEC)
    make_git_storm(head(decoder="confidence", confidence_steps=4, draft_rounds=99), SPEC)
    mlp = dataclasses.replace(head(draft_rounds=99), prior="mlp", num_tokens=3)
    make_git_storm(mlp, SPEC)


def test_a_horizon_beyond_the_position_table_is_refused():
    model, variables = make_git_storm(CONFIG, SPEC), random_variables(CONFIG)
    jax.eval_shape(lambda: model.observe(variables, batch_of(), KEY, 5)[1])
    with pytest.raises(ValueError, match=r"5 frames .* 6 steps .* model.max_length=10 .* 11"):
        model.observe(variables, batch_of(), KEY, 6)


def test_a_batch_without_its_time_axis_is_refused():
    model, variables = make_git_storm(CONFIG, SPEC), random_variables(CONFIG)
    frames = jax.tree.map(lambda x: x[:, 0], batch_of())
    with pytest.raises(AssertionError):
        model.loss(variables, frames, KEY)
    with pytest.raises(AssertionError):
        model.observe(variables, frames, KEY, 1)


def test_variables_can_be_made_outside_of_the_mapped_axis():
    mapped = jax.eval_shape(make_git_storm(CONFIG, SPEC, axis_name="device").init, KEY)
    assert mapped == jax.eval_shape(make_git_storm(CONFIG, SPEC).init, KEY)
