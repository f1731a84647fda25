"""Means that are the same whether a batch lives on one device or is split over a mapped axis."""

import jax
import jax.numpy as jnp


def pmean(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Mean over the mapped axis; the identity if there is none."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def masked_mean(x: jax.Array, mask: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean of ``x`` over the entries where ``mask`` is non-zero (a weight).

    With ``axis_name`` the sum of each device is divided by the *mean* weight of all devices, so
    that averaging values (or gradients) over devices gives the mean over the global batch even
    where the devices hold different numbers of valid entries. 0 if nothing is valid.
    """
    weight = mask.astype(x.dtype)
    total = pmean(jax.lax.stop_gradient(weight.sum()), axis_name)
    return (x * weight).sum() / jnp.maximum(total, 1e-8)


def psum(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over the mapped axis; the identity if there is none."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def per_device(key: jax.Array, axis_name: str | None) -> jax.Array:
    """A key of each device's own, from one that all have; the identity if there is no axis."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
