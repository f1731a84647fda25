"""GIT-STORM: its losses and where each sends its gradient, its prior in training, its update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from git_storm_toys import (
    CONFIG,
    HIDDEN,
    KEY,
    SPEC,
    B,
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

from worldmodels_jax.models.git_storm import _Module, make_git_storm
from worldmodels_jax.nn.tokenizer import Posterior
from worldmodels_jax.ops import categorical, masking

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
