"""GIT-STORM: cache, resets, losses and their gradients, every ablation, every error.

Most tests use vector observations, which spare the compilation of convolutions, and random
parameters, because those that start at zero hide mistakes.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from worldmodels_jax.models.git_storm import _Module, make_git_storm
from worldmodels_jax.models.git_storm_config import GitStormConfig, MaskGITConfig
from worldmodels_jax.nn.tokenizer import Posterior
from worldmodels_jax.ops import categorical, masking, twohot
from worldmodels_jax.types import EnvSpec, Record

B, T, N, V, D, A, F = 2, 5, 4, 3, 8, 3, 5
SPEC = EnvSpec("vector", (F,), "float32", A, True, 100)
HEAD = MaskGITConfig(width=8, layers=1, heads=2, hidden=8)
CONFIG = GitStormConfig(
    maskgit=HEAD,
    num_tokens=N,
    num_classes=V,
    code_size=6,
    mlp_width=8,
    width=D,
    layers=2,
    heads=2,
    hidden=8,
    max_length=10,
    dropout=0.0,
    num_bins=21,
    free_bits=0.0,
)
KEY = jax.random.key(0)


def vary(**changes):
    return dataclasses.replace(CONFIG, **changes)


def head(**changes):
    return vary(maskgit=dataclasses.replace(HEAD, **changes))


def random_variables(config, spec=SPEC):
    """Parameters at which nothing is zero, saturated or lost in a normalisation."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        kind = path[-1].key
        mean, std = {"scale": (1.0, 0.2), "bias": (0.0, 0.2)}.get(kind, (0.0, 0.7))
        return jnp.asarray(rng.normal(mean, std, x.shape), jnp.float32)

    shapes = jax.eval_shape(make_git_storm(config, spec).init, KEY)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch_of(spec=SPEC, seed=0):
    """Two episodes of 2 and T - 2 records; the first terminates in row 0, is cut in row 1."""
    rng = np.random.default_rng(seed)
    flags = {name: np.zeros((B, T), bool) for name in ("terminated", "truncated", "is_first")}
    flags["terminated"][0, 1] = flags["truncated"][1, 1] = True
    flags["is_first"][:, 2] = True
    if spec.discrete:
        action = rng.integers(0, A, (B, T), np.int32)
    else:
        action = rng.uniform(-1, 1, (B, T, A)).astype(np.float32)
    records = Record(
        observation=rng.normal(0, 2, (B, T, F)).astype(np.float32),
        action=action,
        reward=np.where(flags["is_first"], 0.0, rng.normal(0, 2, (B, T))).astype(np.float32),
        **flags,
    )
    return jax.tree.map(jnp.asarray, records)


def encode(module, observation, key):
    return module.tokenizer.encode(observation, key, train=True)


def part(config, variables, method, *args):
    """A method of the model's parts, or a function of them."""
    return _Module(config, SPEC).apply(variables, *args, method=method)


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


# Losses


TERMS = (
    "reconstruction_loss",
    "reward_loss",
    "termination_loss",
    "dynamics_loss",
    "representation_loss",
)


@pytest.mark.parametrize("cross", [False, True], ids=["within episodes", "across episodes"])
def test_where_each_loss_term_sends_its_gradient(cross):
    config = vary(cross_episode_attention=cross)
    model, variables, records = make_git_storm(config, SPEC), random_variables(config), batch_of()

    @jax.jit
    @lambda terms: jax.jacrev(terms, argnums=(0, 1))
    def jacobian(params, observation):
        batch = records._replace(observation=observation)
        metrics = model.loss({"params": params}, batch, KEY)[1][1]
        return {name: metrics[name] for name in TERMS}

    jacobian = jax.tree.map(np.asarray, jacobian(variables["params"], records.observation))

    # Frames 0 1 | 2 3 4: there are transitions from 0, 2 and 3, and h_2 and h_3 see frame 1 across
    # the reset only.
    through_hidden = [True, cross, True, True, False]
    for name, frames in {
        "reconstruction_loss": [True] * T,
        "reward_loss": through_hidden,
        "termination_loss": through_hidden,
        # Not to the posteriors of the frames that are predicted: 1, 3 and 4 ...
        "dynamics_loss": through_hidden,
        # ... and to nothing else.
        "representation_loss": [False, True, False, True, True],
    }.items():
        reached = (jacobian[name][1] != 0.0).any(-1)
        np.testing.assert_array_equal(reached, [frames] * B, name)

    for name, parts in {
        "reconstruction_loss": {"tokenizer"},
        "reward_loss": {"reward", "transformer", "mixer", "tokenizer"},
        "termination_loss": {"termination", "transformer", "mixer", "tokenizer"},
        "dynamics_loss": {"prior", "transformer", "mixer", "tokenizer"},
        "representation_loss": {"tokenizer"},  # neither the prior nor its hidden state
    }.items():
        reached = {
            part
            for part, tree in jacobian[name][0].items()
            if any((leaf != 0.0).any() for leaf in jax.tree.leaves(tree))
        }
        assert reached == parts, name


@pytest.mark.parametrize("prior", ["maskgit", "mlp"])
def test_loss_is_the_sum_of_its_terms_over_the_valid_transitions(prior):
    config = vary(prior=prior, free_bits=1.0, unimix=0.1)
    model, variables, batch = make_git_storm(config, SPEC), random_variables(config), batch_of()

    @jax.jit
    def run():
        _, key_loss = jax.random.split(KEY)
        key_posterior, key_mask = jax.random.split(key_loss)
        posterior = part(config, variables, encode, batch.observation, key_posterior)
        decoded = part(config, variables, lambda m, v: m.tokenizer.decode(v), posterior.vectors)
        segments = jnp.cumsum(batch.is_first, 1)
        hidden, _ = part(
            config, variables, "dynamics", posterior.vectors, batch.action, segments, None, True
        )
        log_probs, weight = part(
            config, variables, "prior_training", hidden[:, :-1], posterior, key_mask
        )
        reward = part(config, variables, lambda m, h: m.reward(h), hidden)
        termination = part(config, variables, lambda m, h: m.termination(h)[..., 0], hidden)
        pieces = (posterior.probs, decoded, log_probs, weight, reward, termination)
        return pieces, model.loss(variables, batch, KEY)

    pieces, (loss, (_, metrics)) = run()
    probs, decoded, log_probs, weight, reward, termination = (np.asarray(x, float) for x in pieces)
    bins = np.linspace(-20, 20, config.num_bins)
    symlog = lambda x: np.sign(x) * np.log1p(np.abs(x))  # noqa: E731
    rows = {"reward_loss": [], "termination_loss": [], "dynamics_kl": []}
    for b, t in np.ndindex(B, T - 1):
        if batch.is_first[b, t + 1]:
            continue
        code = np.interp(bins, bins, np.zeros_like(bins))
        place = (symlog(float(batch.reward[b, t + 1])) + 20) / (bins[1] - bins[0])
        code[int(place)], code[int(place) + 1] = 1 - place % 1, place % 1
        rows["reward_loss"].append(-code @ scipy.special.log_softmax(reward[b, t]))
        sign = 1 if batch.terminated[b, t + 1] else -1
        rows["termination_loss"].append(-scipy.special.log_expit(sign * termination[b, t]))
        tokens = (probs[b, t + 1] * (np.log(probs[b, t + 1]) - log_probs[b, t])).sum(-1)
        rows["dynamics_kl"].append(tokens @ weight[b, t])
    expected = {name: np.mean(values) for name, values in rows.items()}
    assert len(rows["reward_loss"]) == B * 3
    expected["representation_kl"] = expected["dynamics_kl"]
    for kl in ("dynamics", "representation"):
        expected[f"{kl}_loss"] = max(1.0, expected[f"{kl}_kl"])
    error = decoded - symlog(np.asarray(batch.observation, float))
    expected["reconstruction_loss"] = (error**2).sum(-1).mean()
    expected["loss"] = (
        sum(expected[name] for name in TERMS[:3])
        + 0.5 * expected["dynamics_loss"]
        + 0.1 * expected["representation_loss"]
    )
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    assert loss == metrics["loss"]


def test_dropout_is_part_of_the_loss_and_of_nothing_else():
    def losses_and_features(dropout):
        # Without sampled latents and masks, dropout is all that the key can change.
        config = vary(prior="mlp", tokenizer="vq", dropout=dropout)
        model, variables, batch = make_git_storm(config, SPEC), random_variables(config), batch_of()

        @jax.jit
        def run(key):
            loss, _ = model.loss(variables, batch, key)
            return loss, model.observe(variables, batch, key, 0)[1]

        (first, features), (second, other) = (run(jax.random.key(seed)) for seed in (0, 1))
        np.testing.assert_array_equal(features, other)
        return float(first), float(second)

    assert len({*losses_and_features(0.0)}) == 1
    assert len({*losses_and_features(0.5)}) == 2


def posterior_of(classes):
    tokens = jax.nn.one_hot(classes, V)
    return Posterior(tokens, tokens, tokens, jnp.zeros(()))


@pytest.fixture(scope="module")
def prior_training():
    """The prior as it is trained, for tokens shown as the next or as the current frame."""
    variables = random_variables(CONFIG)

    def make(shown):
        config = head(input=shown)
        return jax.jit(
            lambda classes, hidden, key: part(
                config, variables, "prior_training", hidden, posterior_of(classes), key
            )
        )

    return {shown: make(shown) for shown in ("next", "current")}


HIDDEN = jax.random.normal(KEY, (B, T - 1, D))
CLASSES = jax.random.randint(KEY, (B, T, N), 0, V)


def test_masked_tokens_weigh_n_over_m_and_visible_ones_nothing(prior_training):
    _, weight = prior_training["next"](CLASSES, HIDDEN, KEY)
    mask, scale = masking.training_mask(KEY, (B, T - 1, N))
    np.testing.assert_allclose(weight, np.where(mask, scale[..., None], 0.0), rtol=1e-6)
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(weight.sum(-1), N, rtol=1e-6)


def test_the_prior_sees_the_visible_tokens_of_the_frame_it_predicts_and_no_masked_one(
    prior_training,
):
    mask = masking.training_mask(KEY, (B, T - 1, N))[0]
    other = (CLASSES + 1) % V

    def log_probs(classes):
        return prior_training["next"](classes, HIDDEN, KEY)[0]

    plain = log_probs(CLASSES)
    # Frame 0 is never predicted.
    masked = other.at[:, 1:].set(jnp.where(mask, other[:, 1:], CLASSES[:, 1:]))
    np.testing.assert_array_equal(log_probs(masked), plain)
    visible = CLASSES.at[:, 1:].set(jnp.where(mask, CLASSES[:, 1:], other[:, 1:]))
    changed = np.abs(log_probs(visible) - plain).max((-1, -2)) > 1e-6
    np.testing.assert_array_equal(changed, ~mask.all(-1))


def test_input_current_shows_the_frame_before(prior_training):
    following = prior_training["next"](CLASSES, HIDDEN, KEY)
    shifted = jnp.roll(CLASSES, -1, axis=1)  # frame t holds what frame t + 1 held
    current = prior_training["current"](shifted, HIDDEN, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), following, current)


def test_visible_tokens_send_no_gradient(prior_training):
    mask = masking.training_mask(KEY, (B, T - 1, N))[0]
    q = jax.nn.softmax(jax.random.normal(KEY, (B, T - 1, N, V)))

    def weighted(q, log_probs, weight):
        dynamics, representation = categorical.balanced_kl(q, log_probs)
        return ((dynamics + representation) * weight).sum()

    log_probs, weight = prior_training["next"](CLASSES, HIDDEN, KEY)
    for gradient in jax.grad(weighted, argnums=(0, 1))(q, log_probs, weight):
        np.testing.assert_array_equal((gradient != 0.0).any(-1), mask)


# A world of frames: the shared tiny model


@pytest.fixture(scope="module")
def update(world_model):
    """Value and gradient of the loss."""

    @jax.jit
    def update(variables, batch, key):
        rest = {name: value for name, value in variables.items() if name != "params"}
        return jax.value_and_grad(
            lambda params: world_model.loss({"params": params, **rest}, batch, key), has_aux=True
        )(variables["params"])

    return update


def test_update_of_frames(update, model_variables, records):
    (loss, (state, metrics)), gradient = update(model_variables, records, KEY)
    assert loss.dtype == jnp.float32
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, gradient)))
    assert set(state) == set(model_variables) - {"params"} == {"batch_stats"}
    same_shape = jax.tree.map(
        lambda a, b: a.shape == b.shape, state["batch_stats"], (model_variables["batch_stats"])
    )
    assert all(jax.tree.leaves(same_shape))
    moved = jax.tree.map(
        lambda a, b: (a != b).any(), state, {"batch_stats": model_variables["batch_stats"]}
    )
    assert all(jax.tree.leaves(moved))


def test_all_that_is_random_comes_from_the_key(update, model_variables, records):
    first, same, other = (
        update(model_variables, records, jax.random.key(seed))[0][0] for seed in (0, 0, 1)
    )
    assert first == same
    assert first != other


def test_an_ignorant_prior_has_the_perplexity_of_the_uniform(update, model_variables, records):
    params = model_variables["params"]
    params = {**params, "prior": jax.tree.map(jnp.zeros_like, params["prior"])}
    metrics = update({**model_variables, "params": params}, records, KEY)[0][1][1]
    np.testing.assert_allclose(metrics["token_perplexity"], 4.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["prior_entropy"], 4 * np.log(4.0), rtol=1e-5)
    # KL to the uniform is what the posterior's entropy lacks of the maximum, but for the masking.
    assert 1.0 <= metrics["codebook_use"] <= 4.0 + 1e-4


def test_frames_are_observed_imagined_and_decoded(
    world_model, model_variables, records, model_config, spec
):
    @jax.jit
    def run(variables, key):
        carry, features = world_model.observe(variables, records, key, 2)
        frames = [world_model.decode(variables, carry)]
        raw = _Module(model_config, spec).apply(
            variables, carry.vectors, method=lambda m, v: m.tokenizer.decode(v)
        )
        for _ in range(2):
            carry, prediction = world_model.imagine(variables, carry, records.action[:, 0], key)
            frames.append(world_model.decode(variables, carry))
        return features, prediction, jnp.stack(frames), raw, carry

    features, prediction, frames, raw, carry = run(model_variables, KEY)
    assert features.shape == prediction.features.shape == (2, world_model.feature_size)
    assert prediction.reward.shape == prediction.continuation.shape == (2,)
    assert frames.shape == (3, 2, 10, 5, 1)
    assert frames.dtype == jnp.uint8
    np.testing.assert_array_equal(frames[0], np.rint(np.clip(raw, 0, 1) * 255))
    assert carry.cache.position == 7 + 2
    np.testing.assert_array_equal(carry.segment, [1, 1])


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
