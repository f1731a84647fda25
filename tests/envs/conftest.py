"""A random rollout, shared by the tests of the JAX-native environments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.types import Environment, TimeStep


def _random_rollout(
    env: Environment, num_steps: int, seed: int = 0, batch_shape: tuple[int, ...] = ()
) -> tuple[TimeStep, np.ndarray]:
    """Returns num_steps + 1 time steps from a reset on, and the num_steps actions between them."""
    reset_key, action_key, step_key = jax.random.split(jax.random.key(seed), 3)
    spec = env.spec
    shape = (num_steps, *batch_shape)
    if spec.discrete:
        actions = jax.random.randint(action_key, shape, 0, spec.num_actions)
    else:
        actions = jax.random.uniform(action_key, (*shape, spec.num_actions), minval=-1.0)

    @jax.jit
    def run():
        state, first = env.reset(reset_key)
        keys = jax.random.split(step_key, num_steps)
        _, later = jax.lax.scan(lambda state, xs: env.step(state, *xs), state, (actions, keys))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)

    return jax.tree.map(np.asarray, run()), np.asarray(actions)


@pytest.fixture(scope="session")
def random_rollout() -> Callable[..., tuple[TimeStep, np.ndarray]]:
    return _random_rollout
