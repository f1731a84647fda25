"""What ``experiments.token_experiments`` trains: IRIS's networks on fixed random experience."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from worldmodels_jax import envs
from worldmodels_jax.envs.scroll_grid import ScrollGridState
from worldmodels_jax.models import iris_parts
from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.models.iris_config import DeltaIrisConfig, delta_iris_tiny16
from worldmodels_jax.models.world_model import Loss
from worldmodels_jax.nn.quantiser import tokenizer_variables
from worldmodels_jax.ops.frames import from_square, from_uint8, to_pixels, to_square
from worldmodels_jax.types import Environment, EnvSpec, PyTree, Record


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is seen and trained; the defaults are those of the acceptance experiments.

    Attributes:
      episodes: of experience to train on, 64 steps each.
      held_out: of experience to measure on.
      tokenizer_updates: of 32 transitions each.
      world_model_updates: of 24 sequences of 12 transitions each.
      chunk: updates of one compiled call; they must divide by it.
    """

    episodes: int = 300
    held_out: int = 128
    tokenizer_updates: int = 2000
    world_model_updates: int = 800
    chunk: int = 100


TOKENIZER_BATCH = 32  # transitions
SEQUENCES, STEPS = 24, 12  # of a batch of the transformer, and transitions of each
CLIP = 10.0  # of the norm of all gradients


def configuration(
    kind: Literal["delta", "frame"],
    num_tokens: int,
    *,
    max_pixel_weight: float = 0.01,
    i_tokens: bool = True,
) -> DeltaIrisConfig:
    """``tiny16`` with another tokenizer, or without I-tokens.

    The frame tokenizer is that of ``iris_tiny16``, but trained as part of Delta-IRIS: on the second
    frames of the very pairs of which the delta tokenizer learns.
    """
    base = delta_iris_tiny16()
    return dataclasses.replace(
        base,
        tokenizer=dataclasses.replace(
            base.tokenizer, kind=kind, num_tokens=num_tokens, max_pixel_weight=max_pixel_weight
        ),
        world_model=dataclasses.replace(base.world_model, i_tokens=i_tokens),
    )


def experience(
    env: Environment, key: jax.Array, episodes: int
) -> tuple[Record, ScrollGridState | PyTree]:
    """Whole episodes of random actions.

    Args:
      env: whose episodes are all of the same length L.
      key: a PRNG key.
      episodes: E.

    Returns:
      Records ``(E, L + 1, ...)`` and the environment's states at them.
    """
    steps, batched = env.spec.max_episode_steps, envs.batch(env, episodes)

    @jax.jit
    def play(key: jax.Array) -> tuple[Record, PyTree]:
        key_actions, key_reset, key_steps = jax.random.split(key, 3)
        actions = jax.random.randint(key_actions, (steps + 1, episodes), 0, env.spec.num_actions)

        def step(now: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            (state, time_step), (action, key) = now, inputs
            record = Record(
                time_step.observation,
                action,
                time_step.reward,
                time_step.terminated,
                time_step.truncated,
                time_step.is_first,
            )
            return batched.step(state, action, key), (record, state)

        keys = jax.random.split(key_steps, steps + 1)
        _, seen = jax.lax.scan(step, batched.reset(key_reset), (actions, keys))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), seen)

    return play(key)


def fit(
    loss: Loss,
    part: str,
    variables: PyTree,
    optimizer: Any,
    records: Record,
    key: jax.Array,
    *,
    updates: int,
    batch: int,
    length: int,
    chunk: int,
) -> tuple[PyTree, dict[str, float]]:
    """Train one part of a model on windows drawn uniformly from fixed experience.

    Args:
      loss: of ``WorldModel.parts``.
      part: which of ``variables["params"]`` it trains.
      variables: of the model.
      optimizer: an optax gradient transformation.
      records: ``(E, T, ...)``.
      key: a PRNG key.
      updates: how many, a multiple of the chunk.
      batch: B, windows of a batch.
      length: of the windows, in records.
      chunk: updates of one compiled call.

    Returns:
      The trained variables, and the means of the metrics over the last chunk.

    Raises:
      ValueError: for updates that do not divide into chunks.
    """
    if updates < 1 or updates % chunk:
        raise ValueError(f"{updates} updates are not a positive multiple of the chunk of {chunk}.")
    episodes, total = records.reward.shape

    def update(state: Any, step_key: jax.Array, records: Record) -> tuple[Any, Any]:
        variables, optimizer_state = state
        key_episode, key_start, key_loss = jax.random.split(step_key, 3)
        episode = jax.random.randint(key_episode, (batch, 1), 0, episodes)
        start = jax.random.randint(key_start, (batch, 1), 0, total - length + 1)
        windows = jax.tree.map(lambda x: x[episode, start + jnp.arange(length)], records)

        def of_part(params: PyTree) -> Any:
            own = {**variables["params"], part: params}
            return loss({**variables, "params": own}, windows, key_loss)

        params = variables["params"][part]
        gradients, (new_state, metrics) = jax.grad(of_part, has_aux=True)(params)
        changes, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        params = {**variables["params"], part: optax.apply_updates(params, changes)}
        return ({**variables, **new_state, "params": params}, optimizer_state), metrics

    @jax.jit
    def run(state: Any, keys: jax.Array, records: Record) -> tuple[Any, Any]:
        return jax.lax.scan(lambda state, k: update(state, k, records), state, keys)

    state = (variables, optimizer.init(variables["params"][part]))
    metrics: Any = {}
    for keys in jax.random.split(key, (updates // chunk, chunk)):
        state, metrics = run(state, keys, records)
    return state[0], {name: float(x.mean()) for name, x in metrics.items()}


def parts_of(config: DeltaIrisConfig, spec: EnvSpec) -> dict[str, Loss]:
    """The losses of the two parts of a model."""
    parts = make_delta_iris(config, spec).parts
    assert parts is not None
    return parts


def train_tokenizer(
    config: DeltaIrisConfig, spec: EnvSpec, records: Record, key: jax.Array, budget: Budget
) -> tuple[PyTree, dict[str, float]]:
    """Variables with a trained tokenizer, and its last metrics."""
    key_init, key_fit = jax.random.split(key)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(2e-3))
    return fit(
        parts_of(config, spec)["tokenizer"],
        "tokenizer",
        jax.jit(make_delta_iris(config, spec).init)(key_init),
        optimizer,
        records,
        key_fit,
        updates=budget.tokenizer_updates,
        batch=TOKENIZER_BATCH,
        length=2,
        chunk=budget.chunk,
    )


def train_transformer(
    config: DeltaIrisConfig,
    spec: EnvSpec,
    variables: PyTree,
    records: Record,
    key: jax.Array,
    budget: Budget,
) -> tuple[PyTree, dict[str, float]]:
    """The variables with a trained transformer, made anew for this config, and its last metrics."""
    key_init, key_fit = jax.random.split(key)
    fresh = jax.jit(make_delta_iris(config, spec).init)(key_init)["params"]["dynamics"]
    variables = {**variables, "params": {**variables["params"], "dynamics": fresh}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(1e-3, weight_decay=0.01, mask=_kernels)
    )
    return fit(
        parts_of(config, spec)["dynamics"],
        "dynamics",
        variables,
        optimizer,
        records,
        key_fit,
        updates=budget.world_model_updates,
        batch=SEQUENCES,
        length=STEPS + 1,
        chunk=budget.chunk,
    )


def _kernels(params: PyTree) -> PyTree:
    """What decays: the matrices of linear layers, no convolutions, tables, biases or scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: path[-1].key == "kernel" and x.ndim == 2, params
    )


def make_reconstruct(
    config: DeltaIrisConfig, spec: EnvSpec
) -> Callable[[PyTree, Any, Any, Any], jax.Array]:
    """``(variables, frames, previous (n, S, S, C) uint8, action (n,)) -> (n, S, S, C)`` in [0, 1].

    What is decoded is rounded to pixels, as in a dream.
    """
    tokenizer = iris_parts.make_tokenizer(config.tokenizer, spec, None, jnp.float32)

    @jax.jit
    def reconstruct(
        variables: PyTree, frames: jax.Array, previous: jax.Array, action: jax.Array
    ) -> jax.Array:
        unit = [to_square(from_uint8(x), tokenizer.image_size) for x in (frames, previous)]
        decoded = tokenizer.apply(tokenizer_variables(variables), *unit, action)
        return to_pixels(from_square(decoded, spec.observation_shape))

    return reconstruct
