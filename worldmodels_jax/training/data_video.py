"""Random experience of an environment, as the data of a run of ``fit``: video with actions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax import envs
from worldmodels_jax.data.dataset import Arrays, Dataset
from worldmodels_jax.training.data_config import MadeConfig, positive
from worldmodels_jax.types import Environment, Record

_STREAMS = 64  # environments stepped together


@dataclasses.dataclass(frozen=True)
class VideoConfig(MadeConfig):
    """Sequences of records, ``{field of Record: (T, ...)}``, under uniform random actions.

    Environments are stepped on and on, each from the beginning of an episode and over its end to
    the next, and what they recorded is cut into sequences. The first sequences of all of them come
    first: these begin an episode, others anywhere.

    Attributes:
      env: name of a JAX-native environment, one of envs.names().
      count: sequences to train on.
      test_count: sequences to evaluate with, of environments of their own.
      length: T, records of a sequence.
      seed: of all of them.
    """

    env: str = "SpriteJump"
    count: int = 1_000
    test_count: int = 100
    length: int = 16
    seed: int = 0

    @property
    def title(self) -> str:
        """See ``MadeConfig``."""
        return f"video of {self.env}"

    def make(self) -> Arrays:
        """See ``MadeConfig``."""
        positive(self, "count", "test_count", "length")
        env = envs.make(self.env)
        keys = jax.random.split(jax.random.key(self.seed))
        parts = (
            random_sequences(env, key, count, self.length)._asdict()
            for key, count in zip(keys, (self.count, self.test_count), strict=True)
        )
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def dataset(self, arrays: Arrays) -> Dataset:
        """See ``MadeConfig``."""
        train = {name: x[: self.count] for name, x in arrays.items()}
        test = {name: x[self.count :] for name, x in arrays.items()}
        return Dataset(self.env, train, test, envs.make(self.env))


def random_sequences(env: Environment, key: jax.Array, count: int, length: int) -> Record:
    """Sequences of records under uniform random actions.

    Args:
      env: an environment without auto-reset.
      key: PRNG key.
      count: B.
      length: T.

    Returns:
      Records ``(B, T, ...)``, in the order that ``VideoConfig`` tells.
    """
    streams = min(count, _STREAMS)
    pieces = -(-count // streams)
    batched = envs.batch(envs.auto_reset(env), streams)
    spec = env.spec

    def random_action(key: jax.Array) -> jax.Array:
        if spec.discrete:
            return jax.random.randint(key, (streams,), 0, spec.num_actions)
        return jax.random.uniform(key, (streams, spec.num_actions), minval=-1.0)

    def step(state, key):  # type: ignore[no-untyped-def]  # state is the environment's pytree
        env_state, time_step = state
        key_action, key_env = jax.random.split(key)
        action = random_action(key_action)
        record = Record(action=action, **time_step._asdict())
        return batched.step(env_state, action, key_env), record

    def run(key: jax.Array) -> Record:
        key_reset, key_run = jax.random.split(key)
        keys = jax.random.split(key_run, pieces * length)
        _, records = jax.lax.scan(step, batched.reset(key_reset), keys)

        def cut(x: jax.Array) -> jax.Array:
            cut = x.reshape(pieces, length, streams, *x.shape[2:])
            return jnp.moveaxis(cut, 2, 1).reshape(-1, length, *x.shape[2:])[:count]

        return jax.tree.map(cut, records)

    return jax.jit(run)(key)
