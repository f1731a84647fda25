"""The MaskGIT head: its layers against NumPy, its ablations, and that it learns a joint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from worldmodels_jax.nn import maskgit
from worldmodels_jax.nn.maskgit import MaskGITHead
from worldmodels_jax.ops import masking

B, N, V, E, D = 2, 4, 3, 8, 12
TOKENS = jnp.array([[0, 3, 2, 3], [3, 3, 1, 1]])  # 3 is [MASK]


def make(**changes):
    sizes = {"num_tokens": N, "num_classes": V, "width": E, "layers": 2, "heads": 2, "hidden": 6}
    return MaskGITHead(**(sizes | changes))


def hidden(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, D))


def random_variables(head, seed=0):
    shapes = jax.eval_shape(head.init, jax.random.key(0), TOKENS, hidden())
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)


def count(head, width, *, batch=1):
    tokens = jnp.zeros((batch, head.num_tokens), jnp.int32)
    shapes = jax.eval_shape(head.init, jax.random.key(0), tokens, jnp.zeros((batch, width)))
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_number_of_parameters_is_the_papers():
    assert count(MaskGITHead(32, 32), 512) == 458_784
    # Tied logits need a bias only, untied ones a Dense layer.
    assert count(MaskGITHead(32, 32, tied_logits=False), 512) == 458_784 + 128 * 32
    # Each token sees D instead of D / N numbers.
    assert count(MaskGITHead(32, 32, condition="broadcast"), 512) == 458_784 + (512 - 16) * 128


# Layers


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0.0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(x, p, heads):
    split = lambda name: dense(x, p[name]).reshape(*x.shape[:2], heads, -1)  # noqa: E731
    query, key, value = split("query"), split("key"), split("value")
    scores = np.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)  # over the keys
    return dense(np.einsum("bhnm,bmhd->bnhd", weights, value).reshape(x.shape), p["out"])


def numpy_logits(head, variables, tokens, h):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    h = np.asarray(h, np.float64)
    x = p["embedding"][np.asarray(tokens)] + p["positions"]
    h = h.reshape(B, N, D // N) if head.condition == "slice" else np.stack([h] * N, 1)
    kernel = np.concatenate([p["mix_tokens"]["kernel"], p["mix_hidden"]["kernel"]])
    x = np.concatenate([x, h], -1) @ kernel + p["mix_tokens"]["bias"]
    layers = p["transformer"]
    for i in range(head.layers):
        normed = layer_norm(x, layers[f"norm_attention_{i}"])
        x = x + attend(normed, layers[f"attention_{i}"], head.heads)
        normed = layer_norm(x, layers[f"norm_mlp_{i}"])
        x = x + dense(gelu(dense(normed, layers[f"up_{i}"])), layers[f"down_{i}"])
    for i in range(2):
        x = layer_norm(gelu(dense(x, p[f"out_{i}"])), p[f"out_norm_{i}"])
    if head.tied_logits:
        return x @ p["embedding"][:V].T + p["bias"]
    return dense(x, p["to_logits"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"condition": "broadcast"}, {"tied_logits": False}],
    ids=["default", "broadcast", "untied"],
)
def test_equals_numpy(changes):
    head = make(**changes)
    variables = random_variables(head)
    expected = numpy_logits(head, variables, TOKENS, hidden())
    logits = jax.jit(head.apply)(variables, TOKENS, hidden())
    assert logits.shape == (B, N, V)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_projecting_once_serves_every_round():
    head = make()
    variables = random_variables(head)
    projected = head.apply(variables, hidden(), method="project")
    assert projected.shape == (B, N, E)
    logits = jax.jit(lambda t: head.apply(variables, t, projected, method="logits"))
    whole = jax.jit(head.apply)
    for tokens in (TOKENS, TOKENS[::-1]):
        np.testing.assert_allclose(logits(tokens), whole(variables, tokens, hidden()), atol=1e-5)


@pytest.mark.parametrize("condition", ["slice", "broadcast"])
def test_decoding_in_chunks_changes_nothing(condition, monkeypatch):
    head = make(condition=condition)
    variables = random_variables(head)
    projected = head.apply(variables, hidden(), method="project")
    decode = functools.partial(head.apply, variables, TOKENS, projected, method="logits")
    whole = decode()
    monkeypatch.setattr(maskgit, "_CHUNK", N * E)  # one row at a time
    assert "scan" in str(jax.make_jaxpr(lambda: decode())())
    np.testing.assert_allclose(decode(), whole, atol=1e-5)


def test_every_token_and_the_hidden_state_reach_every_position():
    head = make()
    variables = random_variables(head)
    logits = jax.jit(lambda t, h: head.apply(variables, t, h))
    plain = logits(TOKENS, hidden())
    for i in range(N):
        changed = logits(TOKENS.at[:, i].set((TOKENS[:, i] + 1) % (V + 1)), hidden())
        assert (np.abs(changed - plain).max(-1) > 1e-5).all()
    assert (np.abs(logits(TOKENS, hidden(1)) - plain).max(-1) > 1e-5).all()


def test_bfloat16_gives_float32_logits_from_float32_parameters():
    head = make(dtype=jnp.bfloat16)
    variables = random_variables(head)
    logits = jax.jit(head.apply)(variables, TOKENS, hidden())
    assert logits.dtype == jnp.float32
    exact = numpy_logits(head, variables, TOKENS, hidden())
    np.testing.assert_allclose(logits, exact, atol=0.2)
    shapes = jax.eval_shape(head.init, jax.random.key(0), TOKENS, hidden())
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_a_hidden_state_that_cannot_be_sliced_is_refused():
    with pytest.raises(ValueError, match="4 tokens do not divide a width of 10"):
        make().init(jax.random.key(0), TOKENS, jnp.zeros((B, 10)))


# The joint. All tokens are of one class, which is uniform: one look at any token tells the others,
# and without one they must be guessed.

JOINT = MaskGITHead(num_tokens=8, num_classes=4, width=32, layers=1, heads=2, hidden=32)
SAMPLES = 1024


@pytest.fixture(scope="module")
def learned():
    """The head trained as the world model trains it, on a constant hidden state."""
    n, v, batch, steps = 8, 4, 64, 600
    optimiser = optax.adam(3e-3)

    def loss(params, key):
        key_class, key_mask = jax.random.split(key)
        classes = jax.random.randint(key_class, (batch, 1), 0, v)
        tokens = jnp.broadcast_to(classes, (batch, n))
        mask, scale = masking.training_mask(key_mask, (batch, n))
        logits = JOINT.apply({"params": params}, jnp.where(mask, v, tokens), jnp.ones((batch, n)))
        surprise = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return ((surprise * mask).sum(-1) * scale).mean()

    @jax.jit
    def train(key):
        params = JOINT.init(key, jnp.zeros((1, n), jnp.int32), jnp.ones((1, n)))["params"]

        def step(carry, step_key):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params, step_key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(key, steps)
        return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]

    params = train(jax.random.key(0))

    @functools.cache
    def decode(draft_rounds, revise_rounds, repetitions):
        def head(tokens):
            h = jnp.ones((SAMPLES, n))
            return jax.nn.log_softmax(JOINT.apply({"params": params}, tokens, h))

        tokens = jax.jit(
            lambda key: masking.draft_and_revise(
                head,
                key,
                batch=SAMPLES,
                num_tokens=n,
                mask_token=v,
                draft_rounds=draft_rounds,
                revise_rounds=revise_rounds,
                repetitions=repetitions,
            )
        )(jax.random.key(1))
        return np.asarray(tokens)

    return decode


def share_equal(tokens):
    return (tokens == tokens[:, :1]).all(-1).mean()


def test_drafting_token_by_token_samples_the_joint(learned):
    tokens = learned(8, 1, 0)
    assert share_equal(tokens) > 0.95
    # All four classes, and not one mode.
    shares = np.bincount(tokens[:, 0], minlength=4) / SAMPLES
    np.testing.assert_allclose(shares, 0.25, atol=0.12)


def test_drafting_at_once_samples_independently(learned):
    tokens = learned(1, 1, 0)
    # Eight independent draws of four classes are all equal once in 4^7 = 16384.
    assert share_equal(tokens) < 0.01
    shares = np.bincount(tokens.ravel(), minlength=4) / tokens.size
    np.testing.assert_allclose(shares, 0.25, atol=0.12)


def test_revising_in_groups_raises_agreement_with_every_repetition(learned):
    drafted, once, twice = (share_equal(learned(1, 4, repetitions)) for repetitions in (0, 1, 2))
    assert drafted < 0.01
    assert once > 0.5
    assert twice > once + 0.01
    assert twice > 0.95


def test_revising_everything_at_once_does_not(learned):
    assert share_equal(learned(1, 1, 2)) < 0.01
