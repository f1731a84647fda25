"""Networks that tell all factors at once: from codes for a score, from images for features."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from worldmodels_jax.evaluation.single_latents import check_factors
from worldmodels_jax.types import PyTree

_HIDDEN = 256
_EPOCHS = 20
_BATCH = 128


class FactorNetwork(NamedTuple):
    """What was trained.

    Attributes:
      trunk: its parameters.
      heads: for each factor (D, values) and (values,), a linear layer on the trunk's output.
    """

    trunk: PyTree
    heads: tuple[tuple[jax.Array, jax.Array], ...]


def fit_factor_network(
    apply: Callable[[PyTree, jax.Array], jax.Array],
    trunk: PyTree,
    inputs: np.ndarray,
    factors: np.ndarray,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int,
    rate: float,
) -> FactorNetwork:
    """Trains a trunk, and a softmax for each factor on top of it, with Adam.

    Args:
      apply: ``(trunk, (B, ...)) -> (B, D)``.
      trunk: its first parameters.
      inputs: (n, ...).
      factors: (n, M) int, not negative.
      key: PRNG key; draws the batches and the heads.
      steps: of training.
      batch_size: B, drawn with replacement.
      rate: of learning.

    Raises:
      ValueError: if a factor does not vary.
    """
    check_factors(factors)
    chex.assert_equal(len(inputs), len(factors))
    key_heads, key_batches = jax.random.split(key)
    width = jax.eval_shape(apply, trunk, jnp.asarray(inputs[:1])).shape[-1]
    initialise = jax.nn.initializers.lecun_normal()
    heads = tuple(
        (initialise(k, (width, int(size))), jnp.zeros(int(size)))
        for k, size in zip(
            jax.random.split(key_heads, factors.shape[1]), factors.max(0) + 1, strict=True
        )
    )
    optimiser = optax.adam(rate)

    def loss(network: FactorNetwork, x: jax.Array, y: jax.Array) -> jax.Array:
        errors = [
            optax.softmax_cross_entropy_with_integer_labels(logits, y[:, j]).mean()
            for j, logits in enumerate(_logits(apply, network, x))
        ]
        return sum(errors, start=jnp.zeros(()))

    @jax.jit
    def step(
        network: FactorNetwork, state: optax.OptState, x: jax.Array, y: jax.Array
    ) -> tuple[FactorNetwork, optax.OptState]:
        updates, state = optimiser.update(jax.grad(loss)(network, x, y), state)
        return optax.apply_updates(network, updates), state

    network = FactorNetwork(trunk, heads)
    state = optimiser.init(network)
    batches = np.asarray(jax.random.randint(key_batches, (steps, batch_size), 0, len(inputs)))
    for index in batches:
        x, y = jnp.asarray(inputs[index]), jnp.asarray(factors[index], jnp.int32)
        network, state = step(network, state, x, y)
    return network


def attribute_accuracy(
    train_codes: np.ndarray,
    train_factors: np.ndarray,
    test_codes: np.ndarray,
    test_factors: np.ndarray,
    key: jax.Array,
) -> float:
    """Mean accuracy of a network of 2 x 256 ReLU units that reads all factors from all latents.

    Adam at 0.001, as many batches of 128 as make 20 epochs.

    Args:
      train_codes: (n, K) float.
      train_factors: (n, M) int, not negative.
      test_codes: (n', K) float.
      test_factors: (n', M) int.
      key: PRNG key.

    Returns:
      In [0, 1].

    Raises:
      ValueError: if a factor does not vary.
    """
    chex.assert_equal(train_codes.shape[1], test_codes.shape[1])
    key_init, key_fit = jax.random.split(key)
    initialise = jax.nn.initializers.he_normal()
    sizes = (train_codes.shape[1], _HIDDEN, _HIDDEN)
    trunk = [
        (initialise(k, (before, after)), jnp.zeros(after))
        for k, before, after in zip(jax.random.split(key_init), sizes[:-1], sizes[1:], strict=True)
    ]
    network = fit_factor_network(
        _hidden,
        trunk,
        np.asarray(train_codes, np.float32),
        train_factors,
        key_fit,
        steps=max(1, _EPOCHS * len(train_codes) // _BATCH),
        batch_size=min(_BATCH, len(train_codes)),
        rate=1e-3,
    )
    logits = jax.jit(functools.partial(_logits, _hidden))(
        network, jnp.asarray(test_codes, jnp.float32)
    )
    predicted = np.stack([np.asarray(x.argmax(-1)) for x in logits], axis=1)
    return float((predicted == test_factors).mean())


def _hidden(trunk: PyTree, x: jax.Array) -> jax.Array:
    for weight, bias in trunk:
        x = jax.nn.relu(x @ weight + bias)
    return x


def _logits(
    apply: Callable[[PyTree, jax.Array], jax.Array], network: FactorNetwork, x: jax.Array
) -> list[jax.Array]:
    hidden = apply(network.trunk, x)
    return [hidden @ weight + bias for weight, bias in network.heads]
