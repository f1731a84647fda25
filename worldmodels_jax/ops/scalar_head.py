"""What the outputs of a scalar head (rewards, values) mean: two-hot codes or the scalar itself."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.ops import twohot

ScalarKind = Literal["symexp_twohot", "symlog_twohot", "mse"]


class ScalarHead(NamedTuple):
    """How the outputs of a network are trained towards a scalar and read out.

    Attributes:
      size: K, the number of outputs.
      loss: ``(outputs (..., K), target (...)) -> (...)`` float32; no gradient to the target.
      mean: ``(outputs (..., K)) -> (...)`` float32, the prediction.
    """

    size: int
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    mean: Callable[[jax.Array], jax.Array]


def scalar_head(kind: ScalarKind, num_bins: int = 255) -> ScalarHead:
    """One of three heads.

    Args:
      kind: ``"symexp_twohot"``, a distribution over bins in raw space, whose mean is unbiased
        (DreamerV3 of 2024); ``"symlog_twohot"``, over bins in symlog space (2023, STORM);
        ``"mse"``, a number with a squared error, whose gradients grow with the target.
      num_bins: of the two-hot codes.

    Returns:
      The head's functions.
    """
    # Bins are made where they are used: a head may be built while something is traced.
    if kind == "symexp_twohot":
        return ScalarHead(
            num_bins,
            lambda outputs, target: twohot.two_hot_loss(
                outputs, target, twohot.symexp_bins(num_bins)
            ),
            lambda outputs: twohot.two_hot_mean(outputs, twohot.symexp_bins(num_bins)),
        )
    if kind == "symlog_twohot":
        return ScalarHead(
            num_bins,
            lambda outputs, target: twohot.two_hot_symlog_loss(
                outputs, target, twohot.symlog_bins(num_bins)
            ),
            lambda outputs: twohot.two_hot_symlog_mean(outputs, twohot.symlog_bins(num_bins)),
        )

    def mean(outputs: jax.Array) -> jax.Array:
        return jnp.squeeze(outputs.astype(jnp.float32), -1)

    def loss(outputs: jax.Array, target: jax.Array) -> jax.Array:
        chex.assert_shape(outputs, (*target.shape, 1))
        return (mean(outputs) - jax.lax.stop_gradient(target)) ** 2

    return ScalarHead(1, loss, mean)
