"""Leaving out unlikely classes before sampling: the k likeliest, and the nucleus."""

import jax
import jax.numpy as jnp


def truncate(
    log_probs: jax.Array, top_k: int | None = None, top_p: float | None = None
) -> jax.Array:
    """Keeps the k likeliest classes, then of these the fewest that make up a share p.

    The second is nucleus sampling (Holtzman et al., 2020), its share one of what the first left.

    Args:
      log_probs: ``(..., V)`` log-probabilities.
      top_k: k, at least 1; None for all. Classes as likely as the k-th stay too.
      top_p: p, in (0, 1]; None for all.

    Returns:
      ``(..., V)`` float32 log-probabilities of the rest, normalised; -inf for what is left out.

    Raises:
      ValueError: for a k below 1 or another p.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} leaves nothing to sample: give at least 1, or None.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is no share: give a number in (0, 1], or None.")
    kept = jax.nn.log_softmax(log_probs.astype(jnp.float32))
    if top_k is not None and top_k < kept.shape[-1]:
        least = jax.lax.top_k(kept, top_k)[0][..., -1:]
        kept = jax.nn.log_softmax(jnp.where(kept >= least, kept, -jnp.inf))
    if top_p is not None and top_p < 1:
        ordered = jnp.flip(jnp.sort(kept, axis=-1), -1)
        probs = jnp.exp(ordered)
        # A class is in the nucleus if the likelier ones do not make up the share already.
        inside = jnp.cumsum(probs, axis=-1) - probs < top_p
        least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        kept = jax.nn.log_softmax(jnp.where(kept >= least, kept, -jnp.inf))
    return kept
