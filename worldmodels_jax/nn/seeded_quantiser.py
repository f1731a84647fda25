"""A trained codebook whose codes begin as vectors of the data, and begin anew where unused.

Trained codes near zero are far from what an encoder makes at first: a few of them take all vectors,
and the others, which nothing is assigned to, have no gradient that would bring them back.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.nn.quantiser import COLLECTION, Quantiser, donor_vectors
from worldmodels_jax.ops.collectives import psum


class CodeUse(NamedTuple):
    """Where codes were moved to, and how often they were used since they were last looked at."""

    offset: jax.Array  # (N, K) float32, of the codes from their parameters
    used: jax.Array  # (N,) float32, vectors
    updates: jax.Array  # () int32


class SeededQuantiser(Quantiser):
    """The ``euclidean`` quantiser with codes that are seeded by data.

    A code is a parameter plus an offset, which is kept in the collection ``"vq"``: only there can a
    code be moved without its optimiser. The first update moves every code to a random vector of its
    batch, and so does every ``reseed_every``-th with the codes that fewer than ``reseed_below``
    vectors were assigned to since the last.

    Attributes:
      reseed_every: updates.
      reseed_below: vectors.
    """

    reseed_every: int = 100
    reseed_below: int = 5

    def setup(self) -> None:
        super().setup()
        shape = (self.num_codes, self.code_size)
        self.use: Any = self.variable(
            COLLECTION,
            "use",
            lambda: CodeUse(jnp.zeros(shape), jnp.zeros(self.num_codes), jnp.zeros((), jnp.int32)),
        )
        self.codes = self.codes + self.use.value.offset

    def update(
        self, vectors: jax.Array, tokens: jax.Array, valid: jax.Array, key: jax.Array
    ) -> None:
        """Count what was assigned, and seed codes where it is time; see `Quantiser.update`."""
        if self.is_initializing():
            return
        use: CodeUse = self.use.value
        vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32).reshape(-1, self.code_size)
        weight = valid.astype(jnp.float32).reshape(-1)
        assigned = jax.nn.one_hot(tokens.reshape(-1), self.num_codes) * weight[:, None]
        count = use.used + psum(assigned.sum(0), self.axis_name)
        updates = use.updates + 1
        first, due = use.updates == 0, updates % self.reseed_every == 0
        unused = first | (due & (count < self.reseed_below))
        donors = donor_vectors(vectors, weight, self.num_codes, key, self.axis_name)
        codes = jax.lax.stop_gradient(self.codes)
        offset = use.offset + jnp.where(unused[:, None], donors - codes, 0.0)
        self.use.value = CodeUse(offset, jnp.where(first | due, 0.0, count), updates)


def euclidean_quantiser(
    num_codes: int,
    code_size: int,
    commitment: float,
    reseed_every: int,
    reseed_below: int,
    axis_name: str | None,
) -> Quantiser:
    """A trained codebook, with codes seeded by data or not.

    Args:
      num_codes: N.
      code_size: K.
      commitment: see `Quantiser`.
      reseed_every: see `SeededQuantiser`; 0 for a plain `Quantiser`.
      reseed_below: see `SeededQuantiser`.
      axis_name: mapped axis over which the use of codes is counted.
    """
    common: dict[str, Any] = {
        "variant": "euclidean",
        "num_codes": num_codes,
        "code_size": code_size,
        "commitment": commitment,
        "axis_name": axis_name,
    }
    if not reseed_every:
        return Quantiser(**common)
    return SeededQuantiser(**common, reseed_every=reseed_every, reseed_below=reseed_below)
