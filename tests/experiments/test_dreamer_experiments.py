"""What DreamerV3's experiments measure with, on inputs whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dreamer_experiments
from experiments.dreamer_experiments import CONTEXT, HORIZON, LEARNING, OPEN_LOOP
from worldmodels_jax import envs
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.world_model import Prediction, WorldModel
from worldmodels_jax.training.config import validate
from worldmodels_jax.types import EnvSpec


def test_the_return_is_that_of_the_last_hundred_episodes() -> None:
    """Three end at every second iteration; the n-th such three return n each."""
    ended = np.tile([0.0, 3.0], 50)
    total = 3 * np.repeat(np.arange(1, 51), 2) * (ended > 0)
    mean = dreamer_experiments.moving_return(ended, total)
    assert np.isnan(mean[:67]).all()  # 99 episodes
    assert mean[67] == np.arange(1, 35).mean()
    # 34 threes are the fewest that hold a hundred.
    assert mean[-1] == np.arange(17, 51).mean()


def test_only_rewards_are_scaled() -> None:
    env = envs.make("Catch-bsuite")
    scaled = dreamer_experiments.scaled(env, 100.0)

    def episode(env: envs.Environment) -> jax.Array:
        key = jax.random.key(0)
        state, _ = env.reset(key)
        return jax.lax.scan(lambda s, _: env.step(s, jnp.int32(1), key), state, None, length=9)[1]

    one, other = jax.jit(lambda: (episode(env), episode(scaled)))()
    assert abs(one.reward).sum() == 1.0
    np.testing.assert_array_equal(other.reward, 100 * one.reward)
    np.testing.assert_array_equal(other.observation, one.observation)


@pytest.mark.parametrize("name", LEARNING)
def test_the_configs_of_runs_are_valid(name: str) -> None:
    make, factor = LEARNING[name]
    validate(make())
    assert factor == float(name[1:].removesuffix("_mse")) if name[0] == "x" else factor == 1.0
    assert name != OPEN_LOOP


def test_reward_errors_are_counted_from_the_last_frame_seen() -> None:
    """A model that remembers the sum of the actions, and rewards that are that sum and more."""

    def imagine(variables: object, carry: jax.Array, action: jax.Array, key: jax.Array) -> tuple:
        carry = carry + action[:, 0]
        return carry, Prediction(carry[:, None], carry, carry)

    def observe(
        variables: object, context: object, key: jax.Array, horizon: int, starts: int = 1
    ) -> tuple:
        state = context.action[:, :-1, 0].sum(1)  # type: ignore[attr-defined]
        return state, state[:, None]

    model = WorldModel(None, None, observe, imagine, None, 1)  # type: ignore[arg-type]
    spec = EnvSpec("toy", (1,), "float32", 1, False, 100)
    records = empty_records(spec, (4, CONTEXT + HORIZON))
    actions = jnp.asarray(np.random.default_rng(0).normal(size=records.action.shape), jnp.float32)
    sums = jnp.cumsum(actions[..., 0], 1)[:, :-1]  # on arrival at records 1, 2, ...
    ahead = jnp.maximum(jnp.arange(1, CONTEXT + HORIZON) - CONTEXT + 1, 0)
    records = records._replace(action=actions, reward=jnp.pad(sums + ahead, ((0, 0), (1, 0))))
    errors = dreamer_experiments.reward_errors(model, {}, records, jax.random.key(0))
    np.testing.assert_allclose(errors, np.arange(1, HORIZON + 1), rtol=1e-4)


def test_seeds_that_were_trained_are_kept() -> None:
    config = LEARNING["x100"][0]()
    rows = [{"seed": 1, "return": 0.5}, {"seed": 0, "return": 0.25}]
    before = {"preset": config.preset, "reward_factor": 100.0, "steps": 40, "rows": rows}
    found = dreamer_experiments.learn(config, 100.0, 2, 40, before)
    assert found == before | {"rows": rows[::-1]}
    # Of another length, or of rewards times something else, they are not of this run.
    assert dreamer_experiments.learn(config, 100.0, 0, 44, before)["rows"] == []
    assert dreamer_experiments.learn(config, 1.0, 0, 40, before)["rows"] == []
