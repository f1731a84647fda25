"""Sampling of episodes by how often they were drawn, on rings of known episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from worldmodels_jax.data.replay import add, init_replay, sample_episodes
from worldmodels_jax.types import EnvSpec, Record

SPEC = EnvSpec("counter", (1,), "float32", 2, True, 10)
CAPACITY, LENGTH, DRAWS = 12, 4, 4000


def ring(firsts, writes, counts=None):
    """One environment whose record number i is i; episodes begin at ``firsts``."""
    replay = init_replay(SPEC, 1, CAPACITY, ["agent"])
    for number in range(writes):
        if counts is not None and number in counts:
            # The count an episode has when its first record has just been written.
            replay = add(replay, record(number, firsts))
            slot = number % CAPACITY
            draws = replay.draws["agent"].at[0, slot].set(counts[number])
            replay = replay._replace(draws={"agent": draws})
        else:
            replay = add(replay, record(number, firsts))
    return replay


def record(number, firsts):
    value = jnp.full(1, number, jnp.float32)
    false = jnp.zeros(1, bool)
    return Record(
        value[:, None], value.astype(jnp.int32), value, false, false, jnp.full(1, number in firsts)
    )


def draw(replay, key=0, **options):
    run = jax.jit(
        lambda replay, key: sample_episodes(
            replay, replay.draws["agent"], key, DRAWS, LENGTH, **options
        )
    )
    draws, batch = run(replay, jax.random.key(key))
    numbers = np.asarray(batch.reward).astype(int)
    np.testing.assert_array_equal(np.diff(numbers, axis=1), 1)
    return np.asarray(draws), numbers


def test_episodes_are_equally_likely_whatever_their_length():
    """Episodes of 1, 2 and 7 records: how often each was drawn is what the counts say."""
    draws, numbers = draw(ring({0, 1, 3}, 10))
    counts = draws[0, [0, 1, 3]]
    assert counts.sum() == draws.sum() == DRAWS
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    assert numbers.min() == 0
    assert numbers.max() == 9


def test_the_odds_of_an_episode_drawn_once_are_one_in_thirty_two():
    """(1 + 0)^-5 to (1 + 1)^-5, the paper's power."""
    draws, _ = draw(ring({0, 6}, 12, counts={6: 1}), power=5.0)
    fresh, drawn = draws[0, 0], draws[0, 6] - 1
    assert fresh + drawn == DRAWS
    assert scipy.stats.binomtest(int(drawn), DRAWS, 1 / 33).pvalue > 1e-4


def test_a_sequence_towards_the_end_ends_inside_its_episode():
    """Of episodes 0..4 and 5..11 only the latter has not been drawn a million times."""
    replay = ring({0, 5}, 12, counts={0: 10**6})
    _, numbers = draw(replay, power=5.0, towards_end=True)
    last = numbers[:, -1]
    # Uniform over records, then up to three later ones, but none beyond the end: by enumeration.
    expected = np.zeros(7)
    for begin in range(7):
        for later in range(LENGTH):
            expected[min(begin + later, 6)] += DRAWS / 7 / LENGTH
    counts = np.bincount(last - 5, minlength=7)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_a_sequence_holds_a_record_of_its_episode_at_any_place():
    """An episode of one record, between neighbours, at every place alike."""
    replay = ring({0, 6, 7}, 12, counts={0: 10**6, 7: 10**6})
    _, numbers = draw(replay, power=5.0)
    places = 6 - numbers[:, 0]
    counts = np.bincount(places, minlength=LENGTH)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("writes", [LENGTH, CAPACITY + 5, 3 * CAPACITY + 1])
def test_sequences_never_cross_the_write_head(writes):
    _, numbers = draw(ring(set(range(0, 40, 5)), writes), towards_end=bool(writes % 2))
    assert numbers.min() >= max(0, writes - CAPACITY)
    assert numbers.max() < writes


def test_an_episode_that_loses_its_beginning_keeps_its_count():
    """Twelve slots: record 12 overwrites 0, whose episode goes on to 6; its count moves with it."""
    replay = ring({0, 7}, 12, counts={0: 5, 7: 3})
    expected = np.zeros(CAPACITY, int)
    expected[[0, 7]] = 5, 3
    np.testing.assert_array_equal(replay.draws["agent"][0], expected)
    for number in range(12, 19):
        replay = add(replay, record(number, {0, 7}))
        expected[:] = 0
        oldest = number - CAPACITY + 1
        expected[7] = 3
        if oldest < 7:
            expected[oldest] = 5
        np.testing.assert_array_equal(replay.draws["agent"][0], expected)
    assert oldest == 7


def test_a_sequence_longer_than_the_ring_is_an_error():
    replay = init_replay(SPEC, 1, 3, ["agent"])
    with pytest.raises(ValueError, match="4 records do not fit a replay of 3 records"):
        sample_episodes(replay, replay.draws["agent"], jax.random.key(0), 2, LENGTH)
