"""The views of sampled sequences, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.data.views import last, segment_ids, transitions, windows
from worldmodels_jax.types import EnvSpec

# Two sequences of six records. The first terminates at 2 and begins anew at 3; the second starts
# with a reset, is truncated at 4 and begins anew at 5.
SPEC = EnvSpec("views", (1,), "float32", 2, True, 10)
BATCH = empty_records(SPEC, (2, 6))._replace(
    reward=jnp.array([[9.0, 1.0, 2.0, 0.0, 3.0, 4.0], [0.0, 5.0, 6.0, 7.0, 8.0, 0.0]]),
    terminated=jnp.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool),
    truncated=jnp.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]], bool),
    is_first=jnp.array([[0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]], bool),
)


def test_targets_are_what_was_received_on_arrival():
    target = transitions(BATCH)
    np.testing.assert_array_equal(
        target.reward, [[1.0, 2.0, 0.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 0.0]]
    )
    # A truncation is no termination: the state had a future.
    np.testing.assert_array_equal(target.terminated, [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_only_the_pair_of_a_last_and_a_first_record_is_no_transition():
    valid = transitions(BATCH).valid
    assert valid.dtype == bool
    np.testing.assert_array_equal(valid, [[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]])


def test_segments_count_episodes_from_the_start_of_the_sequence():
    segments = segment_ids(BATCH.is_first)
    assert segments.dtype == jnp.int32
    np.testing.assert_array_equal(segments, [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 2]])


def test_last_records_are_terminal_or_truncated():
    np.testing.assert_array_equal(BATCH.is_last, [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]])


def test_windows_end_at_the_last_steps():
    x = jnp.arange(10).reshape(2, 5)
    expected = [[0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 6, 7], [6, 7, 8], [7, 8, 9]]
    np.testing.assert_array_equal(windows(x, 3), expected)
    np.testing.assert_array_equal(windows(x, 1), x)
    np.testing.assert_array_equal(windows(x[..., None], 5)[..., 0], np.arange(10)[:, None])
    with pytest.raises(ValueError, match="6 starts do not fit a sequence of 5 steps"):
        windows(x, 6)


def test_the_last_steps_are_in_the_order_of_sequences_then_of_time():
    x = jnp.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(last(x, 2), [3, 4, 8, 9])
    np.testing.assert_array_equal(last(x[..., None], 1), [[4], [9]])
    with pytest.raises(ValueError, match="0 starts do not fit a sequence of 5 steps"):
        last(x, 0)
