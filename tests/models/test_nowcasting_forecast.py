"""NowcastingGPT's forecasts: what a token depends on, the cache, samples and their truncation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nowcasting_toys import KEY, B, C, N, T, V, init, lively, networks, rain, system

from worldmodels_jax.models.nowcasting_forecast import forecast_tokens


@pytest.fixture(scope="module")
def variables() -> Any:
    return lively(init(system()))


def test_a_token_is_predicted_by_those_before_it(variables: Any) -> None:
    m = networks()
    params = {"params": variables["params"]["transformer"]}
    tokens = jax.random.randint(KEY, (2, T * N), 0, V)
    run = jax.jit(lambda tokens: m.transformer.apply(params, tokens))
    logits = run(tokens)
    assert logits.shape == (2, T * N, V)
    for j in (0, 7, T * N - 1):
        other = run(tokens.at[:, j].add(1) % V)
        np.testing.assert_allclose(other[:, :j], logits[:, :j], atol=1e-6)
        assert (np.abs(other[:, j:] - logits[:, j:]).max(-1) > 1e-4).all()


def test_prefill_and_cached_steps_are_one_forward_pass(variables: Any) -> None:
    m = networks()
    params = {"params": variables["params"]["transformer"]}
    tokens = jax.random.randint(KEY, (2, T * N), 0, V)
    feed = functools.partial(m.transformer.apply, params, method="feed")

    @jax.jit
    def stepwise(tokens: jax.Array) -> jax.Array:
        hidden, cache = feed(tokens[:, : C * N], m.transformer.new_cache(2, T * N))

        def step(cache: Any, token: jax.Array) -> Any:
            hidden, cache = feed(token[:, None], cache)
            return cache, hidden[:, 0]

        _, later = jax.lax.scan(step, cache, tokens[:, C * N :].T)
        hidden = jnp.concatenate([hidden, later.swapaxes(0, 1)], 1)
        return m.transformer.apply(params, hidden, method="logits")

    whole = m.transformer.apply(params, tokens)
    np.testing.assert_allclose(stepwise(tokens), whole, atol=1e-4)


def test_the_likeliest_tokens_beyond_the_position_table(variables: Any) -> None:
    """With k = 1 a sample is the arg-max; after T frames, of a window of the last T - 1."""
    m, horizon = networks(), T - C + 2
    params = variables["params"]["transformer"]
    context = jax.random.randint(KEY, (2, C, N), 0, V)
    sample = functools.partial(
        forecast_tokens, m, params, members=2, horizon=horizon, top_k=1, top_p=None
    )
    got = jax.jit(sample)(context, KEY)
    assert got.shape == (2, 2, horizon, N)
    logits = jax.jit(lambda x: m.transformer.apply({"params": params}, x))
    frames = [np.asarray(context[:, i]) for i in range(C)]
    for i in range(horizon):
        window = np.stack(frames[-(T - 1) :] if len(frames) >= T else frames, 1)
        tokens = np.zeros((2, T * N), np.int64)
        used = window.shape[1] * N
        tokens[:, :used] = window.reshape(2, -1)
        for j in range(used, used + N):
            # What comes after is not seen.
            tokens[:, j] = np.asarray(logits(tokens))[:, j - 1].argmax(-1)
        frames.append(tokens[:, used : used + N])
        for member in range(2):
            np.testing.assert_array_equal(got[member, :, i], frames[-1])


def test_forecasts(variables: Any) -> None:
    made = system()
    run = jax.jit(functools.partial(made.forecast, members=3, horizon=3, top_k=None))
    context = rain()[:, :C]
    first = run(variables, context, KEY)
    assert first.shape == (3, B, 3, 8, 8)
    assert np.isfinite(first).all()
    assert (first >= 0).all()
    np.testing.assert_array_equal(run(variables, context, KEY), first)
    assert not np.array_equal(run(variables, context, jax.random.key(5)), first)
    assert not np.array_equal(first[0], first[1])
    with pytest.raises(ValueError, match="members=0"):
        made.forecast(variables, context, KEY, members=0)


def test_samples_follow_the_distribution(variables: Any) -> None:
    """The first token of 2000 members is drawn as its logits say, within the nucleus."""
    m = networks()
    params = variables["params"]["transformer"]
    # A head that is not so sure.
    context = jax.random.randint(KEY, (1, T - 1, N), 0, V)
    sample = functools.partial(
        forecast_tokens, m, params, members=2000, horizon=1, top_k=5, top_p=0.9
    )
    drawn = np.bincount(np.asarray(jax.jit(sample)(context, KEY))[:, 0, 0, 0], minlength=V) / 2000
    flat = jnp.pad(context.reshape(1, -1), ((0, 0), (0, N)))
    logits = m.transformer.apply({"params": params}, flat)[0, (T - 1) * N - 1]
    probs = np.asarray(jax.nn.softmax(logits), np.float64)
    order = probs.argsort()[::-1]
    likeliest = probs[order[:5]] / probs[order[:5]].sum()
    kept = order[:5][np.cumsum(likeliest) - likeliest < 0.9]
    expected = np.zeros(V)
    expected[kept] = probs[kept] / probs[kept].sum()
    assert len(kept) > 1
    np.testing.assert_allclose(drawn, expected, atol=0.05)


def test_samples_are_pictures(variables: Any) -> None:
    pictures = jax.jit(system().samples)(variables, {"rain": jnp.asarray(rain())}, KEY)
    assert set(pictures) == {"observed", "reconstructed", "forecast"}
    for x in pictures.values():
        assert x.shape == (B, T, 8, 8, 1)
        assert ((x >= 0) & (x <= 1)).all()
    np.testing.assert_array_equal(pictures["forecast"][:, :C], pictures["observed"][:, :C])
