"""Imagining a step: what is sampled is the transformer's own distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iris_toys import DELTA, KEY, D, K, random_variables, vary

from worldmodels_jax.models import delta_iris, iris_imagination
from worldmodels_jax.models.delta_iris import make_delta_iris


def test_tokens_are_sampled_from_the_joint_distribution(spec):
    config = vary(vary(DELTA, "tokenizer", num_codes=3), layers=1)
    m = delta_iris._networks(config, spec, None, jnp.float32)
    variables = random_variables(make_delta_iris(config, spec))
    params = variables["params"]["dynamics"]
    count = 20_000
    action = m.dynamics.apply(
        {"params": params}, jnp.zeros(count, jnp.int32), method="embed_actions"
    )
    cache = iris_imagination.new_cache(m.dynamics, count, K)
    segment = jnp.zeros(count, jnp.int32)
    step = jax.jit(
        lambda action: iris_imagination.imagine_step(
            m.dynamics, config.world_model, params, cache, segment, action, KEY
        )
    )(action)
    # The chain rule over all 81 frames, in one pass over [a, z^1 .. z^K].
    frames = np.stack(np.unravel_index(np.arange(81), (3,) * K), -1)
    embedded = m.dynamics.apply({"params": params}, frames, method="embed_tokens")
    x = jnp.concatenate([jnp.broadcast_to(action[:1, None], (81, 1, D)), embedded], 1)
    hidden, _ = m.dynamics.apply({"params": params}, x, jnp.zeros((81, K + 1), int), method="feed")
    logits = m.dynamics.apply({"params": params}, hidden[:, :K], method="token_logits")
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), frames[..., None], -1)[..., 0].sum(-1)
    probs = np.exp(log_p)
    assert probs.sum() == pytest.approx(1.0, abs=1e-4)
    drawn = np.ravel_multi_index(np.asarray(step.tokens).T, (3,) * K)
    frequency = np.bincount(drawn, minlength=81) / count
    np.testing.assert_allclose(frequency, probs, atol=5 * np.sqrt(probs.max() / count))
    ends = m.dynamics.apply({"params": params}, hidden[0, 0], method="outcome_logits")[1]
    alive = jax.nn.softmax(ends)[0]
    assert set(np.unique(step.continuation)) == {0.0, 1.0}
    assert step.continuation.mean() == pytest.approx(float(alive), abs=0.015)


@pytest.mark.parametrize(
    ("reward", "readout", "expected"),
    [
        ("two_hot", "mean", np.expm1(1.0)),  # bins of -4, 0 and 4, of 3/8, 0 and 5/8
        ("two_hot", "sample", {-np.expm1(4.0), np.expm1(4.0)}),
        ("sign", "mean", 0.25),
        ("sign", "sample", {-1.0, 1.0}),
    ],
)
def test_reading_rewards(reward, readout, expected, monkeypatch):
    config = dataclasses.replace(
        DELTA.world_model, reward=reward, reward_readout=readout, num_bins=3
    )
    bins = iris_imagination.twohot.symlog_bins(3, 4.0)
    monkeypatch.setattr(iris_imagination.twohot, "symlog_bins", lambda num_bins: bins)
    logits = jnp.broadcast_to(jnp.log(jnp.array([3 / 8, 1e-30, 5 / 8])), (400, 3))
    rewards = np.asarray(iris_imagination.read_reward(config, logits, KEY))
    if readout == "mean":
        np.testing.assert_allclose(rewards, expected, rtol=1e-5)
    else:
        np.testing.assert_allclose(sorted(set(rewards)), sorted(expected), rtol=1e-5)
        assert (rewards > 0).mean() == pytest.approx(5 / 8, abs=0.08)
