"""DreamerV3's world model (Hafner et al., versions of January 2023 and of 2024).

An RSSM over embedded observations (``nn.rssm``), with a decoder, a reward and a continuation head
that read its states. The agent acts on [h_t, flat z_t].
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.data import views
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models.dreamer_v3_config import DreamerV3Config, validate
from worldmodels_jax.models.world_model import Filter, Prediction, WorldModel, make_world_model
from worldmodels_jax.nn.image_coder import ImageDecoder, ImageEncoder
from worldmodels_jax.nn.linear import Hidden, SiluMLP
from worldmodels_jax.nn.rssm import RSSM, State
from worldmodels_jax.ops import categorical, frames, twohot
from worldmodels_jax.ops.scalar_head import scalar_head
from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record

__all__ = ["DreamerV3Config", "make_dreamer_v3"]


class _Module(nn.Module):
    """The parts, put together."""

    config: DreamerV3Config
    spec: EnvSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c, shape = self.config, self.spec.observation_shape
        style = {"norm": c.norm, "fan": c.fan, "dtype": self.dtype}
        self.encoder: Any
        self.decoder: Any
        if self.is_image and c.channels:
            resampling = c.resampling
            self.encoder = ImageEncoder(c.channels, resampling, **style)
            self.decoder = ImageDecoder(
                c.channels, shape, 2 * c.units, c.blocks, resampling, **style
            )
        else:
            self.encoder = Hidden(c.units, c.vector_layers, **style)
            self.decoder = SiluMLP(c.units, c.vector_layers, math.prod(shape), **style)
        self.rssm = RSSM(
            deter=c.deter,
            hidden=c.hidden,
            num_tokens=c.num_tokens,
            num_classes=c.num_classes,
            cell=c.cell,
            blocks=c.blocks,
            dynamics_layers=c.dynamics_layers,
            prior_layers=c.prior_layers,
            posterior_layers=c.posterior_layers,
            unimix=c.unimix,
            initial_state=c.initial_state,
            **style,
        )
        outputs = scalar_head(c.reward_head, c.num_bins).size
        self.reward = SiluMLP(c.units, c.head_layers, outputs, output_scale=0.0, **style)
        self.continuation = SiluMLP(c.units, c.head_layers, 1, **style)

    @property
    def is_image(self) -> bool:
        return len(self.spec.observation_shape) == 3

    @property
    def discount(self) -> float:
        """The discount that the continuation head's target contains."""
        c = self.config
        return 1 - 1 / c.discount_horizon if c.discounted_continuation else 1.0

    def target(self, observation: jax.Array) -> jax.Array:
        """Observations as they are encoded and predicted: pixels in [0, 1], vectors in symlog."""
        if self.is_image:
            return frames.from_uint8(observation)
        return twohot.symlog(observation.astype(jnp.float32))

    def encode_actions(self, action: jax.Array) -> jax.Array:
        if self.spec.discrete:
            return jax.nn.one_hot(action, self.spec.num_actions)
        return action.astype(jnp.float32)

    def embed(self, observation: jax.Array) -> jax.Array:
        """Observations ``(..., *observation_shape)`` to what the posterior sees of them."""
        x = self.target(observation)
        if not self.config.channels:
            x = x.reshape(*x.shape[: x.ndim - len(self.spec.observation_shape)], -1)
        return self.encoder(x)

    def posterior(self, batch: Record, key: jax.Array) -> tuple[State, jax.Array]:
        """Posterior states ``(B, T, ...)`` and log q ``(B, T, N, V)``."""
        chex.assert_shape(batch.observation, (*batch.reward.shape, *self.spec.observation_shape))
        actions = self.encode_actions(batch.action)
        return self.rssm.observe(self.embed(batch.observation), actions, batch.is_first, key)

    def reconstruct(self, state: State) -> jax.Array:
        """Observations ``(..., *observation_shape)`` in the space of ``target``."""
        if self.is_image and self.config.channels:
            stoch = state.stoch.reshape(*state.stoch.shape[:-2], -1)
            return self.decoder(state.deter, stoch)
        x = self.decoder(state.features)
        return x.reshape(*x.shape[:-1], *self.spec.observation_shape)

    def loss_and_states(
        self, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, State]]:
        c = self.config
        state, log_q = self.posterior(batch, key)
        features = state.features
        error = (self.reconstruct(state) - self.target(batch.observation)) ** 2
        reconstruction = error.reshape(*batch.reward.shape, -1).sum(-1).mean()

        head = scalar_head(c.reward_head, c.num_bins)
        reward_loss = head.loss(self.reward(features), batch.reward).mean()
        logit = self.continuation(features)[..., 0]
        goes_on = self.discount * (1.0 - batch.terminated.astype(jnp.float32))
        continuation_loss = (jax.nn.softplus(logit) - goes_on * logit).mean()

        log_p = self.rssm.prior(state.deter)
        # Summed over the latents first: it is a step's whole KL that is held to the free bits.
        dynamics_kl, representation_kl = (
            kl.sum(-1) for kl in categorical.balanced_kl(jnp.exp(log_q), log_p)
        )
        dynamics_loss, representation_loss = (
            categorical.free_bits(kl, c.free_bits).mean() for kl in (dynamics_kl, representation_kl)
        )
        loss = (
            reconstruction
            + reward_loss
            + continuation_loss
            + c.dynamics_scale * dynamics_loss
            + c.representation_scale * representation_loss
        )
        metrics = {
            "loss": loss,
            "reconstruction_loss": reconstruction,
            "reward_loss": reward_loss,
            "continuation_loss": continuation_loss,
            "dynamics_kl": dynamics_kl.mean(),
            "dynamics_loss": dynamics_loss,
            "representation_loss": representation_loss,
            "free_steps": (dynamics_kl <= c.free_bits).mean(),
            "posterior_entropy": categorical.entropy(log_q).sum(-1).mean(),
            "prior_entropy": categorical.entropy(log_p).sum(-1).mean(),
        }
        return loss, (metrics, state)

    def observe(self, context: Record, key: jax.Array, starts: int) -> tuple[State, jax.Array]:
        states, _ = self.posterior(context, key)
        carry = jax.tree.map(lambda x: views.last(x, starts), states)
        return carry, carry.features

    def follow(
        self, state: State, record: Record, action: jax.Array, key: jax.Array
    ) -> tuple[State, jax.Array]:
        embedding = self.embed(record.observation)
        action = self.encode_actions(action)
        state, _ = self.rssm.update(state, embedding, action, record.is_first, key)
        return state, state.features

    def imagine(self, carry: State, action: jax.Array, key: jax.Array) -> tuple[State, Prediction]:
        state = self.rssm.imagine(carry, self.encode_actions(action), key)
        features = state.features
        goes_on = jax.nn.sigmoid(self.continuation(features)[..., 0])
        head = scalar_head(self.config.reward_head, self.config.num_bins)
        return state, Prediction(
            features=features,
            reward=head.mean(self.reward(features)),
            continuation=jnp.minimum(goes_on / self.discount, 1.0),
        )

    def decode(self, carry: State) -> jax.Array:
        decoded = self.reconstruct(carry)
        if self.is_image:
            return frames.to_uint8(decoded)
        return twohot.symexp(decoded)

    def log_likelihood(self, batch: Record, key: jax.Array) -> jax.Array:
        state, _ = self.posterior(batch, key)
        return (self.rssm.prior(state.deter) * state.stoch).sum(-1)[:, 1:]


@make_world_model.register
def make_dreamer_v3(
    config: DreamerV3Config,
    spec: EnvSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> WorldModel:
    """DreamerV3's world model for an environment.

    The loss of a batch ``(B, T, ...)`` is the mean over all its records of

        ||x - x'||^2 + L_reward + L_continuation + beta_dyn max(f, KL[sg(q) || p])
        + beta_rep max(f, KL[q || sg(p)])

    with x in [0, 1] (summed over pixels and channels) or in symlog space, the reward received on
    arriving at x, and KLs summed over the latents. Features are [h_t, flat z_t]; there is no model
    state, and an imagined rollout needs no decoder. A sequence begins from the initial state,
    whether or not its first record is that of an episode.

    ``Prediction.continuation`` is the probability of not having terminated. The head of 2024 is
    trained towards gamma times that; its output is divided by gamma and clipped at 1, because an
    agent multiplies gamma in: its gamma should be 1 - 1 / ``config.discount_horizon``.

    Args:
      config: sizes and version.
      spec: what the environment looks like.
      axis_name: the mapped axis the batch is split over, if any. Every loss is a plain mean over
        the batch, so none is computed across it: the caller averages loss and gradients.
      dtype: of the computation (``jnp.bfloat16`` on GPU and TPU); parameters, states, losses and
        probabilities stay float32.

    Returns:
      The bundle of pure functions. ``observe`` ignores ``horizon``: the carry has a fixed size.

    Raises:
      ValueError: if sizes do not fit together, naming the fields.
    """
    del axis_name
    validate(config, spec)
    module = _Module(config, spec, dtype)

    def init(key: jax.Array) -> PyTree:
        key_params, key_loss = jax.random.split(key)
        batch = empty_records(spec, (1, 2))
        return module.init(key_params, batch, key_loss, method="loss_and_states")

    def loss_and_states(
        variables: PyTree, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics, State, jax.Array]]:
        chex.assert_rank(batch.reward, 2)
        value, (metrics, state) = module.apply(variables, batch, key, method="loss_and_states")
        carry = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state)
        return value, ({}, metrics, carry, state.features)

    def loss(
        variables: PyTree, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        value, (state, metrics, _, _) = loss_and_states(variables, batch, key)
        return value, (state, metrics)

    def observe(
        variables: PyTree, context: Record, key: jax.Array, horizon: int, starts: int = 1
    ) -> tuple[State, jax.Array]:
        chex.assert_rank(context.reward, 2)
        return module.apply(variables, context, key, starts, method="observe")

    latent = (config.num_tokens, config.num_classes)

    def start(batch: int) -> State:
        return State(jnp.zeros((batch, config.deter)), jnp.zeros((batch, *latent)))

    def follow(
        variables: PyTree, state: State, record: Record, action: jax.Array, key: jax.Array
    ) -> tuple[State, jax.Array]:
        return module.apply(variables, state, record, action, key, method="follow")

    def imagine(
        variables: PyTree, carry: State, action: jax.Array, key: jax.Array
    ) -> tuple[State, Prediction]:
        return module.apply(variables, carry, action, key, method="imagine")

    def decode(variables: PyTree, carry: State) -> jax.Array:
        return module.apply(variables, carry, method="decode")

    def log_likelihood(variables: PyTree, batch: Record, key: jax.Array) -> jax.Array:
        chex.assert_rank(batch.reward, 2)
        return module.apply(variables, batch, key, method="log_likelihood")

    return WorldModel(
        init=init,
        loss=loss,
        observe=observe,
        imagine=imagine,
        decode=decode,
        feature_size=config.deter + math.prod(latent),
        log_likelihood=log_likelihood,
        # Begins from zeros: at the first record of an episode the initial state takes their place.
        filter=Filter(start, follow),
        loss_and_states=loss_and_states,
    )
