"""Mask schedules, partitions and the decoders of a masked-token prior (MaskGIT, draft-and-revise).

Sources: GIT-STORM (Meo, 2026, chapter 5), algorithms 1 and 2 and equation 5.3; MaskGIT (Chang et
al., 2022) for the cosine schedule and confidence decoding. Tokens are int32 in ``[0, V)``; the
value V is the ``[MASK]`` token. A *head* is any function ``tokens (B, N) -> log_probs (B, N, V)``.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.ops import categorical

Head = Callable[[jax.Array], jax.Array]


def random_ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform random permutations of ``0..N-1`` along the last axis of ``shape``, int32.

    Ranks come from comparing every pair: N is a few dozen, where N² comparisons are cheaper than a
    sort on every backend.
    """
    noise = jax.random.uniform(key, shape)
    index = jnp.arange(shape[-1])
    before = (noise[..., None, :] < noise[..., :, None]) | (
        (noise[..., None, :] == noise[..., :, None]) & (index[None, :] < index[:, None])
    )
    return before.sum(-1, dtype=jnp.int32)


def num_masked(u: jax.Array, num_tokens: int) -> jax.Array:
    """Size of a training mask, ``M = max(1, ceil(cos(pi u / 2) N))`` for u in [0, 1), int32.

    The paper writes the ceiling, both public codes take the floor; the ceiling is followed. The
    small offset keeps rounding of the cosine from turning an exact ratio into one token more.
    """
    ratio = jnp.cos(0.5 * jnp.pi * u)
    return jnp.clip(jnp.ceil(ratio * num_tokens - 1e-4), 1, num_tokens).astype(jnp.int32)


def training_mask(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Random masks for training the prior: M of N positions, uniform without replacement.

    Args:
      key: a PRNG key.
      shape: ``(..., N)``.

    Returns:
      ``mask (..., N)`` bool, True where the token is hidden and must be predicted, and
      ``scale (...)``, float32 N/M: a sum over the masked positions times it keeps the size of a
      sum over all N, so that a free-bits threshold means the same for every mask ratio.
    """
    key_size, key_positions = jax.random.split(key)
    count = num_masked(jax.random.uniform(key_size, shape[:-1]), shape[-1])
    mask = random_ranks(key_positions, shape) < count[..., None]
    return mask, shape[-1] / count.astype(jnp.float32)


def partition(key: jax.Array, batch: int, num_tokens: int, num_groups: int) -> jax.Array:
    """Random partitions of N positions into T disjoint groups whose sizes differ by at most one.

    Returns:
      Masks ``(T, B, N)`` bool; for every sample each position is True in exactly one of them.

    Raises:
      ValueError: if ``num_groups`` is not in ``[1, N]``.
    """
    if not 1 <= num_groups <= num_tokens:
        raise ValueError(
            f"cannot split {num_tokens} tokens into {num_groups} groups: the number of rounds "
            f"(T_draft, T_revise) must lie between 1 and {num_tokens}."
        )
    if num_groups == 1:
        return jnp.ones((1, batch, num_tokens), bool)
    group = random_ranks(key, (batch, num_tokens)) * num_groups // num_tokens
    return group[None] == jnp.arange(num_groups)[:, None, None]


def live_rounds(draft_rounds: int, revise_rounds: int, repetitions: int) -> tuple[int, ...]:
    """Numbers of groups of the rounds that can reach the result: ``(T_draft, T_revise, ...)``.

    A round with one group masks every token, so nothing of the rounds before it survives: they are
    dead, and leaving them out changes the cost but not the distribution. With the paper's
    ``T_draft = T_revise = repetitions = 1`` a single evaluation of the head remains.
    """
    rounds = (draft_rounds, *([revise_rounds] * repetitions))
    last_full = max((i for i, groups in enumerate(rounds) if groups == 1), default=0)
    return rounds[last_full:]


def _tempered(log_probs: jax.Array, temperature: float) -> jax.Array:
    return log_probs if temperature == 1.0 else jax.nn.log_softmax(log_probs / temperature)


def _sample(key: jax.Array, log_probs: jax.Array, temperature: float) -> jax.Array:
    return categorical.sample_classes(key, _tempered(log_probs, temperature))


def draft_and_revise(
    head: Head,
    key: jax.Array,
    *,
    batch: int,
    num_tokens: int,
    mask_token: int,
    draft_rounds: int = 1,
    revise_rounds: int = 1,
    repetitions: int = 1,
    temperature: float = 1.0,
) -> jax.Array:
    """Sample tokens by draft-and-revise (algorithms 1 and 2).

    Draft: from all ``[MASK]``, the groups of a random partition of T_draft groups are sampled one
    after the other. Revise, Γ times: each group of a fresh partition of T_revise groups is hidden
    and sampled again given all others.

    Args:
      head: maps tokens ``(B, N)`` to log-probabilities ``(B, N, V)``.
      key: a PRNG key.
      batch: B.
      num_tokens: N.
      mask_token: the index of ``[MASK]``, V.
      draft_rounds: T_draft, static.
      revise_rounds: T_revise, static.
      repetitions: Γ, the number of revisions, static; 0 leaves the draft as it is.
      temperature: divides the log-probabilities; 1 samples the model's own distribution.

    Returns:
      Tokens ``(B, N)`` int32, without any ``[MASK]``.

    Raises:
      ValueError: if a number of rounds is not in ``[1, N]``.
    """
    rounds = live_rounds(draft_rounds, revise_rounds, repetitions)
    keys = jax.random.split(key, len(rounds) + 1)
    masks = jnp.concatenate(
        [partition(k, batch, num_tokens, groups) for k, groups in zip(keys, rounds, strict=False)]
    )

    def resample(tokens: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        mask, step_key = inputs
        log_probs = head(jnp.where(mask, mask_token, tokens))
        chex.assert_shape(log_probs, (batch, num_tokens, mask_token))
        return jnp.where(mask, _sample(step_key, log_probs, temperature), tokens), None

    tokens = jnp.full((batch, num_tokens), mask_token, jnp.int32)
    step_keys = jax.random.split(keys[-1], masks.shape[0])
    if masks.shape[0] == 1:  # no loop around a single evaluation
        return resample(tokens, (masks[0], step_keys[0]))[0]
    return jax.lax.scan(resample, tokens, (masks, step_keys))[0]


def _still_masked(num_tokens: int, steps: int) -> jax.Array:
    """Tokens that stay masked after each step of confidence decoding: ``(S,)``, ending in 0."""
    if not 1 <= steps <= num_tokens:
        raise ValueError(
            f"cannot decode {num_tokens} tokens in {steps} steps: choose 1 to {num_tokens} steps."
        )
    progress = (jnp.arange(steps) + 1.0) / steps
    count = jnp.floor(num_tokens * jnp.cos(0.5 * jnp.pi * progress)).astype(jnp.int32)
    return jnp.minimum(count, num_tokens - 1 - jnp.arange(steps)).at[-1].set(0)


def confidence_decode(
    head: Head,
    key: jax.Array,
    *,
    batch: int,
    num_tokens: int,
    mask_token: int,
    steps: int = 8,
    choice_temperature: float = 1.0,
    temperature: float = 1.0,
) -> jax.Array:
    """Sample tokens by MaskGIT's own decoding: keep the most confident tokens, step by step.

    After step s of S, ``floor(N cos(pi (s + 1) / (2 S)))`` tokens stay masked (at least one fewer
    than before): those whose ``log p + choice_temperature (1 - (s + 1)/S) Gumbel`` is lowest.

    Args:
      head: maps tokens ``(B, N)`` to log-probabilities ``(B, N, V)``.
      key: a PRNG key.
      batch: B.
      num_tokens: N.
      mask_token: the index of ``[MASK]``, V.
      steps: S, static, at most N.
      choice_temperature: noise on the confidence, annealed to zero; 0 is greedy in the order.
      temperature: divides the log-probabilities.

    Returns:
      Tokens ``(B, N)`` int32, without any ``[MASK]``.

    Raises:
      ValueError: if ``steps`` is not in ``[1, N]``.
    """
    still_masked = _still_masked(num_tokens, steps)
    progress = (jnp.arange(steps) + 1.0) / steps

    def step(
        tokens: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        step_key, remaining, done = inputs
        key_sample, key_choice = jax.random.split(step_key)
        hidden = tokens == mask_token
        log_probs = head(tokens)
        sampled = _sample(key_sample, log_probs, temperature)
        confidence = jnp.take_along_axis(log_probs, sampled[..., None], axis=-1)[..., 0]
        noise = choice_temperature * (1.0 - done) * jax.random.gumbel(key_choice, confidence.shape)
        confidence = jnp.where(hidden, confidence + noise, jnp.inf)  # a kept token stays kept
        order = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        tokens = jnp.where(hidden, sampled, tokens)
        return jnp.where(order < remaining, mask_token, tokens), None

    tokens = jnp.full((batch, num_tokens), mask_token, jnp.int32)
    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, tokens, (keys, still_masked, progress))[0]


def confidence_groups(key: jax.Array, batch: int, num_tokens: int, steps: int) -> jax.Array:
    """Random partitions with the group sizes of confidence decoding's S steps.

    Returns:
      Masks ``(S, B, N)`` bool in the order of decoding; for every sample each position is True in
      exactly one of them.

    Raises:
      ValueError: if ``steps`` is not in ``[1, N]``.
    """
    still_masked = _still_masked(num_tokens, steps)
    # Ranks count from the token that is decoded last.
    ranks = random_ranks(key, (batch, num_tokens))
    before = jnp.concatenate([jnp.array([num_tokens]), still_masked[:-1]])
    low, high = still_masked[:, None, None], before[:, None, None]
    return (low <= ranks) & (ranks < high)


def chain_log_likelihood(
    head: Head,
    tokens: jax.Array,
    groups: jax.Array,
    *,
    mask_token: int,
    temperature: float = 1.0,
) -> jax.Array:
    """Log-probability of each token if the groups are decoded one after the other.

    The chain rule over groups, ``log p(z_i | z of earlier groups)`` for i in each group: all tokens
    of a group are predicted at once, while theirs and all later groups are ``[MASK]``. The sum over
    the tokens is the log-likelihood of the frame under a decoder that samples in this order.

    Args:
      head: maps tokens ``(B, N)`` to log-probabilities ``(B, N, V)``.
      tokens: ``(B, N)`` int32 in ``[0, V)``.
      groups: ``(G, B, N)`` bool, a partition of the positions, e.g. of ``partition``.
      mask_token: the index of ``[MASK]``, V.
      temperature: of the sampling.

    Returns:
      ``(B, N)`` float32, in nats.
    """
    chex.assert_equal_shape([tokens, groups[0]])

    def step(masked: jax.Array, group: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = _tempered(head(jnp.where(masked, mask_token, tokens)), temperature)
        chex.assert_shape(log_probs, (*tokens.shape, mask_token))
        chosen = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
        return masked & ~group, jnp.where(group, chosen, 0.0)

    everything = jnp.ones(tokens.shape, bool)
    if groups.shape[0] == 1:  # no loop around a single evaluation
        return step(everything, groups[0])[1]
    return jax.lax.scan(step, everything, groups)[1].sum(0)
