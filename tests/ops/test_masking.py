"""Masks, partitions and decoders against literals, slow NumPy decoders and exact distributions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from worldmodels_jax.ops import masking

DRAWS = 4096


def assert_distribution(samples, probs):
    """Chi-square of integer samples against probabilities; a false alarm once in 10^4 keys."""
    counts = np.bincount(np.asarray(samples).ravel(), minlength=len(probs))
    possible = np.asarray(probs) > 0
    assert counts[~possible].sum() == 0
    expected = np.asarray(probs)[possible]
    expected = expected / expected.sum() * counts.sum()
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-4


# Training masks


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (0.0, 32),
        (0.1, 32),  # 31.6 masked tokens are 32: the ceiling, not the floor
        (0.5, 23),  # 32 cos(pi/4) = 22.6
        (2 / 3, 16),  # 32 cos(pi/3) = 16 exactly, and rounding must not make it 17
        (0.99, 1),
        (0.9999999, 1),  # never 0
    ],
)
def test_number_of_masked_tokens(u, expected):
    assert masking.num_masked(jnp.float32(u), 32) == expected


def test_training_mask_has_the_size_its_scale_says():
    mask, scale = masking.training_mask(jax.random.key(0), (3, 200, 32))
    assert mask.shape == (3, 200, 32)
    assert mask.dtype == bool
    assert scale.shape == (3, 200)
    assert scale.dtype == jnp.float32
    np.testing.assert_allclose(mask.sum(-1) * scale, 32.0, rtol=1e-6)


def test_size_of_the_training_mask_follows_the_cosine():
    mask, _ = masking.training_mask(jax.random.key(1), (DRAWS, 8))
    # ceil(8 cos(pi u / 2)) = m where (m - 1) / 8 < cos(pi u / 2) <= m / 8.
    edges = 2 / np.pi * np.arccos(np.arange(9) / 8)
    assert_distribution(mask.sum(-1) - 1, edges[:-1] - edges[1:])


def test_training_mask_is_uniform_over_positions():
    mask, _ = masking.training_mask(jax.random.key(2), (DRAWS, 4))
    mask = np.asarray(mask)
    for size in (1, 2, 3):
        subsets = {s: i for i, s in enumerate(itertools.combinations(range(4), size))}
        drawn = [subsets[tuple(np.flatnonzero(row))] for row in mask[mask.sum(-1) == size]]
        assert_distribution(drawn, np.full(len(subsets), 1 / len(subsets)))


def test_ranks_are_uniform_permutations():
    ranks = np.asarray(masking.random_ranks(jax.random.key(3), (DRAWS, 3)))
    assert ranks.dtype == np.int32
    permutations = {p: i for i, p in enumerate(itertools.permutations(range(3)))}
    assert_distribution([permutations[tuple(row)] for row in ranks], np.full(6, 1 / 6))


def test_equal_noise_still_gives_a_permutation(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    np.testing.assert_array_equal(masking.random_ranks(jax.random.key(0), (5,)), range(5))


# Partitions


@pytest.mark.parametrize(("tokens", "groups"), [(32, 1), (32, 3), (32, 5), (32, 32), (7, 3)])
def test_partition_is_a_partition(tokens, groups):
    masks = np.asarray(masking.partition(jax.random.key(0), 16, tokens, groups))
    assert masks.shape == (groups, 16, tokens)
    np.testing.assert_array_equal(masks.sum(0), 1)
    sizes = masks.sum(-1)
    assert sizes.max() - sizes.min() <= 1
    if groups > 1:
        assert len({sample.tobytes() for sample in masks.swapaxes(0, 1)}) > 1  # one per sample


def test_partition_puts_every_position_in_every_group():
    masks = np.asarray(masking.partition(jax.random.key(1), DRAWS, 6, 3))
    for position in range(6):
        assert_distribution(masks[:, :, position].argmax(0), np.full(3, 1 / 3))


@pytest.mark.parametrize("groups", [0, 8])
def test_partition_refuses_an_impossible_number_of_groups(groups):
    with pytest.raises(ValueError, match=f"7 tokens into {groups} groups"):
        masking.partition(jax.random.key(0), 1, 7, groups)


# Draft and revise


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ((1, 1, 1), (1,)),  # the paper's: one evaluation of the head
        ((4, 1, 3), (1,)),
        ((1, 4, 2), (1, 4, 4)),
        ((4, 2, 0), (4,)),
        ((4, 4, 1), (4, 4)),
    ],
)
def test_live_rounds(rounds, expected):
    assert masking.live_rounds(*rounds) == expected


N, V = 6, 5


def summing_head(tokens):
    """All mass of position i on (sum of the visible tokens + i) mod V: shows what was visible."""
    visible = jnp.where(tokens == V, 0, tokens).sum(-1, keepdims=True)
    return jnp.log(jax.nn.one_hot((visible + jnp.arange(N)) % V, V))


def slow_draft_and_revise(key, batch, rounds):
    keys = jax.random.split(key, len(rounds) + 1)
    tokens = np.full((batch, N), V)
    for round_key, groups in zip(keys, rounds, strict=False):
        for mask in np.asarray(masking.partition(round_key, batch, N, groups)):
            for b in range(batch):
                tokens[b, mask[b]] = V
                visible = sum(t for t in tokens[b] if t != V)
                for i in np.flatnonzero(mask[b]):
                    tokens[b, i] = (visible + i) % V
    return tokens


@pytest.mark.parametrize("rounds", [(1, 1, 1), (N, 2, 0), (4, 3, 2), (1, 4, 2)])
def test_draft_and_revise_equals_a_slow_one(rounds):
    key = jax.random.key(7)
    tokens = masking.draft_and_revise(
        summing_head,
        key,
        batch=3,
        num_tokens=N,
        mask_token=V,
        **dict(zip(("draft_rounds", "revise_rounds", "repetitions"), rounds, strict=True)),
    )
    assert tokens.dtype == jnp.int32
    expected = slow_draft_and_revise(key, 3, masking.live_rounds(*rounds))
    np.testing.assert_array_equal(tokens, expected)


def recording(head):
    """The head and the list of what it is shown; to be run without jit."""
    shown = []

    def record(tokens):
        shown.append(np.asarray(tokens))
        return head(tokens)

    return record, shown


def random_head(tokens):
    """A fixed, full distribution that depends on every visible token."""
    mixed = jnp.sin(jnp.arange(1, N + 1) * (tokens + 1.0)).sum(-1)
    return jax.nn.log_softmax(jnp.sin(mixed[:, None, None] + jnp.arange(N * V).reshape(N, V)))


def test_only_masked_positions_change_and_drafts_leave_no_mask():
    head, shown = recording(random_head)
    sizes = {"batch": 2, "num_tokens": N, "mask_token": V}
    with jax.disable_jit():
        last = masking.draft_and_revise(
            head, jax.random.key(0), draft_rounds=3, revise_rounds=2, repetitions=2, **sizes
        )
    shown.append(np.asarray(last))
    assert len(shown) == 3 + 2 * 2 + 1
    for number, (before, after) in enumerate(itertools.pairwise(shown)):
        # What was visible in one step is either still the same or hidden for the next.
        kept = (before != V) & (after != V)
        np.testing.assert_array_equal(before[kept], after[kept])
        if number >= 3:
            assert set((before == V).sum(-1)) == {N // 2}  # the groups of a revision
    drafted = [(tokens == V).sum(-1) for tokens in shown[:3]]
    np.testing.assert_array_equal(drafted, [[6, 6], [4, 4], [2, 2]])
    assert (shown[-1] < V).all()
    assert (shown[-1] >= 0).all()


def scan_lengths(**rounds):
    jaxpr = jax.make_jaxpr(
        functools.partial(
            masking.draft_and_revise, random_head, batch=2, num_tokens=N, mask_token=V, **rounds
        )
    )(jax.random.key(0))
    return [eqn.params["length"] for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]


def test_dead_rounds_cost_nothing():
    assert scan_lengths(draft_rounds=4, revise_rounds=1, repetitions=3) == []
    assert scan_lengths(draft_rounds=1, revise_rounds=4, repetitions=2) == [9]


PAIR = jax.nn.log_softmax(
    2 * jax.random.normal(jax.random.key(5), (3, 3, 2, 2))
)  # head of two binary tokens: PAIR[token 0, token 1], 2 being [MASK]


def pair_joint(*, independent):
    """The exact joint of two tokens drafted at once, or one after the other in random order."""
    p = np.exp(np.asarray(PAIR, np.float64))
    joint = np.zeros((2, 2))
    for a, b in itertools.product(range(2), range(2)):
        if independent:
            joint[a, b] = p[2, 2, 0, a] * p[2, 2, 1, b]
        else:
            joint[a, b] = p[2, 2, 0, a] * p[a, 2, 1, b] / 2 + p[2, 2, 1, b] * p[2, b, 0, a] / 2
    return joint.ravel()


@pytest.mark.parametrize(
    ("rounds", "independent"), [((1, 1, 1), True), ((2, 1, 2), True), ((2, 1, 0), False)]
)
def test_distribution_of_the_decoded_tokens(rounds, independent):
    draft, revise, repetitions = rounds
    tokens = masking.draft_and_revise(
        lambda t: PAIR[t[:, 0], t[:, 1]],
        jax.random.key(11),
        batch=DRAWS,
        num_tokens=2,
        mask_token=2,
        draft_rounds=draft,
        revise_rounds=revise,
        repetitions=repetitions,
    )
    assert_distribution(tokens @ jnp.array([2, 1]), pair_joint(independent=independent))
    # The two joints are far enough apart for this test to tell them.
    assert np.abs(pair_joint(independent=True) - pair_joint(independent=False)).max() > 0.05


@pytest.mark.parametrize(
    "decode",
    [masking.draft_and_revise, functools.partial(masking.confidence_decode, steps=1)],
    ids=["draft_and_revise", "confidence"],
)
def test_temperature_one_half_squares_the_probabilities(decode):
    probs = np.array([0.1, 0.2, 0.3, 0.4])
    tokens = decode(
        lambda t: jnp.broadcast_to(jnp.log(probs), (*t.shape, 4)),
        jax.random.key(3),
        batch=DRAWS,
        num_tokens=1,
        mask_token=4,
        temperature=0.5,
    )
    assert_distribution(tokens, probs**2 / (probs**2).sum())


# Confidence decoding


def test_confidence_decoding_reveals_by_the_cosine_and_keeps_what_it_revealed():
    head, shown = recording(random_head)
    with jax.disable_jit():
        last = masking.confidence_decode(
            head, jax.random.key(0), batch=3, num_tokens=N, mask_token=V, steps=4
        )
    shown.append(np.asarray(last))
    # 6 cos(pi/8) = 5.5, 6 cos(pi/4) = 4.2, 6 cos(3 pi/8) = 2.3.
    hidden = [(tokens == V).sum(-1) for tokens in shown]
    np.testing.assert_array_equal(hidden, [[6] * 3, [5] * 3, [4] * 3, [2] * 3, [0] * 3])
    for before, after in itertools.pairwise(shown):
        np.testing.assert_array_equal(before[before != V], after[before != V])


@pytest.mark.parametrize(("tokens", "steps"), [(32, 32), (32, 20), (7, 7), (5, 1)])
def test_every_step_of_confidence_decoding_reveals_a_token(tokens, steps):
    # The class is the number of visible tokens, that is, one class for each step that revealed.
    def head(t):
        visible = (t != tokens).sum(-1)[:, None, None]
        return jnp.where(jnp.arange(tokens) == visible, jnp.zeros((*t.shape, 1)), -jnp.inf)

    out = masking.confidence_decode(
        head, jax.random.key(0), batch=2, num_tokens=tokens, mask_token=tokens, steps=steps
    )
    for row in np.asarray(out):
        assert len(set(row)) == steps
        assert row.max() < tokens


def step_head(confidence):
    """Class = step, of a confidence that depends on position and step (not normalised)."""
    confidence = jnp.asarray(confidence, jnp.float32)

    def head(tokens):
        visible = (tokens != N).sum(-1)  # N steps reveal one token each
        scores = confidence[visible % N]
        return jnp.where(jax.nn.one_hot(visible, N)[:, None] > 0, scores[..., None], -jnp.inf)

    return head


def greedy(confidence):
    return masking.confidence_decode(
        step_head(confidence),
        jax.random.key(0),
        batch=1,
        num_tokens=N,
        mask_token=N,
        steps=N,
        choice_temperature=0.0,
    )[0]


def test_greedy_order_is_that_of_confidence():
    confidence = [-3.0, -1.0, -6.0, -2.0, -5.0, -4.0]
    np.testing.assert_array_equal(greedy([confidence] * N), [2, 0, 5, 1, 4, 3])


def test_greedy_order_follows_the_confidence_of_the_step():
    confidence = -np.random.default_rng(0).uniform(0, 9, (N, N))
    expected = np.full(N, -1)
    for step in range(N):
        hidden = np.flatnonzero(expected < 0)
        expected[hidden[confidence[step, hidden].argmax()]] = step
    np.testing.assert_array_equal(greedy(confidence), expected)


def test_noise_shuffles_the_order_and_is_annealed():
    # Gumbel noise of scale 1 on log p reveals a token first with probability p. Half way through
    # the two steps a choice temperature of 2 has come down to that.
    confidence = np.array([0.8, 0.2])

    def head(tokens):
        visible = (tokens != 2).sum(-1)  # the class is the step, as above
        one_hot = jax.nn.one_hot(visible, 2)[:, None] > 0
        return jnp.where(one_hot, jnp.log(confidence)[:, None], -jnp.inf)

    tokens = masking.confidence_decode(
        head,
        jax.random.key(0),
        batch=DRAWS,
        num_tokens=2,
        mask_token=2,
        steps=2,
        choice_temperature=2.0,
    )
    assert_distribution((tokens == 0).argmax(-1), confidence)


@pytest.mark.parametrize("steps", [0, N + 1])
def test_confidence_decoding_refuses_an_impossible_number_of_steps(steps):
    with pytest.raises(ValueError, match=f"{N} tokens in {steps} steps"):
        masking.confidence_decode(
            random_head, jax.random.key(0), batch=1, num_tokens=N, mask_token=V, steps=steps
        )


def test_a_head_of_the_wrong_size_is_refused():
    with pytest.raises(AssertionError):
        masking.draft_and_revise(
            random_head, jax.random.key(0), batch=1, num_tokens=N, mask_token=V + 1
        )
