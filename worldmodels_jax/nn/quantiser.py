"""Vector quantisation: the nearest of N codes, learnt by moving averages or by gradient.

Two variants behind one module. ``cosine_ema`` is that of Delta-IRIS (Micheli et al., 2024): unit
vectors, a codebook that follows the vectors assigned to it and takes part in no gradient, and the
revival of codes that nothing is assigned to. ``euclidean`` is that of VQ-VAE (van den Oord et al.,
2017) and IRIS: a trained codebook drawn to the vectors, and these to it.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.ops.collectives import pmean, psum
from worldmodels_jax.types import PyTree

Variant = Literal["cosine_ema", "euclidean"]

CODE_DECAY = 0.99  # of a code's direction, per update
USAGE_DECAY = 0.98  # of a code's share of the vectors, per update
COLLECTION = "vq"  # where a codebook that is not trained by gradient is kept


class Codebook(NamedTuple):
    """The state of ``cosine_ema``: no parameter, so that no optimiser touches it."""

    codes: jax.Array  # (N, K) float32, rows of unit norm
    usage: jax.Array  # (N,) float32, moving average of each code's share of the vectors
    updates: jax.Array  # () int32, updates so far


class Quantised(NamedTuple):
    """Vectors and the codes that stand for them."""

    tokens: jax.Array  # (...) int32 in [0, N)
    vectors: jax.Array  # (..., K) float32, the code, with the gradient passed straight through
    loss: jax.Array  # (...) float32, what draws vectors to codes (and trained codes to vectors)


class FrameCodes(NamedTuple):
    """What a frame tokenizer makes of frames; the leading axes are theirs."""

    tokens: jax.Array  # (..., N tokens) int32
    vectors: jax.Array  # (..., N tokens, K) float32, straight-through, what the decoder takes
    loss: jax.Array  # (...) float32, the quantiser's, mean over the tokens
    inputs: jax.Array  # (..., N tokens, K) float32, what was quantised


def normalise(x: jax.Array) -> jax.Array:
    """Scales vectors ``(..., K)`` to length one; a zero vector stays zero and has no gradient."""
    square = (x**2).sum(-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, x * jax.lax.rsqrt(jnp.where(zero, 1.0, square)))


def usage_entropy(usage: jax.Array) -> jax.Array:
    """Entropy of how often each code is used, in bits: ``(..., N) -> (...)``, at most log2 N."""
    total = usage.sum(-1, keepdims=True)
    share = usage / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    return -jnp.where(share > 0, share * jnp.log2(jnp.where(share > 0, share, 1.0)), 0.0).sum(-1)


def init_codebook(key: jax.Array, num_codes: int, code_size: int) -> Codebook:
    """Uniformly drawn codes of unit norm, all used alike."""
    codes = jax.random.uniform(key, (num_codes, code_size), jnp.float32, -1.0, 1.0)
    usage = jnp.full((num_codes,), 1.0 / num_codes, jnp.float32)
    return Codebook(normalise(codes), usage, jnp.zeros((), jnp.int32))


def update_codebook(
    codebook: Codebook,
    vectors: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    *,
    revival_limit: int | None = None,
    axis_name: str | None = None,
) -> Codebook:
    """Moves codes towards the mean direction of the vectors assigned to them, and revives.

    ``E <- 0.99 E + 0.01 m`` with m the normalised mean of a code's vectors (zero where it has
    none), usage ``f <- 0.98 f + 0.02 count / n``, then rows of unit norm again: a code without
    vectors keeps its direction.

    A code is dead if ``f < 1 / (10 N)``. Dead codes are replaced by random vectors of the batch,
    their usage by 1/N, if the entropy H of f in bits is below ``log2 N - 2`` and the limit allows.

    Args:
      codebook: before.
      vectors: ``(n, K)`` of unit norm.
      tokens: ``(n,)`` int32, the code of each.
      valid: ``(n,)`` bool; what is False counts for nothing.
      key: a PRNG key, for the vectors that revived codes are given.
      revival_limit: updates after which codes are revived only where H < 1; None for no end.
      axis_name: mapped axis the vectors are split over; the result is the same on every device.

    Returns:
      The codebook after.
    """
    num_codes, code_size = codebook.codes.shape
    chex.assert_shape(vectors, (None, code_size))
    chex.assert_equal_shape([tokens, valid, vectors[:, 0]])
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    weight = valid.astype(jnp.float32)
    assigned = jax.nn.one_hot(tokens, num_codes) * weight[:, None]  # (n, N)
    count = psum(assigned.sum(0), axis_name)
    mean = psum(assigned.T @ vectors, axis_name) / jnp.maximum(count, 1.0)[:, None]
    codes = CODE_DECAY * codebook.codes + (1 - CODE_DECAY) * normalise(mean)
    share = count / jnp.maximum(count.sum(), 1.0)
    usage = USAGE_DECAY * codebook.usage + (1 - USAGE_DECAY) * share

    entropy = usage_entropy(usage)
    allowed = jnp.asarray(True)
    if revival_limit is not None:
        allowed = (entropy < 1.0) | (codebook.updates < revival_limit)
    revive = allowed & (entropy < jnp.log2(num_codes) - 2.0)
    dead = revive & (usage < 0.1 / num_codes)
    donors = donor_vectors(vectors, weight, num_codes, key, axis_name)
    codes = normalise(jnp.where(dead[:, None], donors, codes))
    usage = jnp.where(dead, 1.0 / num_codes, usage)
    # A batch without a valid vector says nothing of how codes are used.
    seen = count.sum() > 0
    after = Codebook(codes, usage, codebook.updates + 1)
    return jax.tree.map(lambda new, old: jnp.where(seen, new, old), after, codebook)


def donor_vectors(
    vectors: jax.Array, weight: jax.Array, num_codes: int, key: jax.Array, axis_name: str | None
) -> jax.Array:
    """A random valid vector for each code, ``(N, K)``."""
    log_weight = jnp.where(weight > 0, 0.0, -jnp.inf)
    # With nothing valid the result is not used, but the draw must still be one.
    log_weight = jnp.where(weight.sum() > 0, log_weight, 0.0)
    donors = vectors[jax.random.categorical(key, log_weight, shape=(num_codes,))]
    if axis_name is None:
        return donors
    # All devices must agree: device d gives the donors of the codes d, d + devices, and so on, or
    # those after it where nothing on it is valid.
    everywhere = jax.lax.all_gather(donors, axis_name)
    has_any = jax.lax.all_gather(weight.sum() > 0, axis_name)
    devices = jnp.flatnonzero(has_any, size=has_any.shape[0], fill_value=0)
    turn = jnp.arange(num_codes) % jnp.maximum(has_any.sum(), 1)
    donors = everywhere[devices[turn], jnp.arange(num_codes)]
    # Already equal everywhere; the mean is what lets shard_map see it.
    return pmean(donors, axis_name)


class Quantiser(nn.Module):
    """The nearest of N codes.

    ``cosine_ema``: vectors are normalised, the code is that of largest cosine, the loss
    ``commitment mean (v - sg(q))^2`` over the K coordinates. The codebook is kept in the
    collection ``"vq"`` and updated in training.

    ``euclidean``: the code is that of least distance, the loss
    ``mean (sg(v) - q)^2 + commitment mean (v - sg(q))^2``; the codebook is a parameter.

    Attributes:
      variant: which of the two.
      num_codes: N.
      code_size: K.
      commitment: weight of what draws the vectors to their codes.
      revival_limit: see ``update_codebook``; ``cosine_ema`` only.
      axis_name: mapped axis over which the updates are summed.
    """

    variant: Variant
    num_codes: int
    code_size: int
    commitment: float
    revival_limit: int | None = None
    axis_name: str | None = None

    def setup(self) -> None:
        if self.variant == "cosine_ema":
            self.state: Any = self.variable(
                COLLECTION,
                "codebook",
                lambda: init_codebook(self.make_rng("params"), self.num_codes, self.code_size),
            )
        else:
            bound = 1.0 / self.num_codes
            self.codes = self.param(
                "codes",
                lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound),
                (self.num_codes, self.code_size),
            )

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Codes of tokens: ``(...) int32 -> (..., K)``."""
        codes = self.state.value.codes if self.variant == "cosine_ema" else self.codes
        return codes[tokens]

    def __call__(self, vectors: jax.Array) -> Quantised:
        """Quantise ``(..., K)``, in float32; nothing is updated."""
        chex.assert_shape(vectors, (..., self.code_size))
        sg = jax.lax.stop_gradient
        vectors = vectors.astype(jnp.float32)
        if self.variant == "cosine_ema":
            vectors = normalise(vectors)
            tokens = jnp.argmax(vectors @ self.state.value.codes.T, axis=-1)
            nearest = self.embed(tokens)
            loss = self.commitment * ((vectors - sg(nearest)) ** 2).mean(-1)
        else:
            # |v|^2 is the same for all codes.
            distance = (self.codes**2).sum(-1) - 2.0 * vectors @ self.codes.T
            tokens = jnp.argmin(distance, axis=-1)
            nearest = self.embed(tokens)
            loss = ((sg(vectors) - nearest) ** 2).mean(-1)
            loss = loss + self.commitment * ((vectors - sg(nearest)) ** 2).mean(-1)
        straight_through = sg(nearest) + (vectors - sg(vectors))
        return Quantised(tokens.astype(jnp.int32), straight_through, loss)

    def encode(self, vectors: jax.Array) -> FrameCodes:
        """Quantise the tokens of frames, ``(..., N tokens, K)``."""
        got = self(vectors)
        inputs = vectors.astype(jnp.float32)
        return FrameCodes(got.tokens, got.vectors, got.loss.mean(-1), inputs)

    def update(
        self, vectors: jax.Array, tokens: jax.Array, valid: jax.Array, key: jax.Array
    ) -> None:
        """Let an averaged codebook follow the vectors; a trained one has its gradient.

        Args:
          vectors: ``(..., K)`` as they were quantised.
          tokens: ``(...)`` int32.
          valid: ``(...)`` bool.
          key: a PRNG key.
        """
        if self.variant != "cosine_ema" or self.is_initializing():
            return
        self.state.value = update_codebook(
            self.state.value,
            normalise(vectors.astype(jnp.float32)).reshape(-1, self.code_size),
            tokens.reshape(-1),
            valid.reshape(-1),
            key,
            revival_limit=self.revival_limit,
            axis_name=self.axis_name,
        )

    def entropy(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """How evenly codes are used, in bits: of the moving average, or of the batch's tokens."""
        if self.variant == "cosine_ema":
            return usage_entropy(self.state.value.usage)
        assigned = jax.nn.one_hot(tokens, self.num_codes) * valid[..., None]
        count = assigned.reshape(-1, self.num_codes).sum(0)
        return usage_entropy(psum(count, self.axis_name))


class FrameTokenizer(nn.Module):
    """What frame tokenizers share; a subclass has ``encode``, ``decode`` and a quantiser."""

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Codes of tokens: ``(..., N) int32 -> (..., N, K)``."""
        return self.quantiser.embed(tokens)

    def update(self, codes: FrameCodes, valid: jax.Array, key: jax.Array) -> None:
        """Let the codebook follow what it has quantised, unless it is trained by gradient.

        Args:
          codes: of ``encode``.
          valid: ``(...)`` bool, the frames that count.
          key: a PRNG key.
        """
        valid = jnp.broadcast_to(valid[..., None], codes.tokens.shape)
        self.quantiser.update(codes.inputs, codes.tokens, valid, key)

    def entropy(self, codes: FrameCodes, valid: jax.Array) -> jax.Array:
        """How evenly the codebook is used, in bits; see `Quantiser.entropy`."""
        valid = jnp.broadcast_to(valid[..., None], codes.tokens.shape)
        return self.quantiser.entropy(codes.tokens, valid)

    def __call__(
        self,
        frame: jax.Array,
        previous: jax.Array | None = None,
        action: jax.Array | None = None,
    ) -> jax.Array:
        """Reconstruct frames."""
        return self.decode(self.encode(frame, previous, action).vectors, previous, action)


def tokenizer_variables(variables: PyTree) -> PyTree:
    """A tokenizer's own variables, of those of a model that it is a part of.

    Args:
      variables: with the tokenizer's parameters as ``params["tokenizer"]`` and, of a codebook that
        is not trained by gradient alone, the collection of its state.
    """
    state = {COLLECTION: variables[COLLECTION]} if COLLECTION in variables else {}
    return {"params": variables["params"]["tokenizer"], **state}
