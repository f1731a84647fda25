"""The five state mixers: shapes, what reaches what, and each against NumPy."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn.mixer import Mixing, StateMixer

B, T, N, K, A, D = 2, 3, 4, 5, 3, 8
KINDS = typing.get_args(Mixing)


@pytest.fixture(scope="module", params=KINDS)
def mixed(request):
    """A mixer with random parameters, and its function of latents and actions."""
    mixer = StateMixer(request.param, width=D, heads=2, token_width=6)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), *inputs())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)
    return mixer, params, jax.jit(lambda v, a: mixer.apply(params, v, a))


def inputs(seed=0):
    key_vectors, key_action = jax.random.split(jax.random.key(seed))
    vectors = jax.random.normal(key_vectors, (B, T, N, K))
    return vectors, jax.random.normal(key_action, (B, T, A))


def test_shape_and_tokens_per_step(mixed):
    mixer, _, mix = mixed
    assert mixer.tokens_per_step == (2 if mixer.kind == "unmixed" else 1)
    assert mix(*inputs()).shape == (B, T, mixer.tokens_per_step, D)


def test_every_latent_and_every_component_of_the_action_changes_the_output(mixed):
    _, _, mix = mixed
    vectors, action = inputs()
    other_vectors, other_action = inputs(1)
    plain = mix(vectors, action)
    for i in range(N):
        changed = mix(vectors.at[:, :, i].set(other_vectors[:, :, i]), action)
        assert (np.abs(changed - plain).max((-1, -2)) > 1e-4).all()
    for i in range(A):
        changed = mix(vectors, action.at[..., i].set(other_action[..., i]))
        assert (np.abs(changed - plain).max((-1, -2)) > 1e-4).all()


def test_different_discrete_actions_give_different_outputs(mixed):
    _, _, mix = mixed
    vectors = inputs()[0]
    out = [mix(vectors, jnp.broadcast_to(one_hot, (B, T, A))) for one_hot in jnp.eye(A)]
    for i in range(A):
        assert (np.abs(out[i] - out[i - 1]).max((-1, -2)) > 1e-4).all()


def test_steps_do_not_mix(mixed):
    _, _, mix = mixed
    vectors, action = inputs()
    other = inputs(1)
    changed = mix(vectors.at[:, 1].set(other[0][:, 1]), action.at[:, 1].set(other[1][:, 1]))
    same = np.isclose(changed, mix(vectors, action), atol=1e-6).all((-1, -2))
    np.testing.assert_array_equal(same, [[True, False, True]] * B)


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def out_layers(p, x):
    """Table 5.11 from the first linear layer on."""
    x = np.maximum(layer_norm(x @ p["in"]["kernel"], p["norm_in"]), 0.0) @ p["out"]["kernel"]
    return layer_norm(x, p["norm_out"])[:, :, None]


def embed(p, name, x):
    return x @ p[name]["kernel"] + p[name]["bias"]


def attend(p, queries, keys):
    """Multi-head attention of ``queries`` to ``keys``, both (B, T, tokens, width)."""
    project = {
        name: np.einsum("btnw,whd->btnhd", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("query", queries), ("key", keys), ("value", keys))
    }
    scores = np.einsum("btnhd,btmhd->bthnm", project["query"], project["key"])
    weights = np.exp(scores / np.sqrt(project["query"].shape[-1]))
    weights = weights / weights.sum(-1, keepdims=True)
    out = np.einsum("bthnm,btmhd->btnhd", weights, project["value"])
    return np.einsum("btnhd,hdw->btnw", out, p["out"]["kernel"]) + p["out"]["bias"]


def expected(kind, p, vectors, action):
    flat = vectors.reshape(B, T, N * K)
    if kind == "concat":
        return out_layers(p, np.concatenate([flat, action], -1))
    if kind == "unmixed":
        both = np.stack([flat @ p["latent"]["kernel"], action @ p["action"]["kernel"]], 2)
        return layer_norm(both, p["norm_out"])
    tokens = embed(p, "token", vectors)
    if kind == "ivideogpt":
        tokens = tokens + embed(p, "token_action", action)[:, :, None]
        return out_layers(p, tokens.reshape(B, T, -1))
    tokens = tokens + p["token_positions"]
    if kind == "concat_attention":
        action_token = embed(p, "token_action", action)[:, :, None]
        keys = np.concatenate([tokens, action_token], 2)
    else:
        keys = action[..., None] * p["action_tokens"]
    tokens = tokens + attend(p["token_attention"], tokens, keys)
    return out_layers(p, tokens.reshape(B, T, -1))


def test_equals_numpy(mixed):
    mixer, params, mix = mixed
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    arguments = [np.asarray(x, np.float64) for x in inputs()]
    np.testing.assert_allclose(mix(*inputs()), expected(mixer.kind, p, *arguments), atol=1e-4)
