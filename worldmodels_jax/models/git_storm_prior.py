"""GIT-STORM's prior p(z_{t+1} | h_t): its training, its sampling and its likelihood.

Functions of the prior's network, MaskGIT's or STORM's single linear layer, as it is bound inside
the model. Meo (2026), section 5.3.2 and equation 5.3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.models.git_storm_config import GitStormConfig
from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.maskgit import MaskGITHead
from worldmodels_jax.nn.tokenizer import Posterior
from worldmodels_jax.ops import categorical, masking


def make_prior(config: GitStormConfig, dtype: Any) -> nn.Module:
    """The network: ``MaskGITHead``, or one linear layer D -> N V for ``prior="mlp"``."""
    if config.prior == "mlp":
        return Dense(config.num_tokens * config.num_classes, dtype=jnp.float32)
    head = config.maskgit
    return MaskGITHead(
        num_tokens=config.num_tokens,
        num_classes=config.num_classes,
        width=head.width,
        layers=head.layers,
        heads=head.heads,
        hidden=head.hidden,
        condition=head.condition,
        tied_logits=head.tied_logits,
        dtype=dtype,
    )


def training(
    prior: Any, config: GitStormConfig, hidden: jax.Array, posterior: Posterior, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The prior at steps 1..T-1 as it is trained.

    Args:
      prior: the bound network.
      config: the model's.
      hidden: ``(B, T-1, D)``, h_0..h_{T-2}.
      posterior: of all T frames.
      key: for the masks.

    Returns:
      log-probabilities ``(B, T-1, N, V)`` and weights ``(B, T-1, N)``: N/M at the M masked
      positions, 0 elsewhere (all 1 for the MLP).
    """
    batch, time, _ = hidden.shape
    shape = (batch, time, config.num_tokens)
    if config.prior == "mlp":
        return _mlp_log_probs(prior, config, hidden), jnp.ones(shape)
    shown = slice(1, None) if config.maskgit.input == "next" else slice(None, -1)
    tokens = posterior.tokens[:, shown]
    mask, scale = masking.training_mask(key, shape)
    visible = jnp.where(mask, config.num_classes, tokens.argmax(-1))
    flat = (visible.reshape(-1, config.num_tokens), hidden.reshape(-1, config.width))
    logits = prior(*flat).reshape(*shape, config.num_classes)
    return categorical.unimix_log_probs(logits, config.unimix), mask * scale[..., None]


def sample(prior: Any, config: GitStormConfig, hidden: jax.Array, key: jax.Array) -> jax.Array:
    """z_{t+1} from h_t: ``(B, D) -> (B, N, V)`` hard one-hot."""
    if config.prior == "mlp":
        classes = categorical.sample_classes(key, _mlp_log_probs(prior, config, hidden))
        return jax.nn.one_hot(classes, config.num_classes)
    c = config.maskgit
    sizes: dict[str, Any] = {
        "batch": hidden.shape[0],
        "num_tokens": config.num_tokens,
        "mask_token": config.num_classes,
        "temperature": c.temperature,
    }
    head = _head(prior, config, hidden)
    if c.decoder == "confidence":
        classes = masking.confidence_decode(head, key, steps=c.confidence_steps, **sizes)
    else:
        classes = masking.draft_and_revise(
            head,
            key,
            draft_rounds=c.draft_rounds,
            revise_rounds=c.revise_rounds,
            repetitions=c.repetitions,
            **sizes,
        )
    return jax.nn.one_hot(classes, config.num_classes)


def log_likelihood(
    prior: Any, config: GitStormConfig, hidden: jax.Array, tokens: jax.Array, key: jax.Array
) -> jax.Array:
    """log p of each token of z_{t+1} given h_t, under the decoding of the config.

    - ``prior="mlp"``: the independent distributions of the linear layer.
    - ``decoder="draft_and_revise"``: the chain over the draft's groups, a random partition as the
      draft draws it; tokens of a round are conditioned on the true tokens of the rounds before.
      With T_draft = 1 that is the product over the tokens given the full mask. A draft that a later
      full-mask round overwrites is not what is decoded: the likelihood is then that round's.
      Revisions that see other tokens are a Markov chain without a tractable likelihood: what is
      reported is the draft they start from.
    - ``decoder="confidence"``: which token is kept when depends on what was sampled elsewhere, and
      the sum over all orders is intractable. What is reported is the chain over groups of the same
      sizes in a random order: a likelihood of the same network and schedule, but not of the
      confident order.

    The unimix and the sampling temperature are part of the distribution, as they are in decoding.

    Args:
      prior: the bound network.
      config: the model's.
      hidden: ``(B, D)``, h_t.
      tokens: ``(B, N)`` int32, z_{t+1}.
      key: for the partitions.

    Returns:
      ``(B, N)`` float32, in nats.
    """
    if config.prior == "mlp":
        log_probs = _mlp_log_probs(prior, config, hidden)
        return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    c = config.maskgit
    batch, num_tokens = tokens.shape
    if c.decoder == "confidence":
        groups = masking.confidence_groups(key, batch, num_tokens, c.confidence_steps)
    else:
        rounds = masking.live_rounds(c.draft_rounds, c.revise_rounds, c.repetitions)
        groups = masking.partition(key, batch, num_tokens, rounds[0])
    return masking.chain_log_likelihood(
        _head(prior, config, hidden),
        tokens,
        groups,
        mask_token=config.num_classes,
        temperature=c.temperature,
    )


def _mlp_log_probs(prior: Any, config: GitStormConfig, hidden: jax.Array) -> jax.Array:
    """``(..., D) -> (..., N, V)``."""
    logits = prior(hidden.astype(jnp.float32))
    logits = logits.reshape(*hidden.shape[:-1], config.num_tokens, config.num_classes)
    return categorical.unimix_log_probs(logits, config.unimix)


def _head(prior: Any, config: GitStormConfig, hidden: jax.Array) -> masking.Head:
    """The MaskGIT head for ``hidden (B, D)``, which is projected once for all rounds."""
    projected = prior.project(hidden)
    return lambda tokens: categorical.unimix_log_probs(
        prior.logits(tokens, projected), config.unimix
    )
