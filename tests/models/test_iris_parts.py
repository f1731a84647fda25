"""The losses of IRIS and Delta-IRIS, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iris_toys import DELTA, K, N

from worldmodels_jax.data import views
from worldmodels_jax.models import iris_parts
from worldmodels_jax.models.iris_config import ReconstructionConfig
from worldmodels_jax.models.iris_dynamics import Slots

B = 2


def test_reconstruction_loss_by_hand():
    # One pixel of one of four frames is off by 0.3; of 2x3 pixels with one channel.
    frames = jnp.zeros((2, 2, 2, 3, 1))
    decoded = frames.at[1, 0, 1, 2, 0].set(0.3)
    valid = jnp.ones((2, 2), bool)
    config = ReconstructionConfig()
    loss, metrics = iris_parts.reconstruction_loss(config, decoded, frames, valid, None)
    assert metrics["max_pixel_error"] == pytest.approx(0.3**2 / 4)
    assert loss == pytest.approx(0.1 * 0.3 / 24 + 0.09 / 24 + 0.01 * 0.09 / 4)
    without = dataclasses.replace(config, max_pixel_weight=0.0)
    less, _ = iris_parts.reconstruction_loss(without, decoded, frames, valid, None)
    assert loss - less == pytest.approx(0.01 * 0.3**2 / 4)
    # The frame that is off does not count: nothing is wrong.
    loss, _ = iris_parts.reconstruction_loss(
        config, decoded, frames, valid.at[1, 0].set(False), None
    )
    assert loss == 0


def test_the_loss_touches_the_slots_of_valid_transitions_only():
    # Of B x n steps the last one of row 0 is no transition.
    n, classes = 3, 5
    valid = jnp.array([[True, True, False], [True, True, True]])
    rng = np.random.default_rng(0)
    slots = Slots(*(jnp.asarray(rng.normal(size=(B, n, *s))) for s in ((K, N), (classes,), (2,))))
    target = views.Transitions(jnp.ones((B, n)), jnp.zeros((B, n), bool), valid)
    config = dataclasses.replace(DELTA.world_model, num_bins=classes)
    tokens = jnp.zeros((B, n, K), jnp.int32)

    def loss(slots):
        token_valid = jnp.broadcast_to(valid[..., None], tokens.shape)
        return iris_parts.prediction_loss(config, slots, tokens, token_valid, target, None)[0]

    gradient = jax.jit(jax.grad(loss))(slots)
    rows = jax.tree.map(lambda g: np.abs(g).max(-1) > 0, gradient)
    assert rows.tokens.sum() == 4 * 5
    assert rows.reward.sum() == rows.termination.sum() == 5
    np.testing.assert_array_equal(rows.reward, valid)
    np.testing.assert_array_equal(rows.tokens.all(-1), valid)


# Losses


def test_sign_rewards_are_three_classes():
    target = views.Transitions(
        jnp.array([[-7.0, 0.0, 0.1]]), jnp.zeros((1, 3), bool), jnp.ones((1, 3), bool)
    )
    logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.7, 0.1]]]))
    slots = Slots(jnp.zeros((1, 3, K, N)), logits, jnp.zeros((1, 3, 2)))
    config = dataclasses.replace(DELTA.world_model, reward="sign")
    zeros = jnp.zeros((1, 3, K), jnp.int32)
    _, metrics = iris_parts.prediction_loss(config, slots, zeros, zeros == 0, target, None)
    expected = -np.mean(np.log([0.5, 0.6, 0.1]))
    assert metrics["reward_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["termination_loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert metrics["token_loss"] == pytest.approx(np.log(N), rel=1e-5)


def test_truncations_count_as_ends_where_that_is_asked_for(records):
    config = dataclasses.replace(DELTA.world_model, truncation_is_end=True)
    for c, expected in ((DELTA.world_model, records.terminated), (config, records.is_last)):
        target = iris_parts.targets(c, records)
        np.testing.assert_array_equal(target.terminated, expected[:, 1:])
