"""Acting on a memory of real frames and dreaming, on a model that can be computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from worldmodels_jax.agents.acting import make_actor, newest
from worldmodels_jax.agents.actor_critic import ActorCriticConfig, make_actor_critic
from worldmodels_jax.agents.imagination import Policy, dream, memoryless, policy_of
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.world_model import Filter, Prediction, WorldModel
from worldmodels_jax.types import EnvSpec, TimeStep

E, C = 2, 3
COUNTER = EnvSpec("counter", (1,), "float32", 3, True, 10)


def observe(variables, context, key, horizon, starts=1):
    """The state is the sum of all observations and of all actions but the last."""
    del key, horizon
    total = context.observation[..., 0].sum(1) + context.action[:, :-1].sum(1)
    state = variables["params"] * total
    return state, state[:, None]


def imagine(variables, carry, action, key):
    """The state grows by the action; the reward is ten times and the continuation 1 / state."""
    del variables, key
    state = carry + action
    return state, Prediction(state[:, None], 10 * state, 1 / state)


FAKE = WorldModel(lambda key: {}, None, observe, imagine, None, feature_size=1)
VARIABLES = {"params": jnp.ones(())}


def context(spec=COUNTER, length=C, *, batch=E):
    rng = np.random.default_rng(0)
    records = empty_records(spec, (batch, length))
    return records._replace(
        observation=jnp.asarray(rng.integers(1, 9, records.observation.shape), jnp.float32),
        action=jnp.asarray(rng.integers(0, 3, (batch, length)), jnp.int32),
    )


def time_step(value, *, is_first=False, spec=COUNTER):
    return TimeStep(
        observation=jnp.full((E, *spec.observation_shape), value, jnp.float32),
        reward=jnp.full(E, value / 10),
        terminated=jnp.zeros(E, bool),
        truncated=jnp.zeros(E, bool),
        is_first=jnp.full(E, is_first),
    )


# Dreams


def test_a_dream_is_the_policy_and_the_model_in_turn():
    real = context()
    start = np.asarray(observe(VARIABLES, real, None, 4)[1][:, 0])
    policy = memoryless(lambda features, key: (features[:, 0] % 3 + 1).astype(jnp.int32))
    dreamed = jax.jit(lambda c, k: dream(FAKE, VARIABLES, policy, c, k, 4))(real, jax.random.key(0))
    state, states, actions = start, [start], []
    for _ in range(4):
        actions.append(state % 3 + 1)
        state = state + actions[-1]
        states.append(state)
    np.testing.assert_array_equal(dreamed.features[..., 0], states)
    np.testing.assert_array_equal(dreamed.action, actions)
    np.testing.assert_array_equal(dreamed.reward, 10 * np.array(states[1:]))
    np.testing.assert_allclose(dreamed.continuation, 1 / np.array(states[1:]), rtol=1e-6)
    np.testing.assert_array_equal(dreamed.weight, [1.0, 1.0])


def test_dreams_from_the_end_of_an_episode_have_no_weight():
    real = context(batch=3)
    real = real._replace(
        terminated=real.terminated.at[0, -1].set(True),
        # An episode that ended earlier is no reason.
        truncated=real.truncated.at[1, -1].set(True).at[2, -2].set(True),
    )
    policy = memoryless(lambda features, key: jnp.ones(3, jnp.int32))
    dreamed = dream(FAKE, VARIABLES, policy, real, jax.random.key(0), 1)
    np.testing.assert_array_equal(dreamed.weight, [0.0, 0.0, 1.0])


def test_several_dreams_begin_at_the_last_frames_of_a_context(
    world_model, model_variables, records
):
    """As if each window of frames had been given by itself; only the ends have no weight."""
    policy = memoryless(lambda features, key: jnp.ones(features.shape[0], jnp.int32))
    starts, length = 3, records.reward.shape[1]
    several = jax.jit(lambda c: dream(world_model, model_variables, policy, c, KEY, 2, starts))
    dreamed = several(records)
    windows = [records, *[jax.tree.map(lambda x, k=k: x[:, : length - k], records) for k in (1, 2)]]
    np.testing.assert_array_equal(
        dreamed.weight.reshape(2, starts).T, [1.0 - w.is_last[:, -1] for w in windows[::-1]]
    )
    assert {0.0, 1.0} == set(np.asarray(dreamed.weight).tolist())
    # h, the last of the features, hangs on frames and actions before the start by samples; those of
    # a first frame are zero, and row 1 begins anew at 6, its second start.
    hidden = dreamed.features[0].reshape(2, starts, -1)[..., -16:]
    assert (hidden[1, 1] == 0).all()
    assert (np.abs(np.delete(hidden.reshape(6, -1), 4, 0)).max(1) > 0).all()


def test_every_step_has_keys_of_its_own_and_the_model_the_room_it_asks_for():
    seen = {}

    def observe_with_key(variables, context, key, horizon, starts):
        seen["horizon"] = horizon
        draw = jax.random.uniform(key, (E, 1))
        return draw, draw

    def imagine_with_key(variables, carry, action, key):
        draw = jax.random.uniform(key, (E, 1))
        return draw, Prediction(draw, draw[:, 0], draw[:, 0])

    model = FAKE._replace(observe=observe_with_key, imagine=imagine_with_key)
    policy = memoryless(lambda features, key: jax.random.uniform(key, (E,)))
    dreamed = dream(model, VARIABLES, policy, context(), jax.random.key(0), 5)
    assert seen["horizon"] == 5
    draws = np.concatenate([dreamed.features.ravel(), dreamed.action.ravel()])
    assert len(np.unique(draws)) == 6 * E + 5 * E


def test_no_gradient_goes_through_a_dream():
    def total(params):
        policy = memoryless(lambda features, key: jnp.ones(E, jnp.int32))
        dreamed = dream(FAKE, {"params": params}, policy, context(), jax.random.key(0), 2)
        return dreamed.features.sum() + dreamed.reward.sum() + dreamed.continuation.sum()

    assert jax.grad(total)(jnp.ones(())) == 0.0


def test_dreams_of_the_real_model(world_model, model_variables, records, spec, model_config):
    agent = make_actor_critic(ActorCriticConfig(width=8), world_model.feature_size, spec)

    @jax.jit
    def run(key):
        variables = agent.init(key)
        policy = policy_of(agent, variables)
        dreamed = dream(world_model, model_variables, policy, records, key, 3)
        key_observe, _ = jax.random.split(key)
        return dreamed, world_model.observe(model_variables, records, key_observe, 3)[1]

    dreamed, first = run(jax.random.key(0))
    size = world_model.feature_size
    assert size == 4 * 4 + 16
    assert dreamed.features.shape == (4, 2, size)
    assert dreamed.action.shape == dreamed.reward.shape == dreamed.continuation.shape == (3, 2)
    assert dreamed.action.dtype == jnp.int32
    np.testing.assert_allclose(dreamed.features[0], first, atol=1e-6)
    # The latents are one-hot, the probabilities probabilities.
    latents = dreamed.features[..., :16].reshape(4, 2, 4, 4)
    np.testing.assert_array_equal(latents.sum(-1), 1.0)
    assert ((dreamed.continuation > 0) & (dreamed.continuation < 1)).all()


# Memories of the world model and of the policy


def follow(variables, state, record, action, key):
    """As ``observe``, a step at a time: the sum of an episode's observations and actions."""
    del key
    before = jnp.where(record.is_first, 0.0, state + action)
    state = before + record.observation[:, 0]
    return state, variables["params"] * state[:, None]


FOLLOWING = FAKE._replace(filter=Filter(lambda batch: jnp.zeros(batch), follow))
# Remembers the sum of all features it has seen, and acts on it.
SUMMING = Policy(
    lambda batch: jnp.zeros(batch),
    lambda memory, features, key: (
        ((memory + features[:, 0]) % 3).astype(jnp.int32),
        memory + features[:, 0],
    ),
)


def summed(observation, action, is_first):
    """Sums of the features at every frame of one sequence, by hand."""
    state = total = 0.0
    totals = []
    for t in range(len(observation)):
        fresh = t == 0 or is_first[t]
        state = (0.0 if fresh else state + action[t - 1]) + observation[t]
        total = (0.0 if is_first[t] else total) + state
        totals.append(total)
    return totals


def test_a_policy_with_a_memory_has_seen_the_frames_before_the_dream():
    real = context(length=5, batch=3)
    real = real._replace(is_first=real.is_first.at[1, 2].set(True).at[2, 4].set(True))
    run = jax.jit(lambda c: dream(FOLLOWING, VARIABLES, SUMMING, c, KEY, 2))
    dreamed = run(real)
    assert dreamed.history.features.shape == (4, 3, 1)
    np.testing.assert_array_equal(dreamed.history.is_first, real.is_first.T)
    for b in range(3):
        sequence = (real.observation[b, :, 0], real.action[b], real.is_first[b])
        totals = summed(*map(np.asarray, sequence))
        # The dream's own first features are those of ``observe``, which knows no episodes.
        before = 0.0 if b == 2 else totals[3]
        total = before + float(dreamed.features[0, b, 0])
        assert dreamed.action[0, b] == total % 3
        total += float(dreamed.features[1, b, 0])
        assert dreamed.action[1, b] == total % 3


def test_a_memory_needs_a_filter_and_one_start():
    for model, starts in ((FAKE, 1), (FOLLOWING, 2)):
        with pytest.raises(ValueError, match=f"starts={starts}: use 1"):
            dream(
                model._replace(observe=lambda *a: (jnp.zeros(E), jnp.zeros((E, 1)))),
                VARIABLES,
                SUMMING,
                context(),
                KEY,
                1,
                starts,
            )


def test_an_episode_is_followed_step_by_step():
    """Longer than any window; memories of model and policy begin anew with every episode."""
    agent = make_actor_critic(ActorCriticConfig(width=8), 1, COUNTER)
    agent = agent._replace(
        init_memory=SUMMING.init_memory,
        act=lambda variables, memory, features, key: SUMMING.act(memory, features, key),
        act_greedy=lambda variables, memory, features: SUMMING.act(memory, features, None),
    )
    actor = make_actor(FOLLOWING, agent, COUNTER, 0)
    values, firsts = [4.0, 1.0, 5.0, 2.0, 6.0, 3.0], [True, False, False, True, False, False]
    for choose in (actor.act, actor.act_greedy):
        memory, actions = actor.init(E), []
        for value, first in zip(values, firsts, strict=True):
            memory = actor.push(memory, time_step(value, is_first=first))
            memory, action = choose(VARIABLES, {}, memory, KEY)
            actions.append(int(action[0]))
        np.testing.assert_array_equal(np.array(summed(values, actions, firsts)) % 3, actions)
        assert len(set(actions)) > 1


def test_what_is_remembered_twice_or_not_at_all_is_an_error():
    agent = make_actor_critic(ActorCriticConfig(width=8), 1, COUNTER)
    with pytest.raises(ValueError, match="acting_context=0 asks the world model to follow"):
        make_actor(FAKE, agent, COUNTER, 0)
    with pytest.raises(ValueError, match=r"acting_context=3 .* would see them twice"):
        make_actor(FOLLOWING, agent._replace(init_memory=SUMMING.init_memory), COUNTER, 3)


# Acting


@pytest.fixture(scope="module")
def actor():
    agent = make_actor_critic(ActorCriticConfig(width=8), 1, COUNTER)
    agent = agent._replace(
        act=lambda variables, memory, features, key: (features[:, 0].astype(jnp.int32) % 3, memory),
        act_greedy=lambda variables, memory, features: (-features[:, 0].astype(jnp.int32), memory),
    )
    return make_actor(FAKE, agent, COUNTER, C)


def test_memory_begins_empty_and_keeps_the_last_records_in_order(actor):
    memory = actor.init(E)
    assert memory.records.observation.shape == (E, C, 1)
    assert not memory.records.is_first.any()
    for value in range(1, 6):
        memory = actor.push(memory, time_step(float(value), is_first=value == 4))
        np.testing.assert_array_equal(memory.records.action[:, -1], 0)  # still to be chosen
        memory = actor.record_action(memory, jnp.array([value, 10 * value]))
    records = memory.records
    np.testing.assert_array_equal(records.observation[..., 0], [[3.0, 4.0, 5.0]] * E)
    np.testing.assert_allclose(records.reward, [[0.3, 0.4, 0.5]] * E, rtol=1e-6)
    np.testing.assert_array_equal(records.action, [[3, 4, 5], [30, 40, 50]])
    np.testing.assert_array_equal(records.is_first, [[False, True, False]] * E)
    latest = newest(memory)
    np.testing.assert_array_equal(latest.action, [5, 50])
    np.testing.assert_array_equal(latest.observation, [[5.0]] * E)


def test_actions_come_from_the_features_of_the_memory(actor):
    memory = actor.init(E)
    memory = actor.record_action(actor.push(memory, time_step(4.0)), jnp.array([1, 2]))
    memory = actor.push(memory, time_step(2.0))
    # Observations 4 + 2 and the action taken from the first of them.
    after, action = actor.act(VARIABLES, {}, memory, jax.random.key(0))
    np.testing.assert_array_equal(action, [(6 + 1) % 3, (6 + 2) % 3])
    np.testing.assert_array_equal(newest(after).action, action)
    after, greedy = actor.act_greedy(VARIABLES, {}, memory, jax.random.key(0))
    np.testing.assert_array_equal(greedy, [-7, -8])
    np.testing.assert_array_equal(newest(after).action, greedy)


def test_frames_are_remembered_in_the_type_of_the_environment(world_model, spec):
    agent = make_actor_critic(ActorCriticConfig(width=8), world_model.feature_size, spec)
    actor = make_actor(world_model, agent, spec, C)
    memory = actor.push(actor.init(E), time_step(200.0, spec=spec))
    assert memory.records.observation.dtype == jnp.uint8
    np.testing.assert_array_equal(memory.records.observation[:, -1], 200)


def test_random_actions_are_uniform(actor):
    memory, actions = actor.act_random(actor.init(3000), jax.random.key(0))
    np.testing.assert_array_equal(newest(memory).action, actions)
    assert scipy.stats.chisquare(np.bincount(actions, minlength=3)).pvalue > 1e-4
    continuous = EnvSpec("continuous", (1,), "float32", 2, False, 10)
    agent = make_actor_critic(ActorCriticConfig(width=8), 1, continuous)
    actor = make_actor(FAKE, agent, continuous, C)
    actions = np.asarray(actor.act_random(actor.init(3000), jax.random.key(0))[1])
    assert actions.shape == (3000, 2)
    for component in actions.T:
        assert scipy.stats.kstest(component, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4
    assert actor.init(E).records.action.shape == (E, C, 2)


@pytest.fixture(scope="module")
def real_features(world_model, model_variables):
    """Features of a memory of the real model, split into latent and hidden state."""
    features = jax.jit(lambda memory: world_model.observe(model_variables, memory, KEY, 0)[1])
    return lambda memory: jnp.split(features(memory), [16], axis=-1)


KEY = jax.random.key(3)


def memory_of(records, is_first):
    memory = jax.tree.map(lambda x: x[:, :C], records)
    return memory._replace(is_first=jnp.broadcast_to(jnp.array(is_first), (E, C)))


def test_the_first_frame_of_an_episode_has_no_hidden_state(records, real_features):
    memory = memory_of(records, [False, False, True])
    latent, hidden = real_features(memory)
    np.testing.assert_array_equal(hidden, 0.0)
    np.testing.assert_array_equal(latent.reshape(E, 4, 4).sum(-1), 1.0)
    assert np.abs(real_features(memory_of(records, [False] * C))[1]).max() > 0.1


def test_the_memory_of_an_earlier_episode_is_not_attended_to(records, real_features):
    plain = real_features(memory_of(records, [False, True, False]))
    stale = jax.tree.map(lambda x: x.at[:, 0].set(x[:, 5]), records)
    other = real_features(memory_of(stale, [False, True, False]))
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    # Within one episode it is.
    within = real_features(memory_of(stale, [False, False, False]))
    assert np.abs(within[1] - real_features(memory_of(records, [False] * C))[1]).max() > 1e-4
