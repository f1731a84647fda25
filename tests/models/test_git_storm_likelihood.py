"""log p of the posterior's tokens: each decoding against a slow one, and what it may depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from worldmodels_jax.models.git_storm import _Module, make_git_storm
from worldmodels_jax.models.git_storm_config import GitStormConfig, MaskGITConfig
from worldmodels_jax.ops import masking
from worldmodels_jax.types import EnvSpec, Record

B, T, N, V, D, F = 8, 5, 4, 3, 8, 5
SPEC = EnvSpec("vector", (F,), "float32", 3, True, 100)
UNIMIX = 0.1
HEAD = MaskGITConfig(width=8, layers=1, heads=2, hidden=8, repetitions=0)
CONFIG = GitStormConfig(
    maskgit=HEAD,
    num_tokens=N,
    num_classes=V,
    mlp_width=8,
    width=D,
    layers=1,
    heads=2,
    hidden=8,
    max_length=T,
    dropout=0.5,  # never applied here: there is no key for it
    num_bins=21,
    unimix=UNIMIX,
)
KEY = jax.random.key(3)


def head(**changes):
    return dataclasses.replace(CONFIG, maskgit=dataclasses.replace(HEAD, **changes))


def random_variables(config):
    rng = np.random.default_rng(0)

    def draw(path, x):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.7, x.shape), jnp.float32)

    shapes = jax.eval_shape(make_git_storm(config, SPEC).init, KEY)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def batch():
    """Two episodes of 2 and T - 2 records in each row."""
    rng = np.random.default_rng(1)
    false = np.zeros((B, T), bool)
    first = false.copy()
    first[:, 2] = True
    observation = rng.normal(0, 2, (B, T, F)).astype(np.float32)
    action = rng.integers(0, 3, (B, T), np.int32)
    zeros = np.zeros((B, T), np.float32)
    return jax.tree.map(jnp.asarray, Record(observation, action, zeros, false, false, first))


def part(config, variables, method, *args):
    return _Module(config, SPEC).apply(variables, *args, method=method)


def tokens_and_hidden(config, variables, batch):
    """z_1..z_{T-1} and h_0..h_{T-2}, row by row."""
    key_posterior, key_order = jax.random.split(KEY)
    posterior = part(
        config,
        variables,
        lambda m: m.tokenizer.encode(batch.observation, key_posterior),
    )
    segments = jnp.cumsum(batch.is_first, 1)
    hidden, _ = part(
        config, variables, "dynamics", posterior.vectors, batch.action, segments, None, True
    )
    tokens = np.asarray(posterior.tokens[:, 1:].argmax(-1)).reshape(-1, N)
    return tokens, hidden[:, :-1].reshape(-1, D), key_order


def probabilities(logits):
    return (1 - UNIMIX) * scipy.special.softmax(np.asarray(logits, float), -1) + UNIMIX / V


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (dataclasses.replace(CONFIG, prior="mlp"), None),
        (head(), lambda key: masking.partition(key, B * (T - 1), N, 1)),
        (head(draft_rounds=3), lambda key: masking.partition(key, B * (T - 1), N, 3)),
        (
            head(decoder="confidence", confidence_steps=2, temperature=0.5),
            lambda key: masking.confidence_groups(key, B * (T - 1), N, 2),
        ),
    ],
    ids=["mlp", "full mask", "draft of three rounds", "confidence, cold"],
)
def test_likelihood_is_that_of_the_decoding(config, groups, batch):
    variables = random_variables(config)
    log_p = jax.jit(make_git_storm(config, SPEC).log_likelihood)(variables, batch, KEY)
    assert log_p.shape == (B, T - 1, N)
    assert log_p.dtype == jnp.float32
    tokens, hidden, key_order = tokens_and_hidden(config, variables, batch)
    rows = np.arange(len(tokens))[:, None]
    if groups is None:
        logits = part(config, variables, lambda m: m.prior(hidden)).reshape(-1, N, V)
        expected = np.log(probabilities(logits)[rows, np.arange(N), tokens])
    else:
        expected = np.full(tokens.shape, np.nan)
        shown = np.full(tokens.shape, V)
        for mask in np.asarray(groups(key_order)):
            logits = part(config, variables, lambda m, s: m.prior(s, hidden), jnp.asarray(shown))
            p = probabilities(logits) ** (1 / config.maskgit.temperature)
            p /= p.sum(-1, keepdims=True)
            chosen = np.log(p[rows, np.arange(N), tokens])
            expected[mask], shown[mask] = chosen[mask], tokens[mask]
    np.testing.assert_allclose(log_p.reshape(-1, N), expected, rtol=1e-3, atol=1e-4)
    assert np.ptp(expected) > 0.5


def test_a_draft_that_is_overwritten_is_not_what_counts(batch):
    """T_revise = 1 masks everything: nothing of the draft of four rounds is left."""
    variables = random_variables(CONFIG)

    def log_p(config):
        return make_git_storm(config, SPEC).log_likelihood(variables, batch, KEY)

    full = log_p(head())
    np.testing.assert_array_equal(log_p(head(draft_rounds=4, repetitions=2)), full)
    assert np.abs(log_p(head(draft_rounds=4)) - full).max() > 1e-3
    # Revisions that see other tokens have none of their own: the draft's is reported.
    np.testing.assert_array_equal(log_p(head(revise_rounds=2, repetitions=3)), full)


def test_likelihood_knows_the_past_of_the_episode_only(batch):
    variables = random_variables(CONFIG)
    log_p = jax.jit(make_git_storm(CONFIG, SPEC).log_likelihood)
    plain = log_p(variables, batch, KEY)

    def changed(**fields):
        other = log_p(variables, batch._replace(**fields), KEY)
        return (np.abs(other - plain).max((0, 2)) > 1e-5).tolist()

    observation, action = batch.observation, batch.action
    # Columns: log p of z_1 | z_2 z_3 z_4, whose episode begins at 2 (z_2 itself is not predicted,
    # and what stands there is for the caller to mask).
    after_0 = changed(observation=observation.at[:, 0].multiply(-1))
    assert after_0[0]
    assert not any(after_0[2:])
    assert changed(observation=observation.at[:, 3].multiply(-1)) == [False, False, True, True]
    assert changed(observation=observation.at[:, 4].multiply(-1)) == [False, False, False, True]
    assert changed(action=(action.at[:, 2].add(1)) % 3) == [False, False, True, True]
    assert changed(action=(action.at[:, 4].add(1)) % 3) == [False] * 4


def test_rows_do_not_meet_in_the_batch_statistics(world_model, model_variables, records):
    """Frames are encoded with the running statistics, as they are in imagination."""
    # Many rows: the tokens are sampled, and an untrained posterior is far from certain.
    records = jax.tree.map(lambda x: jnp.repeat(x, 16, axis=0), records)
    log_p = jax.jit(world_model.log_likelihood)
    plain = log_p(model_variables, records, KEY)
    assert plain.shape == (32, 7, 4)
    inverted = records.observation.at[16:].set(255 - records.observation[16:])
    other = log_p(model_variables, records._replace(observation=inverted), KEY)
    np.testing.assert_array_equal(other[:16], plain[:16])
    assert (other[16:] != plain[16:]).any()


def test_a_prior_that_knows_nothing_is_uniform(world_model, model_variables, records):
    params = model_variables["params"]
    params = {**params, "prior": jax.tree.map(jnp.zeros_like, params["prior"])}
    log_p = jax.jit(world_model.log_likelihood)({**model_variables, "params": params}, records, KEY)
    np.testing.assert_allclose(log_p, -np.log(4.0), rtol=1e-5)


def test_a_batch_without_its_time_axis_is_refused(batch):
    frames = jax.tree.map(lambda x: x[:, 0], batch)
    with pytest.raises(AssertionError):
        make_git_storm(CONFIG, SPEC).log_likelihood(random_variables(CONFIG), frames, KEY)
