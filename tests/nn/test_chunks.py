"""What is mapped a chunk after the other is what is mapped at once, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from worldmodels_jax.nn.chunks import in_chunks, module_in_chunks


@pytest.mark.parametrize(("size", "expected"), [(1, [1] * 7), (3, [3] * 3), (4, [4, 4]), (7, [7])])
def test_rows_are_cut_evenly(size: int, expected: list[int]) -> None:
    seen: list[int] = []

    def double(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(len(x)), x)
        return 2 * x

    rows = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(in_chunks(double, rows, size), 2 * rows)
    jax.effects_barrier()
    assert seen == expected


class Pair(nn.Module):
    """One layer for the first of two arrays, joined with the second."""

    size: int

    def setup(self) -> None:
        self.layer = nn.Dense(5)

    def __call__(self, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        return module_in_chunks(lambda pair, rows: pair.join(*rows), self, rows, self.size)

    def join(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tanh(self.layer(x)) * y


@pytest.mark.parametrize("size", [2, 3])
def test_a_module_keeps_its_result_and_gradients(size: int) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(7, 4)), rng.normal(size=(7, 1)))
    rows = jax.tree.map(jnp.float32, rows)
    variables = Pair(7).init(jax.random.key(0), rows)
    assert jax.tree.structure(variables) == jax.tree.structure(
        Pair(size).init(jax.random.key(0), rows)
    )

    def loss(variables: dict, rows: tuple[jax.Array, jax.Array], size: int) -> jax.Array:
        return (Pair(size).apply(variables, rows) ** 2).sum()

    assert "scan" in str(jax.make_jaxpr(lambda v, r: loss(v, r, size))(variables, rows))
    assert "scan" not in str(jax.make_jaxpr(lambda v, r: loss(v, r, 7))(variables, rows))
    whole, cut = (jax.grad(loss, (0, 1))(variables, rows, n) for n in (7, size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, cut)
    expected = np.tanh(rows[0] @ variables["params"]["layer"]["kernel"]) * rows[1]
    np.testing.assert_allclose(Pair(size).apply(variables, rows), expected, atol=1e-5)


def test_an_accelerator_takes_a_module_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (jnp.ones((7, 4)), jnp.ones((7, 1)))
    variables = Pair(7).init(jax.random.key(0), rows)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" not in str(jax.make_jaxpr(Pair(2).apply)(variables, rows))
