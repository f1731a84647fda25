"""Optimisers: DreamerV3's (adaptive clipping, LaProp), Adam with its schedules, decay masks."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax


def clip_by_parameter_norm(clip: float = 0.3, floor: float = 1e-3) -> Any:
    """Bounds each tensor's gradient by the size of the tensor: ||g|| <= clip max(floor, ||theta||).

    Adaptive gradient clipping (Brock et al., 2021), per tensor as DreamerV3 does it;
    ``optax.adaptive_grad_clip`` does it per unit.

    Args:
      clip: the largest gradient, as a share of its parameters' norm.
      floor: norm that small parameters are taken to have, so that those at zero can leave it.

    Returns:
      An optax gradient transformation, which needs the parameters.
    """

    def bound(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        limit = clip * jnp.maximum(floor, jnp.linalg.norm(parameter.reshape(-1)))
        return gradient / jnp.maximum(1.0, jnp.linalg.norm(gradient.reshape(-1)) / limit)

    return optax.stateless(lambda gradients, params: jax.tree.map(bound, gradients, params))


def scale_by_laprop(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-20) -> Any:
    """LaProp (Ziyin et al., 2020): divides by the second moment first, then takes the momentum.

        n_t = b2 n_{t-1} + (1 - b2) g_t^2,    m_t = b1 m_{t-1} + (1 - b1) g_t / (sqrt(n_t') + eps)

    and the update is m_t', where ' corrects for the start at zero. Adam takes the momentum of g
    first. Each g is thereby scaled by what was known when it came, so that no later drop of n
    magnifies it.

    Args:
      b1: decay of the momentum.
      b2: decay of the second moment.
      eps: added to the root.

    Returns:
      An optax gradient transformation.
    """
    return optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(b1, debias=True),
    )


def laprop(
    learning_rate: float = 4e-5,
    warmup: int = 1000,
    *,
    clip: float = 0.3,
    clip_floor: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-20,
) -> Any:
    """DreamerV3's optimiser (2024): clipping by parameter norm, LaProp, and a linear warm-up.

    Args:
      learning_rate: size of a step when the warm-up is over.
      warmup: steps over which the rate rises from 0, which the first step has; 0 for none.
      clip: see ``clip_by_parameter_norm``.
      clip_floor: see ``clip_by_parameter_norm``.
      b1: see ``scale_by_laprop``.
      b2: see ``scale_by_laprop``.
      eps: see ``scale_by_laprop``.

    Returns:
      An optax gradient transformation, which needs the parameters.
    """
    rate = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else learning_rate
    return optax.chain(
        clip_by_parameter_norm(clip, clip_floor),
        scale_by_laprop(b1, b2, eps),
        optax.scale_by_learning_rate(rate),
    )


def scheduled_adam(
    lr: float,
    updates: int,
    *,
    warmup: int = 0,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip: float = 0.0,
    decay: float = 0.0,
) -> Any:
    """Adam, or AdamW, with a bound on the gradient and a rate that changes.

    Args:
      lr: the highest rate.
      updates: how many there will be.
      warmup: updates over which the rate rises linearly from 0; 0 for none.
      schedule: of the rate after the warm-up: constant, or down to 0 at the last update along a
        line or half a cosine.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root.
      clip: bound on the gradient's global norm; 0 for none.
      decay: decoupled weight decay of Linear layers' matrices; 0 for none.

    Returns:
      An optax gradient transformation, which needs the parameters if there is decay.
    """
    rest = updates - warmup
    after = {
        "constant": lambda: optax.constant_schedule(lr),
        "linear": lambda: optax.linear_schedule(lr, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(lr, rest),
    }[schedule]()
    if warmup:
        after = optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup])
    adam = (
        optax.adamw(after, b1, b2, eps, weight_decay=decay, mask=linear_kernels)
        if decay
        else optax.adam(after, b1, b2, eps)
    )
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam


def linear_kernels(params: Any) -> Any:
    """Which parameters weight decay is for: the matrices of Linear layers, not of embeddings."""

    def is_kernel(path: Any, x: jax.Array) -> bool:
        return x.ndim == 2 and getattr(path[-1], "key", None) == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)
