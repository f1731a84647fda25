"""Codes that begin as vectors of the data, and begin anew where unused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn.quantiser import Quantiser
from worldmodels_jax.nn.seeded_quantiser import (
    CodeUse,
    SeededQuantiser,
    euclidean_quantiser,
)

V, K, EVERY, BELOW = 6, 2, 3, 4
KEY = jax.random.key(0)
# Four places, far apart.
VECTORS = jnp.tile(jnp.array([[1.0, 0.0], [0.0, 9.0], [5.0, 5.0], [-7.0, 1.0]]), (2, 1))
VALID = jnp.ones(8, bool)


def make(axis_name: str | None = None) -> SeededQuantiser:
    made = euclidean_quantiser(V, K, 1.0, EVERY, BELOW, axis_name)
    assert isinstance(made, SeededQuantiser)
    return made


@pytest.fixture(scope="module")
def variables() -> Any:
    return make().init(KEY, VECTORS)


def step(quantiser: SeededQuantiser, variables: Any, vectors: Any, valid: Any, key: Any) -> Any:
    def run(module: SeededQuantiser) -> Any:
        got = module(vectors)
        module.update(vectors, got.tokens, valid, key)
        return got

    got, state = quantiser.apply(variables, method=run, mutable=["vq"])
    return got, {**variables, **state}


def codes(variables: Any) -> np.ndarray:
    return np.asarray(variables["params"]["codes"] + variables["vq"]["use"].offset)


def test_the_first_update_takes_vectors_of_the_batch(variables: Any) -> None:
    assert np.abs(codes(variables)).max() <= 1 / V
    got, after = step(make(), variables, VECTORS, VALID.at[1].set(False).at[5].set(False), KEY)
    # What was quantised was so by the codes before.
    assert np.abs(got.vectors).max() <= 1 / V
    allowed = np.asarray(VECTORS[jnp.array([0, 2, 3])])
    for code in codes(after):
        assert np.abs(allowed - code).max(1).min() < 1e-6
    got = make().apply(after, VECTORS[:1])
    np.testing.assert_allclose(got.vectors, codes(after)[got.tokens], atol=1e-6)
    use = after["vq"]["use"]
    assert use.updates == 1
    assert not use.used.any()
    # Parameters are their optimiser's.
    np.testing.assert_array_equal(after["params"]["codes"], variables["params"]["codes"])


def test_unused_codes_are_moved_when_it_is_time(variables: Any) -> None:
    places = jnp.array([[1.0, 0.0], [0.0, 9.0], [50.0, 0.0], [60.0, 0.0], [70.0, 0.0], [80.0, 0.0]])
    use = CodeUse(places - variables["params"]["codes"], jnp.zeros(V), jnp.int32(1))
    now = {**variables, "vq": {"use": use}}
    # Three of the first, then one more: four are enough. Of the second there are too few.
    few = jnp.array([[1.0, 0.1], [0.9, 0.0], [1.0, 0.0], [0.0, 8.0]])
    run = jax.jit(step, static_argnums=0)
    _, now = run(make(), now, few, jnp.ones(4, bool), KEY)
    assert now["vq"]["use"].used.tolist() == [3, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(codes(now), places, atol=1e-5)
    _, now = run(make(), now, few, jnp.array([True, False, False, True]), KEY)
    np.testing.assert_allclose(codes(now)[0], places[0], atol=1e-5)
    for code in codes(now)[1:]:
        assert min(np.abs(code - few[i]).max() for i in (0, 3)) < 1e-5
    assert not now["vq"]["use"].used.any()
    assert now["vq"]["use"].updates == 3


def test_codes_are_trained_as_those_of_the_plain_quantiser(variables: Any) -> None:
    moved = step(make(), variables, VECTORS, VALID, KEY)[1]

    def loss(params: Any) -> jax.Array:
        return make().apply({**moved, "params": params}, VECTORS + 0.1).loss.sum()

    got = jax.grad(loss)(moved["params"])["codes"]
    plain = {"params": {"codes": jnp.asarray(codes(moved))}}
    quantiser = Quantiser("euclidean", V, K, 1.0)
    expected = jax.grad(lambda p: quantiser.apply({"params": p}, VECTORS + 0.1).loss.sum())(
        plain["params"]
    )["codes"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_devices_agree(variables: Any) -> None:
    halves = jnp.stack([VECTORS[:4], VECTORS[4:] + 100.0])

    def run(vectors: jax.Array, key: jax.Array) -> Any:
        return step(make("device"), variables, vectors, jnp.ones(4, bool), key)[1]["vq"]["use"]

    use = jax.jit(jax.vmap(run, axis_name="device"))(halves, jax.random.split(KEY))
    np.testing.assert_array_equal(use.offset[0], use.offset[1])
    # Either half gave some.
    far = codes({**variables, "vq": {"use": jax.tree.map(lambda x: x[0], use)}})[:, 0] > 50
    assert far.any()
    assert not far.all()


def test_none_without_a_period() -> None:
    assert type(euclidean_quantiser(V, K, 1.0, 0, BELOW, None)) is Quantiser
