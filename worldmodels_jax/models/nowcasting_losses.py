"""What the parts of NowcastingGPT minimise (Meo, 2026, eqs. 3.1 to 3.4)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from worldmodels_jax.models.nowcasting_config import FRAME_HEADS, RainPatchConfig
from worldmodels_jax.models.nowcasting_networks import FrameClassifier, Networks
from worldmodels_jax.models.offline import Batch
from worldmodels_jax.nn import lpips
from worldmodels_jax.nn.quantiser import COLLECTION, tokenizer_variables
from worldmodels_jax.ops.extreme_value import evl, evl_weights, reduce_evl
from worldmodels_jax.ops.pyramid import laplacian_pyramid_l1
from worldmodels_jax.ops.rain_events import sequence_label, token_labels
from worldmodels_jax.types import Metrics, PyTree

PYRAMID_LEVELS = 4

Result = tuple[jax.Array, tuple[PyTree, Metrics]]


def tokenizer_loss(
    m: Networks, variables: PyTree, batch: Batch, key: jax.Array, step: jax.Array
) -> Result:
    """Reconstruction, codes and perceptual distance (eq. 3.2); the codebook may be seeded anew.

    Args:
      m: the networks.
      variables: of the system.
      batch: ``"rain"`` ``(B, T, H, W)`` mm/h.
      key: a PRNG key, for the codebook.
      step: () int32, not used.
    """
    frames = m.scaled(batch["rain"])
    valid = jnp.ones(frames.shape[:2], bool)

    def run(tokenizer: Any) -> Any:
        codes = tokenizer.encode(frames)
        decoded = tokenizer.decode(codes.vectors)
        tokenizer.update(codes, valid, key)
        return codes, decoded, tokenizer.entropy(codes, valid)

    (codes, decoded, entropy), state = m.tokenizer.apply(
        tokenizer_variables(variables), method=run, mutable=[COLLECTION]
    )
    error = decoded - frames
    l1, l2 = jnp.abs(error).mean(), (error**2).mean()
    quantiser = codes.loss.mean()
    loss = quantiser + (l1 if m.loss.reconstruction == "l1" else l2)
    metrics = {
        "reconstruction_l1": l1,
        "reconstruction_l2": l2,
        "quantiser_loss": quantiser,
        "codebook_entropy": entropy,
    }
    if m.loss.perceptual == "laplacian_pyramid":
        perceptual = laplacian_pyramid_l1(decoded, frames, PYRAMID_LEVELS).mean()
    elif m.loss.perceptual == "lpips":
        x, y = 2.0 * decoded - 1.0, 2.0 * frames - 1.0
        perceptual = lpips.lpips(variables[lpips.COLLECTION], x, y, "vgg").mean()
    else:
        perceptual = None
    if perceptual is not None:
        loss, metrics["perceptual_loss"] = loss + perceptual, perceptual
    return loss, (state, {"loss": loss, **metrics})


def head_loss(
    m: Networks, variables: PyTree, batch: Batch, key: jax.Array, step: jax.Array
) -> Result:
    """Binary cross-entropy of the head against what was extreme.

    Args:
      m: the networks, which have a head.
      variables: of the system.
      batch: ``"rain"`` ``(B, T, H, W)`` mm/h.
      key: a PRNG key, of the transformer's dropout.
      step: () int32, not used.
    """
    tokens = m.tokenise(variables, batch["rain"])
    if isinstance(m.head, FrameClassifier):
        states = _feed(m, variables, tokens, key)
        labels = _sequence_labels(m, batch)
        logits = classify(m, variables, states)
        logits = logits[:, 1] - logits[:, 0]
    else:
        labels = _token_labels(m, batch)
        logits = code_logits(m, variables)[tokens]
    loss = optax.sigmoid_binary_cross_entropy(logits, labels).mean()
    accuracy = ((logits > 0) == (labels > 0)).mean()
    return loss, ({}, {"loss": loss, "accuracy": accuracy, "extremes": labels.mean()})


def transformer_loss(
    m: Networks, variables: PyTree, batch: Batch, key: jax.Array, step: jax.Array
) -> Result:
    """Cross-entropy of the next token (eq. 3.3), and the extreme value loss (eq. 3.4).

    Args:
      m: the networks.
      variables: of the system.
      batch: ``"rain"`` ``(B, T, H, W)`` mm/h.
      key: a PRNG key, of dropout.
      step: () int32, not used.
    """
    tokens = m.tokenise(variables, batch["rain"])
    states = _feed(m, variables, tokens, key)
    logits = m.transformer.apply(
        {"params": variables["params"]["transformer"]}, states[:, :-1], method="logits"
    )
    targets = tokens.reshape(len(tokens), -1)[:, 1:]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    metrics = {
        "token_loss": loss,
        "token_accuracy": (logits.argmax(-1) == targets).astype(jnp.float32).mean(),
    }
    if m.head is not None:
        extreme = _predicted_extremes(m, variables, states, logits, targets, batch)
        weights = evl_weights(m.loss.p_extreme, m.loss.weights)
        losses = evl(extreme.u, extreme.v, m.loss.gamma, *weights)
        extreme_value = reduce_evl(losses, extreme.v, m.loss.reduction, m.axis_name, extreme.where)
        loss = loss + m.loss.evl_scale * extreme_value
        metrics |= {"extreme_value_loss": extreme_value, "extreme_probability": extreme.u.mean()}
    return loss, ({}, {"loss": loss, **metrics})


def classify(m: Networks, variables: PyTree, states: jax.Array) -> jax.Array:
    """The classifier's logits ``(B, 2)`` of hidden states ``(B, S, D)``."""
    first = states[:, : m.pooled_frames * m.frame_tokens]
    pooled = first.reshape(len(states), m.pooled_frames, -1)
    assert m.head is not None
    return m.head.apply({"params": variables["params"]["head"]}, pooled)


def code_logits(m: Networks, variables: PyTree) -> jax.Array:
    """The table's logits ``(V,)``."""
    assert m.head is not None
    return m.head.apply({"params": variables["params"]["head"]})


class _Extremes(NamedTuple):
    u: jax.Array  # predicted probabilities
    v: jax.Array  # 1 where there was an extreme, else 0
    where: jax.Array | None  # what counts


def _predicted_extremes(
    m: Networks,
    variables: PyTree,
    states: jax.Array,
    logits: jax.Array,
    targets: jax.Array,
    batch: Batch,
) -> _Extremes:
    """Of sequences ``(B,)`` or of predicted tokens ``(B, S-1)``, by the kind of head."""
    if m.loss.head in FRAME_HEADS:
        u = jax.nn.softmax(classify(m, variables, states))[:, 1]
        return _Extremes(u, _sequence_labels(m, batch), None)
    probs = jax.nn.softmax(logits)
    table = jax.lax.stop_gradient(code_logits(m, variables))
    if m.loss.head == "token_table":
        v = _token_labels(m, batch).reshape(len(logits), -1)[:, 1:]
        return _Extremes(probs @ jax.nn.sigmoid(table), v, None)
    chosen = jnp.zeros_like(table).at[jax.lax.top_k(table, m.loss.fixed_codes)[1]].set(1.0)
    v = chosen[targets]
    return _Extremes(probs @ chosen, v, v > 0)


def _feed(m: Networks, variables: PyTree, tokens: jax.Array, key: jax.Array) -> jax.Array:
    """Hidden states ``(B, T N, D)`` of tokens ``(B, T, N)``, with dropout."""
    hidden, _ = m.transformer.apply(
        {"params": variables["params"]["transformer"]},
        tokens.reshape(len(tokens), -1),
        deterministic=False,
        rngs={"dropout": key},
        method="feed",
    )
    return hidden


def _sequence_labels(m: Networks, batch: Batch) -> jax.Array:
    event = m.config.event
    future = batch["rain"][:, m.config.context_frames :]
    return sequence_label(future, event.threshold_mm_3h, event.region)


def _token_labels(m: Networks, batch: Batch) -> jax.Array:
    if isinstance(m.config.tokenizer, RainPatchConfig):
        side = m.config.tokenizer.patch
    else:
        side = 2 ** (len(m.config.tokenizer.channels) - 1)
    cells = (m.shape[1] // side, m.shape[2] // side)
    return token_labels(batch["rain"], m.config.event.threshold_mm_3h, cells)
