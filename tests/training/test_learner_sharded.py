"""One global batch gives one result, on one device or split over several.

What is random is drawn per device, so the world model here is one without randomness: VQ latents,
an MLP prior, no dropout. The agent dreams in a model that can be computed by hand, greedily.
``test_eight_devices`` runs the updates again where JAX sees eight devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from worldmodels_jax.agents.actor_critic import ActorCriticConfig, make_actor_critic
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.git_storm import make_git_storm
from worldmodels_jax.models.git_storm_config import GitStormConfig
from worldmodels_jax.models.world_model import Prediction, WorldModel
from worldmodels_jax.ops import categorical
from worldmodels_jax.ops.collectives import masked_mean
from worldmodels_jax.training.config import TrainingConfig
from worldmodels_jax.training.learner import Learner, gradient_step, make_updates
from worldmodels_jax.types import EnvSpec, Record

AXIS = "device"
DEVICES = [1, 2, jax.device_count()]
B, T, A = 8, 5, 3
SPEC = EnvSpec("grid", (4, 4, 1), "uint8", A, True, 100)
KEY = jax.random.key(0)
CONFIG = GitStormConfig(
    prior="mlp",
    tokenizer="vq",
    num_tokens=2,
    num_classes=4,
    code_size=4,
    channels=(4,),
    width=8,
    layers=1,
    heads=2,
    hidden=8,
    max_length=8,
    dropout=0.0,
    num_bins=11,
)
TRAINING = TrainingConfig(horizon=3, agent_clip=1.0)


def split(function, devices, in_specs, *, check_vma=False):
    """``function`` over a mapped axis; every output gains a leading axis, one row per device."""
    mesh = jax.make_mesh(
        (devices,), (AXIS,), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
    )

    def one_row(*args):
        return jax.tree.map(lambda x: x[None], function(*args))

    return jax.jit(
        jax.shard_map(one_row, mesh=mesh, in_specs=in_specs, out_specs=P(AXIS), check_vma=check_vma)
    )


def assert_on_every_device(actual, expected, **tolerance):
    """Every row equals the unsplit result, and all rows are the same to the bit."""

    def check(path, rows, whole):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(rows, np.broadcast_to(rows[:1], rows.shape), name)
        np.testing.assert_allclose(rows[0], whole, err_msg=name, **tolerance)

    jax.tree_util.tree_map_with_path(check, actual, expected)


def test_there_are_enough_devices():
    assert len(jax.devices()) >= 4


# The form


def test_the_form_in_use_gives_the_right_gradient_and_the_tempting_ones_do_not():
    x = jnp.arange(8.0).reshape(4, 2)
    params = jnp.array([1.0, -2.0])

    def loss(params, x):
        return ((x @ params) ** 2).mean()

    def ours(params, x):
        def with_metrics(variables):
            return loss(variables["params"], x), ({}, {})

        optimiser = optax.sgd(1.0)
        learner = Learner({"params": params}, optimiser.init(params))
        after, _ = gradient_step(with_metrics, learner, optimiser, AXIS)
        return params - after.variables["params"]

    def mean_inside(params, x):
        return jax.grad(lambda p: jax.lax.pmean(loss(p, x), AXIS))(params)

    def gradient(function, check_vma):
        return split(function, 4, (P(), P(AXIS)), check_vma=check_vma)(params, x)[0]

    expected = 2 * (x * (x @ params)[:, None]).mean(0)
    np.testing.assert_allclose(gradient(ours, check_vma=False), expected, rtol=1e-6)
    # With check_vma the gradient of replicated parameters is already a sum over the devices: the
    # mean of gradients is then too large by their number, and there is no error.
    np.testing.assert_allclose(gradient(ours, check_vma=True), 4 * expected, rtol=1e-6)
    # And the mean inside the loss is the other way round.
    np.testing.assert_allclose(gradient(mean_inside, check_vma=True), expected, rtol=1e-6)
    assert not np.allclose(gradient(mean_inside, check_vma=False), expected, rtol=1e-2)


def over_devices(function):
    """The mapped axis without devices: enough for what is only arithmetic."""
    return jax.vmap(function, axis_name=AXIS)


def test_masked_means_and_their_gradients_are_those_of_all_entries():
    values = jnp.arange(8.0).reshape(4, 2)
    mask = jnp.array([[0, 0], [1, 0], [1, 1], [1, 1]])  # 0, 1, 2 and 2 entries count
    weights = mask / mask.sum()

    def value_and_gradient(x, m):
        return jax.value_and_grad(lambda x: masked_mean(x**2, m, AXIS))(x)

    value, gradient = over_devices(value_and_gradient)(values, mask)
    np.testing.assert_allclose(value.mean(), (values**2 * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient / 4, 2 * values * weights, rtol=1e-6)
    # Nothing valid anywhere is no loss, and not 0/0.
    nothing, gradient = over_devices(value_and_gradient)(values, jnp.zeros_like(mask))
    np.testing.assert_array_equal(nothing, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
    ("kl", "expected", "slope"), [([0.4, 1.8], 1.1, 1.0), ([0.2, 1.5], 1.0, 0.0)]
)
def test_free_bits_are_those_of_the_mean_over_devices(kl, expected, slope):
    floor = jax.value_and_grad(lambda x: categorical.free_bits(x, 1.0, AXIS))
    value, gradient = over_devices(floor)(jnp.array(kl))
    np.testing.assert_allclose(value.mean(), expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient, slope)


# The world model


@pytest.fixture(scope="module")
def batch():
    """Eight sequences with 1, 4, 3, 4, 4, 2, 4 and 4 valid transitions."""
    rng = np.random.default_rng(0)
    is_first = np.zeros((B, T), bool)
    is_first[0, [1, 2, 3]] = is_first[2, 2] = is_first[5, [1, 3]] = True
    # Brightness differs from sequence to sequence, and so do the statistics of each device.
    low = np.array([0, 50, 100, 200, 20, 0, 150, 80])
    high = np.array([100, 256, 150, 256, 60, 256, 200, 90])
    frames = rng.integers(low, high, (T, *SPEC.observation_shape, B)).astype(np.uint8)
    batch = Record(
        observation=np.moveaxis(frames, -1, 0),
        action=rng.integers(0, A, (B, T), np.int32),
        reward=rng.normal(0, 3, (B, T)).astype(np.float32),
        terminated=np.roll(is_first, -1, 1) & ~is_first,
        truncated=np.zeros((B, T), bool),
        is_first=is_first,
    )
    return jax.tree.map(jnp.asarray, batch)


def agent_for(size, axis_name=None):
    config = ActorCriticConfig(width=8, num_bins=11)
    agent = make_actor_critic(config, size, SPEC, axis_name)
    # Greedy: a sample would depend on which device draws it.
    return agent._replace(
        act=lambda variables, memory, features, key: agent.act_greedy(variables, memory, features)
    )


def world_model_updates(axis_name=None):
    model = make_git_storm(CONFIG, SPEC, axis_name)
    return make_updates(TRAINING, model, agent_for(model.feature_size, axis_name), axis_name)


@pytest.fixture(scope="module")
def reference(batch):
    """The state before, and the state and metrics after an update on one device."""
    updates = world_model_updates()
    state = jax.jit(updates.init)(KEY)
    return state, jax.jit(updates.parts["world_model"].step)(state, batch, KEY)


def assert_same_update(actual, reference):
    (state, metrics), (expected, expected_metrics) = actual, reference
    assert_on_every_device(metrics, expected_metrics, rtol=1e-4, atol=1e-5)
    learner, expected = state.world_model, expected.world_model
    moments = [jax.tree.leaves(x.optimiser) for x in (learner, expected)]
    assert_on_every_device(*moments, rtol=1e-3, atol=1e-5)
    statistics = [x.variables["batch_stats"] for x in (learner, expected)]
    assert_on_every_device(*statistics, rtol=1e-5, atol=1e-6)
    # Adam's first step is the sign of the gradient: a gradient of rounding errors is free.
    assert_on_every_device(
        learner.variables["params"],
        expected.variables["params"],
        atol=0.1 * TRAINING.world_model_lr,
    )


@pytest.mark.parametrize("devices", DEVICES)
def test_world_model_update_by_shard_map(batch, reference, devices):
    before, after = reference
    update = split(
        world_model_updates(AXIS).parts["world_model"].step, devices, (P(), P(AXIS), P())
    )
    assert_same_update(update(before, batch, KEY), after)


def test_world_model_update_by_pmap(batch, reference):
    before, after = reference
    update = jax.pmap(
        world_model_updates(AXIS).parts["world_model"].step,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        devices=jax.devices()[:2],
    )
    shards = jax.tree.map(lambda x: x.reshape(2, B // 2, *x.shape[1:]), batch)
    assert_same_update(update(before, shards, KEY), after)


def test_the_update_was_worth_comparing(reference):
    before, (after, metrics) = reference
    learner = after.world_model
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), before.world_model.variables, learner.variables
    )
    assert all(jax.tree.leaves(moved["batch_stats"]))
    # The frame encoder, whose gradient passes through everything.
    assert all(jax.tree.leaves(moved["params"]["tokenizer"]["encoder"]))
    assert metrics["representation_loss"] == metrics["dynamics_loss"] > 1.0  # above free bits
    assert 1.0 < metrics["codebook_use"] < 4.0


def test_replicas_stay_the_same_where_each_device_draws_for_itself():
    # Posterior samples and dropout differ.
    config = dataclasses.replace(CONFIG, tokenizer="categorical", mlp_width=8, dropout=0.5)
    spec = EnvSpec("vector", (3,), "float32", A, True, 100)
    model = make_git_storm(config, spec, AXIS)
    updates = make_updates(TRAINING, model, agent_for(model.feature_size, AXIS), AXIS)
    records = empty_records(spec, (B, T))
    records = records._replace(observation=jax.random.normal(KEY, records.observation.shape))

    def update(state, batch, key):
        own = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        state, metrics = updates.parts["world_model"].step(state, batch, own)
        return state.world_model, metrics

    state = jax.jit(updates.init)(KEY)  # outside of the mapped axis
    replicas = split(update, 2, (P(), P(AXIS), P()))(state, records, KEY)
    same = jax.tree.map(lambda x: bool((x[0] == x[1]).all()), replicas)
    assert all(jax.tree.leaves(same))


# The agent


def observe(variables, context, key, horizon, starts=1):
    del variables, key, horizon
    frames = context.observation.reshape(*context.reward.shape, -1) / 255.0
    state = jnp.concatenate([frames[:, -1], frames.mean(1)], -1)
    return state, state


def imagine(variables, carry, action, key):
    del variables, key
    state = jnp.sin(3 * carry + action[:, None])
    prediction = Prediction(state, 5 * state[:, 0], jax.nn.sigmoid(2 + 3 * state[:, 1]))
    return state, prediction


MODEL = WorldModel(lambda key: {"params": {}}, None, observe, imagine, None, feature_size=32)


def with_a_critic(state):
    """One that starts at zero would leave nothing to compare."""
    params = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
        (state.agent.variables["params"]),
    )
    variables = {**state.agent.variables, "params": params}
    return state._replace(agent=state.agent._replace(variables=variables))


@pytest.mark.parametrize("devices", DEVICES)
def test_agent_update(batch, devices):
    # Two of the eight dreams start where an episode ends, both on the same device of two.
    context = batch._replace(truncated=batch.truncated.at[:2, -1].set(True))
    whole = make_updates(TRAINING, MODEL, agent_for(32))
    parts = make_updates(TRAINING, MODEL, agent_for(32, AXIS), AXIS)
    state = with_a_critic(jax.jit(whole.init)(KEY))
    variables = state.agent.variables

    expected, expected_metrics = jax.jit(whole.parts["agent"].step)(state, context, KEY)
    after, metrics = split(parts.parts["agent"].step, devices, (P(), P(AXIS), P()))(
        state, context, KEY
    )
    assert_on_every_device(metrics, expected_metrics, rtol=1e-4, atol=1e-5)
    assert expected_metrics["gradient_norm"] > TRAINING.agent_clip  # clipped by the global norm
    moments = [jax.tree.leaves(x.agent.optimiser) for x in (after, expected)]
    assert_on_every_device(*moments, rtol=1e-3, atol=1e-6)
    assert_on_every_device(
        after.agent.variables, expected.agent.variables, rtol=1e-5, atol=0.1 * TRAINING.agent_lr
    )
    # The slow critic has followed the critic of after the step.
    follow = lambda slow, new: 0.98 * slow + 0.02 * new  # noqa: E731
    critic = expected.agent.variables["params"]["critic"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        expected.agent.variables["slow_critic"],
        jax.tree.map(follow, variables["slow_critic"], critic),
    )


# Both together


def loss_and_states(variables, batch, key):
    """Each record's state is a function of its own frame."""
    del key
    frames = batch.observation.reshape(*batch.reward.shape, -1) / 255.0
    states = jnp.tanh(jnp.concatenate([frames, frames**2], -1) @ variables["params"]["weight"])
    loss = ((states.mean(-1) - batch.reward) ** 2).mean()
    return loss, ({}, {"loss": loss}, states.reshape(-1, 32), states)


@pytest.mark.parametrize("devices", DEVICES)
def test_joint_update(batch, devices):
    weight = 0.3 * jnp.cos(jnp.arange(32.0 * 32)).reshape(32, 32)
    model = MODEL._replace(
        init=lambda key: {"params": {"weight": weight}}, loss_and_states=loss_and_states
    )
    training = dataclasses.replace(
        TRAINING, joint=True, replay_value_scale=0.5, world_model_clip=0.5
    )
    whole = make_updates(training, model, agent_for(32))
    parts = make_updates(training, model, agent_for(32, AXIS), AXIS)
    state = with_a_critic(jax.jit(whole.init)(KEY))
    expected, expected_metrics = jax.jit(whole.parts["world_model"].step)(state, batch, KEY)
    after, metrics = split(parts.parts["world_model"].step, devices, (P(), P(AXIS), P()))(
        state, batch, KEY
    )
    assert_on_every_device(metrics, expected_metrics, rtol=1e-4, atol=1e-5)
    # Rows have different numbers of records that count, and devices too.
    assert expected_metrics["agent/replay_critic_loss"] > 0
    for name, clip in (("agent", training.agent_clip), ("world_model", training.world_model_clip)):
        assert expected_metrics[f"{name}/gradient_norm"] > clip
        moments = [jax.tree.leaves(getattr(x, name).optimiser) for x in (after, expected)]
        assert_on_every_device(*moments, rtol=1e-3, atol=1e-6)
        assert_on_every_device(
            *(getattr(x, name).variables for x in (after, expected)),
            rtol=1e-5,
            atol=0.1 * min(training.agent_lr, training.world_model_lr),
        )
