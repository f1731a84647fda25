"""The transformers of IRIS and Delta-IRIS: which slot depends on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.models.iris_dynamics import DeltaDynamics, IrisDynamics

B, T, K, N, A, D, R = 2, 5, 3, 6, 4, 8, 7
KEY = jax.random.key(0)
SIZES = {
    "num_actions": A,
    "num_tokens": K,
    "num_codes": N,
    "reward_classes": R,
    "max_blocks": T,
    "width": D,
    "layers": 2,
    "heads": 2,
}
step_of, place_of = np.meshgrid(np.arange(T), np.arange(K), indexing="ij")
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, N, (B, T, K)), jnp.int32)
ACTIONS = jnp.asarray(RNG.integers(0, A, (B, T)), jnp.int32)
FRAMES = jnp.asarray(RNG.uniform(size=(B, T, 4, 4, 1)), jnp.float32)
ONE_EPISODE = jnp.zeros((B, T), jnp.int32)


def make(model, *inputs):
    """A jitted forward pass with random parameters, so that no zero hides a mistake."""
    shapes = jax.eval_shape(model.init, KEY, *inputs)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.1, 0.5, x.shape), jnp.float32), shapes
    )
    return variables, jax.jit(lambda *inputs: model.apply(variables, *inputs))


def changed(one, other):
    """Which of (T', K) token and of (n,) outcome predictions differ."""
    both = jax.tree.map(lambda a, b: np.abs(a - b).max((0, -1)) > 1e-6, one, other)
    np.testing.assert_array_equal(both.reward, both.termination)
    return both.tokens, both.reward


def other_token(tokens, *place):
    return tokens.at[place].set((tokens[place] + 1) % N)


# Delta-IRIS: [I_t, a_t, z^1, z^2, z^3]


def delta(i_tokens):
    return DeltaDynamics(**SIZES, i_tokens=i_tokens, frame_channels=(4,), frame_latent=2)


@pytest.fixture(scope="module", params=[True, False], ids=["I-tokens", "no I-tokens"])
def delta_forward(request):
    return request.param, make(delta(request.param), FRAMES, ACTIONS, TOKENS, ONE_EPISODE)[1]


def test_delta_slots_depend_on_what_came_before_them_only(delta_forward):
    i_tokens, forward = delta_forward
    plain = forward(FRAMES, ACTIONS, TOKENS, ONE_EPISODE)
    assert (plain.tokens.shape, plain.reward.shape) == ((B, T, K, N), (B, T, R))

    def touched(frames=FRAMES, actions=ACTIONS, tokens=TOKENS):
        token, outcome = changed(plain, forward(frames, actions, tokens, ONE_EPISODE))
        # Reward and end are predicted where the first token is.
        np.testing.assert_array_equal(token[:, 0], outcome)
        return token

    t = 2
    for k in range(K):
        # A token reaches those after it in its step, and all later steps.
        expected = (step_of > t) | ((step_of == t) & (place_of > k))
        tokens = other_token(TOKENS, slice(None), t, k)
        np.testing.assert_array_equal(touched(tokens=tokens), expected)
    action = ACTIONS.at[:, t].set((ACTIONS[:, t] + 1) % A)
    np.testing.assert_array_equal(touched(actions=action), step_of >= t)
    frames = FRAMES.at[:, t].set(0.5)
    np.testing.assert_array_equal(touched(frames=frames), (step_of >= t) & i_tokens)
    assert touched(frames=FRAMES.at[:, 0].set(0.5)).all()


def test_delta_episode_that_begins_within_the_sequence_sees_its_first_frame(delta_forward):
    _, forward = delta_forward
    segments = jnp.broadcast_to(jnp.array([0, 0, 1, 1, 2]), (B, T))
    plain = forward(FRAMES, ACTIONS, TOKENS, segments)
    for first, episode in ((0, [0, 1]), (2, [2, 3]), (4, [4])):
        frames = FRAMES.at[:, first].set(0.5)
        token, _ = changed(plain, forward(frames, ACTIONS, TOKENS, segments))
        np.testing.assert_array_equal(token, np.isin(step_of, episode))
    tokens = other_token(TOKENS, slice(None), 1, K - 1)
    assert not changed(plain, forward(FRAMES, ACTIONS, tokens, segments))[0].any()


def test_an_i_token_is_the_normalised_flattened_map_of_its_frame():
    model = delta(True)
    variables, _ = make(model, FRAMES, ACTIONS, TOKENS, ONE_EPISODE)
    params = variables["params"]
    # 4x4 cells of 2 channels are projected to the width.
    assert params["to_width"]["kernel"].shape == (32, D)

    def latent(model):
        return model.frame_encoder(FRAMES.reshape(-1, 4, 4, 1))

    x = np.asarray(model.apply(variables, method=latent)).reshape(B, T, 32)
    x = x @ params["to_width"]["kernel"] + params["to_width"]["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * params["frame_norm"]["scale"] + params["frame_norm"]["bias"]
    embedded = model.apply(variables, FRAMES, method="embed_frames")
    np.testing.assert_allclose(embedded, x, atol=1e-3)


@pytest.mark.parametrize("i_tokens", [True, False])
@pytest.mark.parametrize("ahead", [0, 1])
def test_delta_sequence_is_laid_out_as_stated(i_tokens, ahead):
    model = delta(i_tokens)
    variables, _ = make(model, FRAMES, ACTIONS, TOKENS, ONE_EPISODE)
    table = variables["params"]["actions"]["embedding"]
    codes = variables["params"]["codes"]["embedding"]
    embedded = jax.random.normal(KEY, (B, T, D))
    segments = jnp.array([[0, 0, 1, 1, 1], [5, 5, 5, 5, 5]])
    n = T - ahead
    x, token_segments = model.apply(
        variables, embedded, ACTIONS[:, :n], TOKENS[:, :n], segments, method="sequence"
    )
    for b in range(B):
        expected = [] if i_tokens else [(embedded[b, 0], segments[b, 0])]
        for t in range(n):
            action = table[ACTIONS[b, t]]
            if i_tokens:
                expected.append((embedded[b, t], segments[b, t]))
            elif t and segments[b, t] != segments[b, t - 1]:
                action = action + embedded[b, t]
            parts = [action, *codes[TOKENS[b, t]]]
            expected += [(part, segments[b, t]) for part in parts]
        if i_tokens and ahead:
            expected.append((embedded[b, n], segments[b, n]))
        np.testing.assert_allclose(x[b], jnp.stack([e for e, _ in expected]), atol=1e-6)
        np.testing.assert_array_equal(token_segments[b], [s for _, s in expected])


# IRIS: [z^1, z^2, z^3, a]


@pytest.fixture(scope="module")
def iris_forward():
    return make(IrisDynamics(**SIZES), TOKENS, ACTIONS[:, :-1], ONE_EPISODE)[1]


def test_iris_slots_depend_on_what_came_before_them_only(iris_forward):
    actions = ACTIONS[:, :-1]
    plain = iris_forward(TOKENS, actions, ONE_EPISODE)
    assert (plain.tokens.shape, plain.reward.shape) == ((B, T, K, N), (B, T - 1, R))
    t = 2
    for k in range(K):
        tokens = other_token(TOKENS, slice(None), t, k)
        token, outcome = changed(plain, iris_forward(tokens, actions, ONE_EPISODE))
        np.testing.assert_array_equal(token, (step_of > t) | ((step_of == t) & (place_of > k)))
        # Reward and end of the step that leaves t are predicted after its tokens.
        np.testing.assert_array_equal(outcome, np.arange(T - 1) >= t)
    other = actions.at[:, t].set((actions[:, t] + 1) % A)
    token, outcome = changed(plain, iris_forward(TOKENS, other, ONE_EPISODE))
    np.testing.assert_array_equal(token, step_of > t)
    np.testing.assert_array_equal(outcome, np.arange(T - 1) >= t)


def test_iris_episode_does_not_see_the_one_before(iris_forward):
    segments = jnp.broadcast_to(jnp.array([0, 0, 1, 1, 1]), (B, T))
    plain = iris_forward(TOKENS, ACTIONS[:, :-1], segments)
    tokens = other_token(TOKENS, slice(None), 1, K - 1)
    token, outcome = changed(plain, iris_forward(tokens, ACTIONS[:, :-1], segments))
    # The first token of the next episode is predicted from the slot before it, and masked.
    np.testing.assert_array_equal(token, (step_of == 2) & (place_of == 0))
    np.testing.assert_array_equal(outcome, [False, True, False, False])


def test_both_have_the_heads_of_the_table():
    for model, inputs in (
        (delta(True), (FRAMES, ACTIONS, TOKENS, ONE_EPISODE)),
        (IrisDynamics(**SIZES), (TOKENS, ACTIONS[:, :-1], ONE_EPISODE)),
    ):
        params = jax.jit(model.init)(KEY, *inputs)["params"]
        for name, features in (("token_head", N), ("reward_head", R), ("termination_head", 2)):
            assert params[name]["in"]["kernel"].shape == (D, D)
            assert params[name]["out"]["kernel"].shape == (D, features)
            np.testing.assert_array_equal(params[name]["out"]["bias"], 0.0)
        variables = {"params": jax.tree.map(lambda x: x + 0.1, params)}
        hidden = jax.random.normal(KEY, (3, D))
        head = variables["params"]["token_head"]
        x = np.maximum(hidden @ head["in"]["kernel"] + head["in"]["bias"], 0)
        expected = x @ head["out"]["kernel"] + head["out"]["bias"]
        logits = model.apply(variables, hidden, method="token_logits")
        np.testing.assert_allclose(logits, expected, atol=1e-5)
