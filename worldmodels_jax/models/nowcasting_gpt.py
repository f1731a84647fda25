"""NowcastingGPT and NowcastingGPT-EVL: precipitation forecasts by tokens (Meo, 2026, chapter 3).

A discrete autoencoder makes tokens of radar frames, a causal transformer models the tokens of nine
frames and is sampled for the last six. With the extreme value loss, what the transformer says of
extremes is trained as well.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.models.nowcasting_config import (
    FRAME_HEADS,
    ExtremeEventConfig,
    NowcastingConfig,
    NowcastingLossConfig,
    check,
)
from worldmodels_jax.models.nowcasting_forecast import forecast_tokens
from worldmodels_jax.models.nowcasting_losses import (
    classify,
    head_loss,
    tokenizer_loss,
    transformer_loss,
)
from worldmodels_jax.models.nowcasting_networks import Networks, make_networks
from worldmodels_jax.models.offline import Batch, PartLoss, Samples
from worldmodels_jax.types import DataSpec, PyTree

TOP_K, TOP_P = 100, 0.95  # of the published samples
_ROWS = 4  # examples that `samples` shows


class NowcastingGPT(NamedTuple):
    """The system as pure functions; see `OfflineSystem` for the first three."""

    init: Callable[[jax.Array], PyTree]
    losses: Mapping[str, PartLoss]
    samples: Samples
    #: (variables, rates (B, T, H, W) mm/h) -> tokens (B, T, N) int32
    tokenise: Callable[[PyTree, jax.Array], jax.Array]
    #: (variables, rates (B, T, H, W) mm/h) -> the same after tokenizer and decoder
    reconstruct: Callable[[PyTree, jax.Array], jax.Array]
    #: see `forecast`, without its first argument
    forecast: Callable[..., jax.Array]
    #: (variables, rates (B, T, H, W) mm/h) -> (B,) probability that the future is extreme; None
    #: where no head tells it. ``frame_vit`` reads all frames of an example, the future ones being
    #: observed or forecast; ``frame_vit_forecast`` reads those of the context.
    extreme_probability: Callable[[PyTree, jax.Array], jax.Array] | None
    event: ExtremeEventConfig
    context_frames: int


def make_nowcasting_gpt(
    config: NowcastingConfig,
    loss: NowcastingLossConfig,
    data: DataSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> NowcastingGPT:
    """Makes the system.

    Args:
      config: its networks.
      loss: what they minimise; ``evl`` makes it NowcastingGPT-EVL, with a part "head".
      data: examples with ``"rain"`` (T, H, W), mm/h every 30 minutes.
      axis_name: the mapped axis that batches are split over.
      dtype: of the computation.

    Raises:
      ValueError: if sizes do not fit together or a field has no effect, naming the fields.
    """
    check(config, loss, data)
    m = make_networks(config, loss, data, axis_name, dtype)
    parts: dict[str, Any] = {"tokenizer": tokenizer_loss}
    if loss.evl:
        parts["head"] = head_loss
    parts["transformer"] = transformer_loss
    knows_events = loss.evl and loss.head in FRAME_HEADS
    return NowcastingGPT(
        init=m.init,
        losses={name: functools.partial(part, m) for name, part in parts.items()},
        samples=functools.partial(_samples, m),
        tokenise=m.tokenise,
        reconstruct=functools.partial(_reconstruct, m),
        forecast=functools.partial(forecast, m),
        extreme_probability=functools.partial(_extreme_probability, m) if knows_events else None,
        event=config.event,
        context_frames=config.context_frames,
    )


def forecast(
    m: Networks,
    variables: PyTree,
    context: jax.Array,
    key: jax.Array,
    *,
    members: int = 1,
    horizon: int = 6,
    top_k: int | None = TOP_K,
    top_p: float | None = TOP_P,
) -> jax.Array:
    """Samples the frames after some observed ones.

    Args:
      m: the networks.
      variables: of the system.
      context: ``(B, C, H, W)`` mm/h, as many frames as the system was trained to see.
      key: a PRNG key.
      members: samples of each.
      horizon: L, frames of 30 minutes; any number.
      top_k: sample among so many likeliest tokens; None for all.
      top_p: of these, among the fewest that make up this share; None for all.

    Returns:
      ``(members, B, L, H, W)`` float32 mm/h.

    Raises:
      ValueError: for no member, no frame or a truncation that leaves nothing.
    """
    chex.assert_shape(context, (None, m.config.context_frames, *m.shape[1:]))
    if members < 1 or horizon < 1:
        raise ValueError(
            f"members={members} and horizon={horizon} make no forecast: give at least 1 of either."
        )
    tokens = forecast_tokens(
        m,
        variables["params"]["transformer"],
        m.tokenise(variables, context),
        key,
        members=members,
        horizon=horizon,
        top_k=top_k,
        top_p=top_p,
    )
    return m.detokenise(variables, tokens)


def _reconstruct(m: Networks, variables: PyTree, rates: jax.Array) -> jax.Array:
    return m.detokenise(variables, m.tokenise(variables, rates))


def _extreme_probability(m: Networks, variables: PyTree, rates: jax.Array) -> jax.Array:
    if rates.shape[1] < m.pooled_frames:
        raise ValueError(
            f"the head {m.loss.head} reads {m.pooled_frames} frames, of which there are "
            f"{rates.shape[1]}: give those of the context and of the future."
        )
    tokens = m.tokenise(variables, rates[:, : m.pooled_frames])
    hidden, _ = m.transformer.apply(
        {"params": variables["params"]["transformer"]},
        tokens.reshape(len(tokens), -1),
        method="feed",
    )
    return jax.nn.softmax(classify(m, variables, hidden))[:, 1]


def _samples(m: Networks, variables: PyTree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
    """Rows of all frames: observed, reconstructed, and one forecast after the frames shown."""
    rates = batch["rain"][:_ROWS]
    shown = rates[:, : m.config.context_frames]
    horizon = m.shape[0] - m.config.context_frames
    future = forecast(m, variables, shown, key, horizon=horizon)[0]
    pictures = {
        "observed": rates,
        "reconstructed": _reconstruct(m, variables, rates),
        "forecast": jnp.concatenate([shown, future], 1),
    }
    return {name: _grey(m, x)[..., None] for name, x in pictures.items()}


def _grey(m: Networks, rates: jax.Array) -> jax.Array:
    """Rates as grey values in [0, 1], logarithmic: a linear scale would show downpours only."""
    return jnp.clip(jnp.log1p(rates) / jnp.log1p(m.config.max_rate), 0.0, 1.0)
