"""Categorical latents: unimix, sampling, straight-through gradients, KL and free bits.

The last axis is always V, the classes of one variable. Probabilities and logarithms are float32,
whatever the compute type of the network.
"""

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.ops.collectives import pmean


def unimix_log_probs(logits: jax.Array, unimix: float = 0.01) -> jax.Array:
    """Log-probabilities of a softmax mixed with the uniform, log((1 - u) softmax + u / V).

    The mixture bounds every log-probability from below, so that no KL can explode (DreamerV3).

    Args:
      logits: (..., V), any float type.
      unimix: u, the share of the uniform distribution, in [0, 1); 0 is a plain log-softmax.

    Returns:
      (..., V) float32.

    Raises:
      ValueError: if ``unimix`` is outside [0, 1).
    """
    if not 0 <= unimix < 1:
        raise ValueError(f"unimix is {unimix}; give a share of the uniform in [0, 1), e.g. 0.01.")
    logits = logits.astype(jnp.float32)
    if unimix == 0:
        return jax.nn.log_softmax(logits)
    return jnp.log((1 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1])


def sample_classes(key: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Samples one class per variable by inverting the cumulative distribution.

    Args:
      key: PRNG key.
      log_probs: (..., V) log-probabilities, -inf allowed. A rounding error in their sum is
        harmless. Probabilities are resolved to about 1e-7.

    Returns:
      (...,) int32 in [0, V), never a class of probability zero.
    """
    # One uniform per variable, where the Gumbel trick draws V: random bits are what sampling
    # spends its time on, and imagination samples millions of latents.
    uniform = jax.random.uniform(key, log_probs.shape[:-1], jnp.float32)
    probs = jnp.exp(log_probs.astype(jnp.float32))
    # A parallel cumulative sum may differ by an ulp across a class of probability zero and need not
    # end in 1. Ignoring such classes and scaling the uniform by the largest sum leaves no draw
    # without an owner: uniform < 1, so the threshold is below that sum.
    cumulative = jnp.where(probs > 0, jnp.cumsum(probs, axis=-1), 0.0)
    threshold = uniform[..., None] * jnp.max(cumulative, axis=-1, keepdims=True)
    return jnp.argmax(cumulative > threshold, axis=-1).astype(jnp.int32)


def straight_through(one_hot: jax.Array, probs: jax.Array) -> jax.Array:
    """A sample in the forward pass, its probabilities in the backward pass (Bengio et al. 2013).

    Args:
      one_hot: (..., V) the sample.
      probs: (..., V) the probabilities it was drawn from.

    Returns:
      (..., V) exactly ``one_hot``, with the gradient of ``probs``.
    """
    chex.assert_equal_shape([one_hot, probs])
    # The difference first: it is exactly 0, where (one_hot + probs) - probs would round.
    return one_hot + (probs - jax.lax.stop_gradient(probs))


def entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy of a categorical, -sum_v p_v log p_v, with 0 log 0 = 0.

    Args:
      log_probs: (..., V) log-probabilities; -inf (a class that cannot occur) gets no gradient.

    Returns:
      (...,) float32, in nats.
    """
    log_probs = log_probs.astype(jnp.float32)
    possible = log_probs > -jnp.inf
    # Replaced before use and not after: the gradient of a branch not taken is still computed, and
    # 0 times infinity is not a number.
    finite = jnp.where(possible, log_probs, 0.0)
    return -jnp.sum(jnp.where(possible, jnp.exp(finite) * finite, 0.0), axis=-1)


def kl_divergence(q_probs: jax.Array, p_log_probs: jax.Array) -> jax.Array:
    """KL[q || p] = sum_v q_v (log q_v - log p_v), with 0 log 0 = 0.

    Args:
      q_probs: (..., V) probabilities; entries may be 0 (a one-hot is allowed) and get no gradient.
      p_log_probs: (..., V) log-probabilities.

    Returns:
      (...,) float32, in nats; infinite where p excludes a class that q does not.
    """
    chex.assert_equal_shape([q_probs, p_log_probs])
    q = q_probs.astype(jnp.float32)
    # Not `q > 0`: the logarithm of a subnormal is -inf where the device flushes it to zero.
    possible = q >= jnp.finfo(jnp.float32).tiny
    log_q = jnp.log(jnp.where(possible, q, 1.0))
    log_p = jnp.where(possible, p_log_probs.astype(jnp.float32), 0.0)
    return jnp.sum(jnp.where(possible, q * (log_q - log_p), 0.0), axis=-1)


def balanced_kl(q_probs: jax.Array, p_log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two halves of KL balancing (GIT-STORM, equations 5.3 and 5.4).

    Args:
      q_probs: (..., N, V) posterior probabilities.
      p_log_probs: (..., N, V) prior log-probabilities.

    Returns:
      ``(dyn, rep)``, both (..., N) float32, nats per token and equal in value:
      dyn = KL[sg(q) || p] trains the prior only, rep = KL[q || sg(p)] the posterior only.
    """
    dyn = kl_divergence(jax.lax.stop_gradient(q_probs), p_log_probs)
    rep = kl_divergence(q_probs, jax.lax.stop_gradient(p_log_probs))
    return dyn, rep


def free_bits(kl: jax.Array, threshold: float = 1.0, axis_name: str | None = None) -> jax.Array:
    """max(threshold, KL): a KL below the threshold is free and has no gradient.

    Args:
      kl: scalar or array, in nats.
      threshold: nats that cost nothing.
      axis_name: mapped axis; it is then the mean over the axis that is held to the threshold, so
        that the mean of the results is what the whole batch would give.

    Returns:
      The shape of ``kl``.
    """
    above = pmean(jax.lax.stop_gradient(kl), axis_name) > threshold
    return jnp.where(above, kl, threshold)
