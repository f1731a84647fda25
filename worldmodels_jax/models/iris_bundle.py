"""How the functions of IRIS and Delta-IRIS become a world model."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.models.iris_parts import Networks, TokenizerLoss
from worldmodels_jax.models.world_model import Filter, Loss, Prediction, WorldModel
from worldmodels_jax.ops.frames import to_uint8
from worldmodels_jax.types import Metrics, PyTree, Record


class Functions(NamedTuple):
    """A model as functions whose first argument is its networks.

    Attributes:
      init: ``(networks, key) -> variables``.
      tokenizer_loss: ``(networks, variables, batch, key) -> TokenizerLoss``.
      world_model_loss: ``(networks, variables, batch, key, tokens or None) -> loss, metrics``.
      observe: ``(networks, variables, context, horizon) -> carry, features``; a carry has a
        ``frame (B, H, W, C)`` in [0, 1].
      imagine: ``(networks, variables, carry, action, key) -> carry, Prediction``.
      see: ``(networks, variables, records (B, T, ...)) -> features (B, T, F)``: what the policy
        sees of real frames.
      log_likelihood: ``(networks, variables, batch, key) -> (B, T-1, K)``.
    """

    init: Callable[..., PyTree]
    tokenizer_loss: Callable[..., TokenizerLoss]
    world_model_loss: Callable[..., tuple[jax.Array, Metrics]]
    observe: Callable[..., tuple[PyTree, jax.Array]]
    imagine: Callable[..., tuple[PyTree, Prediction]]
    see: Callable[..., jax.Array]
    log_likelihood: Callable[..., jax.Array]


def bundle(
    functions: Functions, make_networks: Callable[[str | None], Networks], axis_name: str | None
) -> WorldModel:
    """The world model that the functions make with the networks of ``make_networks(axis_name)``."""
    m = make_networks(axis_name)
    # Without the axis, so that variables can be made outside of what is mapped over it.
    local = make_networks(None)
    scales = (m.config.tokenizer_scale, m.config.world_model_scale)

    def observe(
        variables: PyTree, context: Record, key: jax.Array, horizon: int, starts: int = 1
    ) -> tuple[PyTree, jax.Array]:
        check_starts(starts)
        return functions.observe(m, variables, context, horizon)

    def decode(variables: PyTree, carry: Any) -> jax.Array:
        return to_uint8(carry.frame)

    def follow(
        variables: PyTree, state: PyTree, record: Record, action: jax.Array, key: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        records = jax.tree.map(lambda x: x[:, None], record)
        return state, functions.see(m, variables, records)[:, 0]

    return WorldModel(
        init=functools.partial(functions.init, local),
        loss=weighted_sum(
            scales,
            functools.partial(functions.tokenizer_loss, m),
            functools.partial(functions.world_model_loss, m),
        ),
        observe=observe,
        imagine=functools.partial(functions.imagine, m),
        decode=decode,
        feature_size=math.prod(m.spec.observation_shape),
        log_likelihood=functools.partial(functions.log_likelihood, m),
        # A frame is all that the policy sees; the memory is its own.
        filter=Filter(lambda batch: (), follow),
        parts=separate(functions, m),
    )


def weighted_sum(
    scales: tuple[float, float],
    tokenizer: Callable[[PyTree, Record, jax.Array], TokenizerLoss],
    world_model: Callable[..., tuple[jax.Array, Metrics]],
) -> Loss:
    """The loss of both parts at once; a part of weight 0 is left out, its state included.

    Args:
      scales: the weights.
      tokenizer: ``(variables, batch, key)``.
      world_model: ``(variables, batch, key, tokens or None) -> loss, metrics``.
    """

    def loss(
        variables: PyTree, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        key_tokenizer, key_world_model = jax.random.split(key)
        total, state, metrics, tokens = jnp.zeros(()), {}, {}, None
        if scales[0]:
            first = tokenizer(variables, batch, key_tokenizer)
            total = total + scales[0] * first.loss
            state, metrics, tokens = first.state, first.metrics, first.tokens
        if scales[1]:
            second, more = world_model(variables, batch, key_world_model, tokens)
            total = total + scales[1] * second
            metrics = metrics | more
        return total, (state, {"loss": total, **metrics})

    return loss


def separate(functions: Functions, m: Networks) -> dict[str, Loss]:
    """The two losses that are added, each on its own and unweighted.

    ``"tokenizer"`` trains the autoencoder and updates the codebook; ``"dynamics"`` trains the
    transformer on the tokens of the autoencoder as it is.
    """

    def tokenizer(
        variables: PyTree, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        got = functions.tokenizer_loss(m, variables, batch, key)
        return got.loss, (got.state, {"loss": got.loss, **got.metrics})

    def dynamics(
        variables: PyTree, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        loss, metrics = functions.world_model_loss(m, variables, batch, key, None)
        return loss, ({}, {"loss": loss, **metrics})

    return {"tokenizer": tokenizer, "dynamics": dynamics}


def check_starts(starts: int) -> None:
    """Raise ValueError unless a dream starts at the last frame of its context only."""
    if starts != 1:
        raise ValueError(
            f"starts={starts}: IRIS and Delta-IRIS dream from the last frame of a context only; "
            "use starts=1."
        )
