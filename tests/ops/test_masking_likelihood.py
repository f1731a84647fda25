"""Likelihoods of decoded tokens against slow chains and exact distributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.ops import masking

N, V = 6, 5


def random_head(tokens):
    """A fixed, full distribution that depends on every visible token."""
    n = tokens.shape[-1]
    mixed = jnp.sin(jnp.arange(1, n + 1) * (tokens + 1.0)).sum(-1)
    return jax.nn.log_softmax(3 * jnp.sin(mixed[:, None, None] + jnp.arange(n * V).reshape(n, V)))


@pytest.mark.parametrize(("groups", "temperature"), [(1, 1.0), (4, 1.0), (N, 0.5)])
def test_the_chain_equals_a_slow_one(groups, temperature):
    tokens = np.random.default_rng(0).integers(0, V, (3, N), np.int32)
    masks = masking.partition(jax.random.key(1), 3, N, groups)
    log_p = masking.chain_log_likelihood(
        random_head, jnp.asarray(tokens), masks, mask_token=V, temperature=temperature
    )
    expected = np.full((3, N), np.nan)
    for b in range(3):
        shown = np.full(N, V)
        for mask in np.asarray(masks):
            chosen = np.flatnonzero(mask[b])
            probs = np.exp(np.asarray(random_head(jnp.asarray(shown[None]))[0], float))
            probs = probs ** (1 / temperature)
            probs /= probs.sum(-1, keepdims=True)
            for i in chosen:
                expected[b, i] = np.log(probs[i, tokens[b, i]])
            shown[chosen] = tokens[b, chosen]
    assert log_p.dtype == jnp.float32
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-5)


PAIR = jax.nn.log_softmax(
    2 * jax.random.normal(jax.random.key(5), (3, 3, 2, 2))
)  # head of two binary tokens: PAIR[token 0, token 1], 2 being [MASK]
PAIRS = jnp.array(list(itertools.product(range(2), range(2))))


@pytest.mark.parametrize("rounds", [1, 2])
def test_likelihoods_are_those_of_what_the_draft_samples(rounds):
    """Averaged over the random partitions, the frequencies of drafted pairs."""
    draws = 8192
    head = lambda t: PAIR[t[:, 0], t[:, 1]]  # noqa: E731
    drafted = masking.draft_and_revise(
        head,
        jax.random.key(11),
        batch=draws,
        num_tokens=2,
        mask_token=2,
        draft_rounds=rounds,
        repetitions=0,
    )
    frequency = np.bincount(np.asarray(drafted @ jnp.array([2, 1])), minlength=4) / draws
    every = jnp.repeat(PAIRS, draws, axis=0)
    groups = masking.partition(jax.random.key(12), len(every), 2, rounds)
    log_p = masking.chain_log_likelihood(head, every, groups, mask_token=2)
    likelihood = np.exp(log_p.sum(-1)).reshape(4, draws)
    np.testing.assert_allclose(likelihood.mean(1), frequency, atol=0.02)
    # Every order by itself is a distribution.
    groups = jnp.repeat(groups[:, :1], 4, axis=1)
    log_p = masking.chain_log_likelihood(head, PAIRS, groups, mask_token=2)
    np.testing.assert_allclose(np.exp(log_p.sum(-1)).sum(), 1.0, rtol=1e-5)


def test_confidence_groups_have_the_sizes_of_the_schedule_in_random_order():
    draws = 2048
    groups = np.asarray(masking.confidence_groups(jax.random.key(0), draws, 6, 4))
    np.testing.assert_array_equal(groups.sum(0), 1)
    # 6 tokens, then 6 cos(pi/8) = 5.5, 6 cos(pi/4) = 4.2, 6 cos(3 pi/8) = 2.3 still masked.
    np.testing.assert_array_equal(groups.sum(-1), np.repeat([[1], [1], [2], [2]], draws, axis=1))
    frequency = groups.mean(1)  # (S, N)
    np.testing.assert_allclose(
        frequency, np.array([[1], [1], [2], [2]]) / 6 * np.ones(6), atol=0.06
    )


@pytest.mark.parametrize("steps", [0, N + 1])
def test_confidence_groups_refuse_an_impossible_number_of_steps(steps):
    with pytest.raises(ValueError, match=f"{N} tokens in {steps} steps"):
        masking.confidence_groups(jax.random.key(0), 1, N, steps)


def test_groups_of_another_batch_are_refused():
    groups = masking.partition(jax.random.key(0), 2, N, 2)
    with pytest.raises(AssertionError):
        masking.chain_log_likelihood(random_head, jnp.zeros((3, N), int), groups, mask_token=V)
