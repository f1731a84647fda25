"""Joint updates: whose gradient reaches what, and a run of several seeds."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.configs.dreamer_v3 import dreamer_v3_dmc
from experiments.configs.small import debug
from worldmodels_jax.agents.actor_critic import ActorCriticConfig, make_actor_critic
from worldmodels_jax.agents.imagination import dream_from, policy_of
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.dreamer_v3 import make_dreamer_v3
from worldmodels_jax.models.dreamer_v3_config import DreamerV3Config
from worldmodels_jax.models.world_model import make_world_model
from worldmodels_jax.training.config import Config, TrainingConfig
from worldmodels_jax.training.learner import Learner, TrainState, gradient_step, make_updates
from worldmodels_jax.training.metrics import METRICS_FILE, read_metrics
from worldmodels_jax.training.run import train
from worldmodels_jax.types import EnvSpec, Record

B, T, A = 2, 4, 3
SPEC = EnvSpec("vector", (5,), "float32", A, True, 100)
MODEL = DreamerV3Config(
    deter=16, hidden=8, num_tokens=4, num_classes=4, blocks=2, channels=(), units=8, num_bins=21
)
AGENT = ActorCriticConfig(
    width=8, network="dreamer_v3", critic_head="mse", weighting="discounted", num_bins=21
)
TRAINING = TrainingConfig(
    batch_size=B,
    batch_length=T,
    dream_batch=B * T,
    dream_context=1,
    dream_starts=T,
    horizon=3,
    joint=True,
    # So that no tensor's gradient has a say in another's.
    world_model_clip=1e9,
    agent_clip=1e9,
)
ADAM = optax.adam(TRAINING.agent_lr, eps=TRAINING.agent_eps)
KEY = jax.random.key(0)


def batch_of() -> Record:
    rng = np.random.default_rng(0)
    ends = np.zeros((B, T), bool)
    ends[0, 1] = True
    starts = np.roll(ends, 1, 1)
    batch = Record(
        observation=rng.normal(size=(B, T, 5)).astype(np.float32),
        action=rng.integers(0, A, (B, T), np.int32),
        reward=rng.normal(0, 3, (B, T)).astype(np.float32),
        terminated=ends,
        truncated=np.zeros((B, T), bool),
        is_first=starts,
    )
    return jax.tree.map(jnp.asarray, batch)


def after(scale: float, state: TrainState | None = None) -> tuple[TrainState, TrainState, dict]:
    """The state before and after a joint update, and its metrics."""
    model = make_dreamer_v3(MODEL, SPEC)
    agent = make_actor_critic(AGENT, model.feature_size, SPEC)
    updates = make_updates(dataclasses.replace(TRAINING, replay_value_scale=scale), model, agent)
    if state is None:
        state = jax.jit(updates.init)(KEY)
        state = TrainState(*(_shaken(learner) for learner in state))
    return state, *jax.jit(updates.parts["world_model"].step)(state, batch_of(), KEY)


def _shaken(learner: Learner) -> Learner:
    """What starts at zero sends no gradient on."""
    params = jax.tree.map(
        lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
        learner.variables["params"],
    )
    return learner._replace(variables={**learner.variables, "params": params})


@pytest.fixture(scope="module")
def without() -> tuple[TrainState, TrainState, dict]:
    return after(0.0)


@pytest.fixture(scope="module")
def with_replay(without: tuple) -> tuple[TrainState, TrainState, dict]:
    return after(10.0, without[0])


def differing(one: TrainState, other: TrainState) -> set[str]:
    """Names of the parts whose parameters differ by more than rounding: an Adam step is as long."""

    def parts(state: TrainState) -> dict:
        params = {**state.world_model.variables["params"], **state.agent.variables["params"]}
        return {**params.pop("rssm"), **params}

    return {
        name
        for name, tree in parts(one).items()
        if any(
            np.abs(x - y).max() > 0.2 * TRAINING.agent_lr
            for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(parts(other)[name]), strict=True)
        )
    }


def test_actor_and_dreaming_critic_leave_the_world_model_alone(without: tuple) -> None:
    """Its step is then the one it makes by itself."""
    before, joint, metrics = without
    model = make_dreamer_v3(MODEL, SPEC)
    agent = make_actor_critic(AGENT, model.feature_size, SPEC)
    updates = make_updates(dataclasses.replace(TRAINING, joint=False), model, agent)
    key_loss, key_dream = jax.random.split(KEY)
    alone, alone_metrics = jax.jit(updates.parts["world_model"].step)(before, batch_of(), key_loss)
    mixed = alone._replace(agent=joint.agent)
    assert differing(mixed, joint) == set()
    np.testing.assert_allclose(
        metrics["world_model/gradient_norm"], alone_metrics["gradient_norm"], rtol=1e-4
    )

    # And the agent's is the one it makes of the same dreams.
    @jax.jit
    def agent_alone(before: TrainState, batch: Record) -> tuple[Learner, dict]:
        assert model.loss_and_states is not None
        variables = before.world_model.variables
        _, (_, _, carry, features) = model.loss_and_states(variables, batch, key_loss)
        dreamed = dream_from(
            model,
            variables,
            policy_of(agent, before.agent.variables),
            carry,
            features.reshape(B * T, -1),
            1.0 - batch.terminated.reshape(-1),
            key_dream,
            TRAINING.horizon,
        )
        return gradient_step(
            lambda v: agent.loss(v, dreamed),
            before.agent._replace(optimiser=ADAM.init(before.agent.variables["params"])),
            ADAM,
            None,
        )

    learner, agent_metrics = agent_alone(before, batch_of())
    np.testing.assert_allclose(
        metrics["agent/gradient_norm"], agent_metrics["gradient_norm"], rtol=1e-4
    )
    for name in ("actor_loss", "critic_loss", "return_mean"):
        np.testing.assert_allclose(metrics[f"agent/{name}"], agent_metrics[name], rtol=1e-4)
    assert differing(joint._replace(agent=learner), joint) == set()


def test_the_value_of_replayed_states_trains_what_made_them(
    without: tuple, with_replay: tuple
) -> None:
    before, plain, _ = without
    _, replayed, metrics = with_replay
    # All parts learn in either.
    assert differing(before, plain) >= {"encoder", "decoder", "sequence", "p", "q", "actor"}
    # Neither prior, decoder and heads, which made no posterior state, nor the actor.
    assert differing(plain, replayed) == {"encoder", "sequence", "q", "critic"}
    assert metrics["agent/replay_critic_loss"] > 0
    assert "agent/replay_critic_loss" not in without[2]


def test_what_is_learnt_stays_float32_where_the_rest_is_not() -> None:
    model = make_dreamer_v3(MODEL, SPEC, dtype=jnp.bfloat16)
    agent = make_actor_critic(AGENT, model.feature_size, SPEC, dtype=jnp.bfloat16)
    updates = make_updates(dataclasses.replace(TRAINING, replay_value_scale=0.3), model, agent)
    before = jax.eval_shape(updates.init, KEY)
    after, metrics = jax.eval_shape(updates.parts["world_model"].step, before, batch_of(), KEY)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), before
    )
    assert {x.dtype for x in jax.tree.leaves((after, metrics))} <= {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }


def test_frames_and_continuous_actions_are_trained_jointly() -> None:
    config = dreamer_v3_dmc()
    spec = EnvSpec("dmc", (64, 64, 3), "uint8", 6, False, 1000)
    model = make_world_model(config.model, spec, None, jnp.float32)
    agent = make_actor_critic(config.agent, model.feature_size, spec)
    updates = make_updates(config.training, model, agent)
    before = jax.eval_shape(updates.init, KEY)
    batch = empty_records(spec, (config.training.batch_size, config.training.batch_length))
    after, _ = jax.eval_shape(updates.parts["world_model"].step, before, batch, KEY)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)


def test_the_slow_critic_follows_the_critic_of_after_the_step(without: tuple) -> None:
    before, joint, _ = without
    jax.tree.map(
        lambda slow, new, old: np.testing.assert_allclose(slow, 0.98 * old + 0.02 * new, atol=1e-6),
        joint.agent.variables["slow_critic"],
        joint.agent.variables["params"]["critic"],
        before.agent.variables["slow_critic"],
    )


def joint_config() -> Config:
    """The debug preset with a DreamerV3 of the smallest sizes."""
    base = debug()
    training = dataclasses.replace(
        base.training,
        dream_batch=16,
        dream_context=1,
        dream_starts=8,
        joint=True,
        replay_value_scale=0.3,
        optimiser="laprop",
        world_model_clip=0.3,
        agent_clip=0.3,
    )
    agent = dataclasses.replace(AGENT, critic_head="symexp_twohot")
    return dataclasses.replace(base, model=MODEL, agent=agent, training=training)


def test_seeds_are_trained_jointly_in_one_program(tmp_path: Path) -> None:
    config = joint_config()
    train(config, tmp_path, num_seeds=2)
    rows = read_metrics(tmp_path / METRICS_FILE)
    assert [row["world_model/updates"] for row in rows] == [1, 20, 20, 20]
    assert [row["agent/updates"] for row in rows] == [1, 20, 20, 20]
    assert np.isfinite(rows[-1]["agent/replay_critic_loss"])
    assert np.isfinite(rows[-1]["world_model/loss"])
