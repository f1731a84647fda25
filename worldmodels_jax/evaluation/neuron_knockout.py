"""Neuron knockout: what networks lose without the latent that stands for a factor."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from worldmodels_jax.evaluation.single_latents import align_neurons
from worldmodels_jax.types import PyTree

_HIDDEN = 256
_BATCH = 4096
_MAX_EPOCHS = 75
_PATIENCE = 4  # epochs without a better training accuracy
_RATE, _DECAY = 1e-2, 0.65


def neuron_knockout(
    train_codes: np.ndarray,
    train_factors: np.ndarray,
    test_codes: np.ndarray,
    test_factors: np.ndarray,
    key: jax.Array,
) -> float:
    """NK (Mahon et al., 2023): test accuracy from all latents minus that without the factor's own.

    A network of 256 ReLU units is trained per factor on standardised codes, with Adam at 0.01 times
    0.65 at epochs 1, 2, 4, 8, ..., for at most 75 epochs: until 99% of the training images are
    right, or 4 epochs made no progress. A factor's own latent is that of ``align_neurons``; it is
    set to its mean.

    Args:
      train_codes: (n, K) float.
      train_factors: (n, M) int, M at most K.
      test_codes: (n', K) float.
      test_factors: (n', M) int, of values that occur in training.
      key: PRNG key; both networks of a factor start alike.

    Returns:
      The mean over factors: 0 if another latent says the same, 1 minus chance for a perfect code.

    Raises:
      ValueError: if there are fewer latents than factors, or a factor does not vary.
    """
    chex.assert_equal(train_codes.shape[1], test_codes.shape[1])
    aligned = align_neurons(train_codes, train_factors)
    mean, scale = train_codes.mean(0), train_codes.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    train, test = ((codes - mean) / scale for codes in (train_codes, test_codes))
    drops = []
    for j, k in enumerate(aligned):
        values, classes = np.unique(train_factors[:, j], return_inverse=True)

        def accuracy(
            kept: np.ndarray,
            j: int = j,
            values: np.ndarray = values,
            classes: np.ndarray = classes,
        ) -> float:
            params = _train(
                jax.random.fold_in(key, j),
                jnp.asarray(train * kept, jnp.float32),
                jnp.asarray(classes, jnp.int32),
                len(values),
            )
            predicted = jnp.argmax(_logits(params, jnp.asarray(test * kept, jnp.float32)), axis=-1)
            return float((values[np.asarray(predicted)] == test_factors[:, j]).mean())

        every = np.ones(train.shape[1])
        drops.append(accuracy(every) - accuracy(every - np.eye(len(every))[k]))
    return float(np.mean(drops))


def _logits(params: PyTree, codes: jax.Array) -> jax.Array:
    (w1, b1), (w2, b2) = params
    return jax.nn.relu(codes @ w1 + b1) @ w2 + b2


def _init(key: jax.Array, num_latents: int, num_classes: int) -> PyTree:
    initialise = jax.nn.initializers.he_normal()
    first, second = jax.random.split(key)
    return (
        (initialise(first, (num_latents, _HIDDEN)), jnp.zeros(_HIDDEN)),
        (initialise(second, (_HIDDEN, num_classes)), jnp.zeros(num_classes)),
    )


def _train(key: jax.Array, codes: jax.Array, classes: jax.Array, num_classes: int) -> PyTree:
    params = _init(key, codes.shape[1], num_classes)
    state = optax.scale_by_adam().init(params)
    rate, best, best_epoch = _RATE, 0.0, 0
    for epoch in range(1, _MAX_EPOCHS + 1):
        if epoch & (epoch - 1) == 0:
            rate *= _DECAY
        params, state, right = _epoch(
            params, state, jax.random.fold_in(key, epoch), codes, classes, rate
        )
        accuracy = float(right)
        if accuracy > best:
            best, best_epoch = accuracy, epoch
        if accuracy > 0.99 or epoch - best_epoch >= _PATIENCE:
            break
    return params


@jax.jit
def _epoch(
    params: PyTree,
    state: optax.OptState,
    key: jax.Array,
    codes: jax.Array,
    classes: jax.Array,
    rate: jax.Array,
) -> tuple[PyTree, optax.OptState, jax.Array]:
    """One shuffled pass, its last partial batch dropped, and the training accuracy after it."""
    batch = min(_BATCH, len(codes))
    steps = len(codes) // batch
    order = jax.random.permutation(key, len(codes))[: steps * batch].reshape(steps, batch)

    def loss(params: PyTree, index: jax.Array) -> jax.Array:
        logits = _logits(params, codes[index])
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes[index]).mean()

    def step(
        carry: tuple[PyTree, optax.OptState], index: jax.Array
    ) -> tuple[tuple[PyTree, optax.OptState], None]:
        params, state = carry
        updates, state = optax.scale_by_adam().update(jax.grad(loss)(params, index), state)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return (params, state), None

    (params, state), _ = jax.lax.scan(step, (params, state), order)
    right = jnp.mean(jnp.argmax(_logits(params, codes), axis=-1) == classes)
    return params, state, right
