"""The recurrent state-space model of DreamerV3: a gated recurrent path h, discrete latents z.

    h_t = f(h_{t-1}, z_{t-1}, a_{t-1}),    prior p(z_t | h_t),    posterior q(z_t | h_t, x_t)

Both published versions (2024 and 2023) are made of the same gates; see ``BlockGRU``, ``NormGRU``.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.nn.dense import Dense
from worldmodels_jax.nn.linear import (
    BlockLinear,
    Fan,
    Hidden,
    Norm,
    NormKind,
    SiluMLP,
    kernel_init,
)
from worldmodels_jax.ops import categorical

Cell = Literal["block_gru", "gru"]
Initial = Literal["zeros", "learned"]


class State(NamedTuple):
    """The state of the world at one step; leading axes are free."""

    deter: jax.Array  # (..., D) float32, h_t
    stoch: jax.Array  # (..., N, V) float32, z_t, one-hot with straight-through gradients

    @property
    def features(self) -> jax.Array:
        """``(..., D + N V)``: [h_t, flat z_t], what heads and policies read."""
        stoch = self.stoch.reshape(*self.stoch.shape[:-2], -1)
        return jnp.concatenate([self.deter, stoch], axis=-1)


def gated_update(
    reset: jax.Array, candidate: jax.Array, update: jax.Array, deter: jax.Array
) -> jax.Array:
    """The gates of either cell, from their pre-activations.

    h' = u tanh(sigmoid(reset) candidate) + (1 - u) h with u = sigmoid(update - 1), which keeps 73%
    of h where nothing has been learnt.

    Args:
      reset: (..., D).
      candidate: (..., D).
      update: (..., D).
      deter: (..., D) h.

    Returns:
      (..., D) h'.
    """
    u = jax.nn.sigmoid(update - 1)
    return u * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1 - u) * deter


class BlockGRU(nn.Module):
    """The cell of 2024: h in G groups, each of which sees itself, and embeddings of h, z and a.

    Attributes:
      hidden: size of each embedding.
      blocks: G, a divisor of D.
      depth: block-diagonal hidden layers before the gates.
      norm: see ``nn.linear.Norm``.
      fan: see ``nn.linear.kernel_init``.
      dtype: the compute dtype; parameters and h stay float32.
    """

    hidden: int
    blocks: int = 8
    depth: int = 1
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    dtype: Any = None

    @nn.compact
    def __call__(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> jax.Array:
        """``(..., D), (..., N V), (..., A) -> (..., D)`` float32."""
        size, blocks = deter.shape[-1], self.blocks
        embedded = [
            Hidden(self.hidden, 1, self.norm, self.fan, self.dtype)(part)
            for part in (deter, stoch, action)
        ]
        shared = jnp.concatenate(embedded, axis=-1)[..., None, :]
        shared = jnp.broadcast_to(shared, (*shared.shape[:-2], blocks, shared.shape[-1]))
        grouped = deter.reshape(*deter.shape[:-1], blocks, size // blocks).astype(shared.dtype)
        x = jnp.concatenate([grouped, shared], axis=-1)
        x = x.reshape(*deter.shape[:-1], -1)
        for _ in range(self.depth):
            x = BlockLinear(size, blocks, self.fan, self.dtype)(x)
            x = nn.silu(Norm(self.norm, self.dtype)(x))
        gates = BlockLinear(3 * size, blocks, self.fan, self.dtype)(x).astype(jnp.float32)
        # The three gates lie side by side within each group.
        gates = gates.reshape(*deter.shape[:-1], blocks, 3, size // blocks)
        reset, candidate, update = (gates[..., i, :].reshape(deter.shape) for i in range(3))
        return gated_update(reset, candidate, update, deter)


class NormGRU(nn.Module):
    """The cell of 2023: one dense layer of gates over [h, embedding of (z, a)], then a norm.

    Attributes:
      hidden: size of the embedding.
      norm: see ``nn.linear.Norm``.
      fan: see ``nn.linear.kernel_init``.
      dtype: the compute dtype; parameters and h stay float32.
    """

    hidden: int
    norm: NormKind = "layer"
    fan: Fan = "fan_avg"
    dtype: Any = None

    @nn.compact
    def __call__(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> jax.Array:
        """``(..., D), (..., N V), (..., A) -> (..., D)`` float32."""
        x = jnp.concatenate([stoch, action], axis=-1)
        x = Hidden(self.hidden, 1, self.norm, self.fan, self.dtype)(x)
        x = jnp.concatenate([deter.astype(x.dtype), x], axis=-1)
        x = Dense(
            3 * deter.shape[-1],
            use_bias=self.norm == "rms",
            kernel_init=kernel_init(self.fan),
            dtype=self.dtype,
        )(x)
        gates = Norm(self.norm, self.dtype)(x).astype(jnp.float32)
        reset, candidate, update = jnp.split(gates, 3, axis=-1)
        return gated_update(reset, candidate, update, deter)


class RSSM(nn.Module):
    """The recurrent state-space model over embedded observations.

    Attributes:
      deter: D, the size of h.
      hidden: units of every hidden layer.
      num_tokens: N, categorical variables of z.
      num_classes: V, classes of each.
      cell: ``"block_gru"`` or ``"gru"``.
      blocks: groups of h (block_gru only).
      dynamics_layers: block-diagonal hidden layers (block_gru only).
      prior_layers: hidden layers of p.
      posterior_layers: hidden layers of q.
      unimix: share of the uniform distribution in p and q.
      initial_state: zeros; or h_0 = tanh of a parameter and z_0 the mode of p(z | h_0).
      norm: see ``nn.linear.Norm``.
      fan: see ``nn.linear.kernel_init``.
      dtype: the compute dtype; parameters, states and probabilities stay float32.
    """

    deter: int
    hidden: int
    num_tokens: int
    num_classes: int
    cell: Cell = "block_gru"
    blocks: int = 8
    dynamics_layers: int = 1
    prior_layers: int = 2
    posterior_layers: int = 1
    unimix: float = 0.01
    initial_state: Initial = "zeros"
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    dtype: Any = None

    def setup(self) -> None:
        logits = self.num_tokens * self.num_classes
        style = {"norm": self.norm, "fan": self.fan, "dtype": self.dtype}
        self.sequence: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = (
            BlockGRU(self.hidden, self.blocks, self.dynamics_layers, **style)
            if self.cell == "block_gru"
            else NormGRU(self.hidden, **style)
        )
        self.p = SiluMLP(self.hidden, self.prior_layers, logits, **style)
        self.q = SiluMLP(self.hidden, self.posterior_layers, logits, **style)
        if self.initial_state == "learned":
            self.first = self.param("first", nn.initializers.zeros, (self.deter,), jnp.float32)

    def initial(self, batch: int) -> State:
        """What precedes an episode, ``(B, ...)``."""
        shape = (batch, self.num_tokens, self.num_classes)
        if self.initial_state == "zeros":
            return State(jnp.zeros((batch, self.deter)), jnp.zeros(shape))
        deter = jnp.tanh(self.first)
        stoch = jax.nn.one_hot(self.prior(deter).argmax(-1), self.num_classes)
        return State(jnp.broadcast_to(deter, (batch, self.deter)), jnp.broadcast_to(stoch, shape))

    def prior(self, deter: jax.Array) -> jax.Array:
        """log p(z_t | h_t): ``(..., D) -> (..., N, V)`` float32."""
        return self._log_probs(self.p(deter))

    def posterior(self, deter: jax.Array, embedding: jax.Array) -> jax.Array:
        """log q(z_t | h_t, x_t): ``(..., D), (..., F) -> (..., N, V)`` float32."""
        return self._log_probs(self.q(jnp.concatenate([deter, embedding], axis=-1)))

    def advance(self, state: State, action: jax.Array) -> jax.Array:
        """h_t from the state and action of t - 1: ``(B, ...), (B, A) -> (B, D)``.

        Actions are one-hot, or vectors; entries beyond [-1, 1] count as -1 or 1.
        """
        action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
        stoch = state.stoch.reshape(*state.stoch.shape[:-2], -1)
        return self.sequence(state.deter, stoch, action)

    def observe(
        self, embedding: jax.Array, action: jax.Array, is_first: jax.Array, key: jax.Array
    ) -> tuple[State, jax.Array]:
        """Posterior states along sequences, in one scan over time.

        What a sequence begins with is unknown, as is what precedes a first record: both start from
        the initial state and an action of zeros.

        Args:
          embedding: ``(B, T, F)`` of the observations x_t.
          action: ``(B, T, A)``, a_t taken *from* x_t; the last one is not used.
          is_first: ``(B, T)`` bool.
          key: a PRNG key.

        Returns:
          States ``(B, T, ...)`` and log q ``(B, T, N, V)``.
        """
        batch, time = is_first.shape
        chex.assert_shape([embedding, action], (batch, time, None))
        previous = jnp.concatenate([jnp.zeros_like(action[:, :1]), action[:, :-1]], axis=1)
        start = self.initial(batch)

        def step(
            rssm: RSSM, state: State, inputs: tuple[jax.Array, ...]
        ) -> tuple[State, tuple[State, jax.Array]]:
            x, previous_action, first, step_key = inputs
            state, log_probs = rssm.update(state, x, previous_action, first, step_key, start)
            return state, (state, log_probs)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        inputs = [jnp.moveaxis(x, 1, 0) for x in (embedding, previous, is_first)]
        _, outputs = scan(self, start, (*inputs, jax.random.split(key, time)))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)

    def update(
        self,
        state: State,
        embedding: jax.Array,
        action: jax.Array,
        is_first: jax.Array,
        key: jax.Array,
        initial: State | None = None,
    ) -> tuple[State, jax.Array]:
        """The posterior state a step later, and log q ``(B, N, V)``.

        Args:
          state: of t - 1; not used where an episode begins.
          embedding: ``(B, F)`` of x_t.
          action: ``(B, A)``, a_{t-1}; not used where an episode begins.
          is_first: ``(B,)`` bool.
          key: a PRNG key.
          initial: ``initial(B)``, where it is at hand: a scan need not make it at every step.
        """
        if initial is None:
            initial = self.initial(is_first.shape[0])
        state = jax.tree.map(
            lambda new, old: jnp.where(jnp.expand_dims(is_first, range(1, old.ndim)), new, old),
            initial,
            state,
        )
        deter = self.advance(state, jnp.where(is_first[:, None], 0.0, action))
        log_probs = self.posterior(deter, embedding)
        return State(deter, _sample(log_probs, key)), log_probs

    def imagine(self, state: State, action: jax.Array, key: jax.Array) -> State:
        """The state that an action leads to, z from the prior: ``(B, ...), (B, A) -> (B, ...)``."""
        deter = self.advance(state, action)
        return State(deter, _sample(self.prior(deter), key))

    def _log_probs(self, logits: jax.Array) -> jax.Array:
        logits = logits.reshape(*logits.shape[:-1], self.num_tokens, self.num_classes)
        return categorical.unimix_log_probs(logits, self.unimix)


def _sample(log_probs: jax.Array, key: jax.Array) -> jax.Array:
    classes = categorical.sample_classes(key, jax.lax.stop_gradient(log_probs))
    one_hot = jax.nn.one_hot(classes, log_probs.shape[-1])
    return categorical.straight_through(one_hot, jnp.exp(log_probs))
