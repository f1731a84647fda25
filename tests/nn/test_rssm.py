"""The RSSM: both cells against NumPy, resets, alignment, and the gradients of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn import rssm

B, T, D, N, V, A, F, HIDDEN = 2, 5, 6, 3, 4, 2, 5, 7
KEY = jax.random.key(0)
UNIMIX = 0.1
VERSIONS = {
    "2024": rssm.RSSM(D, HIDDEN, N, V, blocks=2, dynamics_layers=2, unimix=UNIMIX),
    "2023": rssm.RSSM(
        D,
        HIDDEN,
        N,
        V,
        cell="gru",
        prior_layers=1,
        unimix=UNIMIX,
        initial_state="learned",
        norm="layer",
        fan="fan_avg",
    ),
}


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    is_first = np.zeros((B, T), bool)
    is_first[0, 2] = is_first[1, 0] = is_first[1, 4] = True
    return (
        jnp.asarray(rng.normal(size=(B, T, F)), jnp.float32),
        jnp.asarray(rng.normal(0, 2, size=(B, T, A)), jnp.float32),  # some beyond [-1, 1]
        jnp.asarray(is_first),
    )


@pytest.fixture(scope="module", params=VERSIONS)
def model(request):
    """A version, random variables and its observe."""
    module = VERSIONS[request.param]

    def both(module, *args):
        states, _ = module.observe(*args)
        return module.prior(states.deter)

    def init(key):
        return module.init(key, *inputs(), key, method=both)

    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.1, 0.7, x.shape), jnp.float32), jax.eval_shape(init, KEY)
    )

    @jax.jit
    def observe(variables, embedding, action, is_first, key):
        return module.apply(variables, embedding, action, is_first, key, method="observe")

    return module, variables, observe


# The same in NumPy


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0.0)


def norm(x, params):
    if "RMSNorm_0" in params:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * params["RMSNorm_0"]["scale"]
    p = params["LayerNorm_0"]
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return normed * p["scale"] + p["bias"]


def hidden(x, params):
    for i in range(sum(name.startswith("Dense") for name in params)):
        x = norm(dense(x, params[f"Dense_{i}"]), params[f"Norm_{i}"])
        x = x * sigmoid(x)
    return x


def log_probs(x, params):
    logits = dense(hidden(x, params["Hidden_0"]), params["Dense_0"]).reshape(-1, N, V)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.log((1 - UNIMIX) * softmax + UNIMIX / V)


def block_gru(h, z, a, params):
    e = np.concatenate([hidden(x, params[f"Hidden_{i}"]) for i, x in enumerate((h, z, a))], axis=-1)
    halves = [np.concatenate([h[:, :3], e], -1), np.concatenate([h[:, 3:], e], -1)]

    def both(halves, layer):
        bias = np.split(layer["bias"], 2)
        return [x @ layer["kernel"][g] + bias[g] for g, x in enumerate(halves)]

    for i in range(2):
        x = norm(np.concatenate(both(halves, params[f"BlockLinear_{i}"]), -1), params[f"Norm_{i}"])
        halves = np.split(x * sigmoid(x), 2, axis=-1)
    gates = [np.split(half, 3, axis=-1) for half in both(halves, params["BlockLinear_2"])]
    return [np.concatenate([gates[0][i], gates[1][i]], -1) for i in range(3)]


def norm_gru(h, z, a, params):
    x = hidden(np.concatenate([z, a], -1), params["Hidden_0"])
    x = np.concatenate([h, x], -1) @ params["Dense_0"]["kernel"]
    return np.split(norm(x, params["Norm_0"]), 3, axis=-1)


def test_states_equal_numpy_step_by_step(model):
    module, variables, observe = model
    embedding, action, is_first = inputs()
    states, log_q = double(observe(variables, embedding, action, is_first, KEY))
    params = double(variables["params"])
    embedding, action = double((embedding, action))
    cell = block_gru if module.cell == "block_gru" else norm_gru
    for b, t in np.ndindex(B, T):
        if t == 0 or is_first[b, t]:
            h, z, a = np.zeros((1, D)), np.zeros((1, N * V)), np.zeros((1, A))
            if module.initial_state == "learned":
                h = np.tanh(params["first"])[None]
                z = np.eye(V)[log_probs(h, params["p"]).argmax(-1)].reshape(1, -1)
        else:
            h, z = states.deter[b : b + 1, t - 1], states.stoch[b, t - 1].reshape(1, -1)
            a = np.clip(action[b : b + 1, t - 1], -1, 1)
        reset, candidate, update = cell(h, z, a, params["sequence"])
        u = sigmoid(update - 1)
        h = u * np.tanh(sigmoid(reset) * candidate) + (1 - u) * h
        np.testing.assert_allclose(states.deter[b, t], h[0], atol=1e-4)
        q = log_probs(np.concatenate([h, embedding[b, t][None]], -1), params["q"])
        np.testing.assert_allclose(log_q[b, t], q[0], atol=1e-3)
    one_hot = np.eye(V)[states.stoch.argmax(-1)]
    np.testing.assert_array_equal(states.stoch, one_hot)
    assert np.exp(log_q).min() >= UNIMIX / V - 1e-6


def test_nothing_crosses_a_first_record(model):
    _, variables, observe = model
    embedding, action, is_first = inputs()
    for b in range(B):
        joint = int(np.flatnonzero(is_first[b])[-1])
        states, log_q = observe(variables, embedding, action, is_first, KEY)
        other, other_q = observe(
            variables,
            embedding.at[b, :joint].add(1.0),
            action.at[b, :joint].multiply(-1.0),
            is_first,
            KEY,
        )
        np.testing.assert_array_equal(other_q[b, joint:], log_q[b, joint:])
        np.testing.assert_array_equal(other.deter[b, joint:], states.deter[b, joint:])
        assert (other_q[b, :joint] != log_q[b, :joint]).any()


def test_an_action_reaches_the_next_step_and_no_earlier_one(model):
    _, variables, observe = model
    embedding, action, _ = inputs()
    never = jnp.zeros((B, T), bool)
    plain, _ = observe(variables, embedding, action, never, KEY)
    other, _ = observe(variables, embedding, action.at[:, 2].set(0.3), never, KEY)
    differs = (np.asarray(plain.deter) != np.asarray(other.deter)).any((0, 2))
    np.testing.assert_array_equal(differs, [False, False, False, True, True])


def test_imagining_follows_the_same_dynamics_and_samples_the_prior(model):
    module, variables, observe = model
    embedding, action, _ = inputs()
    states, _ = observe(variables, embedding, action, jnp.zeros((B, T), bool), KEY)
    state = jax.tree.map(lambda x: x[:, 1], states)

    @jax.jit
    def imagine(keys):
        def one(key):
            return module.apply(variables, state, action[:, 1], key, method="imagine")

        prior = module.apply(variables, states.deter[:, 2], method="prior")
        return jax.vmap(one)(keys), jnp.exp(prior)

    imagined, prior = imagine(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(imagined.deter[0], states.deter[:, 2], atol=1e-5)
    np.testing.assert_allclose(imagined.stoch.mean(0), prior, atol=0.04)
    features = np.asarray(imagined.features[0])
    np.testing.assert_array_equal(features[:, :D], imagined.deter[0])
    np.testing.assert_array_equal(features[:, D:].reshape(B, N, V), imagined.stoch[0])


def test_samples_have_the_gradient_of_their_probabilities(model):
    _, variables, observe = model
    embedding, action, is_first = (x[:, :1] for x in inputs())
    weight = jax.random.normal(KEY, (B, 1, N, V))

    @jax.jit
    def gradients(embedding):
        def of(pick):
            return jax.grad(
                lambda x: (weight * pick(*observe(variables, x, action, is_first, KEY))).sum()
            )(embedding)

        return of(lambda states, _: states.stoch), of(lambda _, log_q: jnp.exp(log_q))

    sample, probabilities = gradients(embedding)
    np.testing.assert_allclose(sample, probabilities, rtol=1e-5)
    assert (sample != 0).all()


def test_gates_of_zero_keep_73_percent():
    deter = jnp.arange(4.0)
    zero = jnp.zeros(4)
    kept = rssm.gated_update(zero, zero, zero, deter)
    np.testing.assert_allclose(kept, 0.7310586 * deter, rtol=1e-6)
    # Wide open, the candidate replaces h; shut by the reset gate, nothing does.
    np.testing.assert_allclose(rssm.gated_update(zero + 99, zero + 99, zero + 99, deter), 1.0)
    np.testing.assert_allclose(
        rssm.gated_update(zero - 99, zero + 9, zero + 99, deter), 0, atol=1e-6
    )


def test_gradients_reach_every_parameter_and_states_stay_float32_in_bfloat16(model):
    module, variables, _ = model
    module = module.clone(dtype=jnp.bfloat16)

    @jax.jit
    def run(variables):
        def loss(variables):
            states, log_q = module.apply(variables, *inputs(), KEY, method="observe")
            log_p = module.apply(variables, states.deter, method="prior")
            return (log_q[..., 0] - log_p[..., 1]).sum(), (states, log_q, log_p)

        return jax.grad(loss, has_aux=True)(variables)

    gradient, outputs = run(variables)
    leaves = [*jax.tree.leaves(gradient), *jax.tree.leaves(outputs)]
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}
    assert all((x != 0).any() and np.isfinite(x).all() for x in jax.tree.leaves(gradient))
