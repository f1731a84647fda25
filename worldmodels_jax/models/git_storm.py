"""GIT-STORM, and STORM, which is the same system with ``prior="mlp"``.

Meo (2026), chapter 5, equations 5.1 to 5.7 and tables 5.8 to 5.14; STORM (Zhang et al., 2023).
One step: the tokenizer gives z_t ~ q(z_t | o_t), the state mixer joins z_t and a_t, the causal
transformer gives h_t, and from h_t come the reward and the termination on arrival at t + 1 and,
through the prior, z_{t+1}. Every ablation is a config value.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from worldmodels_jax.data import views
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models import git_storm_prior
from worldmodels_jax.models.git_storm_config import GitStormConfig, MaskGITConfig, validate
from worldmodels_jax.models.world_model import Prediction, WorldModel, make_world_model
from worldmodels_jax.nn.mixer import StateMixer
from worldmodels_jax.nn.mlp import MLP
from worldmodels_jax.nn.tokenizer import Posterior, Tokenizer
from worldmodels_jax.nn.transformer import CausalTransformer, KVCache, init_cache
from worldmodels_jax.ops import categorical, twohot
from worldmodels_jax.ops.collectives import masked_mean, pmean
from worldmodels_jax.ops.frames import to_uint8
from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record

__all__ = ["Carry", "GitStormConfig", "MaskGITConfig", "make_git_storm"]


class Carry(NamedTuple):
    """State of an imagined rollout at step t, before a_t is consumed."""

    cache: KVCache  # keys and values of steps up to t-1
    vectors: jax.Array  # (B, N, K) z_t as decoder, mixer and agent consume it
    segment: jax.Array  # (B,) int32, the episode within the context


class _Module(nn.Module):
    """The parts, put together."""

    config: GitStormConfig
    spec: EnvSpec
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        dtype = self.dtype
        self.tokenizer = Tokenizer(
            kind=c.tokenizer,
            observation_shape=self.spec.observation_shape,
            num_tokens=c.num_tokens,
            num_classes=c.num_classes,
            code_size=c.code_size,
            channels=c.channels,
            mlp_width=c.mlp_width,
            unimix=c.unimix,
            axis_name=self.axis_name,
            dtype=dtype,
        )
        self.mixer = StateMixer(kind=c.mixer, width=c.width, heads=c.heads, dtype=dtype)
        self.transformer = CausalTransformer(
            width=c.width,
            layers=c.layers,
            heads=c.heads,
            hidden=c.hidden,
            max_length=c.max_length * self.mixer.tokens_per_step,
            dropout=c.dropout,
            dtype=dtype,
        )
        self.prior: Any = git_storm_prior.make_prior(c, dtype)
        self.reward = MLP(c.width, 2, c.num_bins, zero_output=True, dtype=dtype)
        self.termination = MLP(c.width, 2, 1, dtype=dtype)

    def dynamics(
        self,
        vectors: jax.Array,
        action: jax.Array,
        segments: jax.Array,
        cache: KVCache | None,
        deterministic: bool,
        last: bool = False,
    ) -> tuple[jax.Array, Any]:
        """h_t for T steps: ``(B, T, N, K), (B, T, ...), (B, T) -> (B, T, D)`` and the cache.

        With ``last`` of the last step alone, ``(B, 1, D)``.
        """
        if self.spec.discrete:
            action = jax.nn.one_hot(action, self.spec.num_actions)
        mixed = self.mixer(vectors, action)
        batch, time, per_step, width = mixed.shape
        hidden, cache = self.transformer(
            mixed.reshape(batch, time * per_step, width),
            jnp.repeat(segments, per_step, axis=1),
            cache,
            deterministic,
            last,
        )
        # The step is complete with its last token: the state of "unmixed" is read at the action.
        return (hidden if last else hidden[:, per_step - 1 :: per_step]), cache

    def segments(self, is_first: jax.Array) -> jax.Array:
        if self.config.cross_episode_attention:
            return jnp.zeros(is_first.shape, jnp.int32)
        return views.segment_ids(is_first)

    def prior_training(
        self, hidden: jax.Array, posterior: Posterior, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return git_storm_prior.training(self.prior, self.config, hidden, posterior, key)

    def prior_sample(self, hidden: jax.Array, key: jax.Array) -> jax.Array:
        return git_storm_prior.sample(self.prior, self.config, hidden, key)

    def loss(self, batch: Record, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Equation 5.2 with the reconstruction of 5.7; see ``make_git_storm``."""
        c = self.config
        key_posterior, key_mask = jax.random.split(key)
        posterior = self.tokenizer.encode(batch.observation, key_posterior, train=True)
        error = self.tokenizer.decode(posterior.vectors, train=True)
        error = (error - self.tokenizer.target(batch.observation)) ** 2
        reconstruction = error.reshape(*batch.reward.shape, -1).sum(-1).mean()

        hidden, _ = self.dynamics(
            posterior.vectors, batch.action, self.segments(batch.is_first), None, False
        )
        hidden = hidden[:, :-1]
        target = views.transitions(batch)

        def mean(x: jax.Array) -> jax.Array:
            return masked_mean(x, target.valid, self.axis_name)

        bins = twohot.symlog_bins(c.num_bins)
        reward_loss = mean(twohot.two_hot_symlog_loss(self.reward(hidden), target.reward, bins))
        logit = self.termination(hidden)[..., 0]
        ended = target.terminated.astype(jnp.float32)
        termination_loss = mean(jax.nn.softplus(logit) - ended * logit)

        log_probs, weight = self.prior_training(hidden, posterior, key_mask)
        dynamics_kl, representation_kl = (
            mean((kl * weight).sum(-1))
            for kl in categorical.balanced_kl(posterior.probs[:, 1:], log_probs)
        )
        # The maximum of the mean over batch and time, as STORM takes it.
        dynamics_loss, representation_loss = (
            categorical.free_bits(kl, c.free_bits, self.axis_name)
            for kl in (dynamics_kl, representation_kl)
        )
        loss = (
            reconstruction
            + reward_loss
            + termination_loss
            + c.dynamics_scale * dynamics_loss
            + c.representation_scale * representation_loss
            + posterior.loss
        )
        # Per token: the weights of a masked frame sum to N.
        surprise = mean((-(log_probs * posterior.tokens[:, 1:]).sum(-1) * weight).sum(-1))
        surprise = pmean(surprise, self.axis_name) / c.num_tokens
        usage = pmean(posterior.probs.mean((0, 1)), self.axis_name)
        metrics = {
            "loss": loss,
            "reconstruction_loss": reconstruction,
            "reward_loss": reward_loss,
            "termination_loss": termination_loss,
            "dynamics_kl": dynamics_kl,
            "dynamics_loss": dynamics_loss,
            "representation_kl": representation_kl,
            "representation_loss": representation_loss,
            "quantiser_loss": posterior.loss,
            "posterior_entropy": categorical.entropy(jnp.log(posterior.probs)).sum(-1).mean(),
            "prior_entropy": mean((categorical.entropy(log_probs) * weight).sum(-1)),
            "token_perplexity": jnp.exp(surprise),
            "codebook_use": jnp.exp(categorical.entropy(jnp.log(usage))).mean(),
        }
        return loss, metrics

    def observe(
        self, context: Record, key: jax.Array, horizon: int, starts: int
    ) -> tuple[Carry, jax.Array]:
        c = self.config
        length = context.reward.shape[1] - starts + 1
        if length + horizon > c.max_length:
            raise ValueError(
                f"a context of {length} frames and a horizon of {horizon} steps exceed the "
                f"position table: raise model.max_length={c.max_length} to at least "
                f"{length + horizon}, or shorten them."
            )
        key_posterior, key_prior = jax.random.split(key)
        # Frames that several starts share are encoded once.
        vectors, action, is_first, segments = (
            views.windows(x, starts)
            for x in (
                self.tokenizer.encode(context.observation, key_posterior).vectors,
                context.action,
                context.is_first,
                self.segments(context.is_first),
            )
        )
        batch = vectors.shape[0]
        cache = init_cache(
            layers=c.layers,
            batch=batch,
            length=(length + horizon) * self.mixer.tokens_per_step,
            heads=c.heads,
            head_dim=c.width // c.heads,
            dtype=self.dtype,
        )
        hidden = jnp.zeros((batch, c.width), jnp.float32)
        if length > 1:
            states, cache = self.dynamics(
                vectors[:, :-1], action[:, :-1], segments[:, :-1], cache, True, last=True
            )
            # Nothing of an earlier episode predicts a first frame.
            first = is_first[:, -1:]
            hidden = jnp.where(first, 0.0, states[:, 0].astype(jnp.float32))
        latest = vectors[:, -1]
        if c.acting_latent == "prior" and length > 1:
            predicted = self.tokenizer.embed(self.prior_sample(hidden, key_prior))
            latest = jnp.where(is_first[:, -1, None, None], latest, predicted)
        features = jnp.concatenate([latest.reshape(batch, -1), hidden], -1)
        return Carry(cache, latest, segments[:, -1]), features

    def imagine(self, carry: Carry, action: jax.Array, key: jax.Array) -> tuple[Carry, Prediction]:
        states, cache = self.dynamics(
            carry.vectors[:, None], action[:, None], carry.segment[:, None], carry.cache, True
        )
        hidden = states[:, 0].astype(jnp.float32)
        vectors = self.tokenizer.embed(self.prior_sample(hidden, key))
        prediction = Prediction(
            features=jnp.concatenate([vectors.reshape(vectors.shape[0], -1), hidden], -1),
            reward=twohot.two_hot_symlog_mean(
                self.reward(hidden), twohot.symlog_bins(self.config.num_bins)
            ),
            continuation=jax.nn.sigmoid(-self.termination(hidden)[..., 0]),
        )
        return Carry(cache, vectors, carry.segment), prediction

    def decode(self, carry: Carry) -> jax.Array:
        decoded = self.tokenizer.decode(carry.vectors)
        if self.tokenizer.is_image:
            return to_uint8(decoded)
        return twohot.symexp(decoded)

    def log_likelihood(self, batch: Record, key: jax.Array) -> jax.Array:
        key_posterior, key_order = jax.random.split(key)
        posterior = self.tokenizer.encode(batch.observation, key_posterior)
        segments = self.segments(batch.is_first)
        hidden, _ = self.dynamics(
            posterior.vectors[:, :-1], batch.action[:, :-1], segments[:, :-1], None, True
        )
        tokens = posterior.tokens[:, 1:].argmax(-1).astype(jnp.int32)
        flat = hidden.astype(jnp.float32).reshape(-1, self.config.width)
        log_p = git_storm_prior.log_likelihood(
            self.prior, self.config, flat, tokens.reshape(-1, tokens.shape[-1]), key_order
        )
        return log_p.reshape(tokens.shape)

    def __call__(self, batch: Record, key: jax.Array) -> None:
        """Touch every parameter (for ``init``)."""
        self.loss(batch, key)


@make_world_model.register
def make_git_storm(
    config: GitStormConfig,
    spec: EnvSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> WorldModel:
    """GIT-STORM (``prior="maskgit"``) or STORM (``prior="mlp"``) for an environment.

    The loss of a batch ``(B, T, ...)`` is, with means over batch, time and valid transitions,

        ||o - o'||^2 + L_reward + L_termination + beta_1 max(f, KL[sg(q) || p])
        + beta_2 max(f, KL[q || sg(p)])

    where the KLs of the MaskGIT prior are taken over the masked tokens only and rescaled by N/M.
    Model state: ``batch_stats``. Features are ``concat(flatten z_t, h_{t-1})``; h is zero at the
    first frame of an episode, which nothing precedes. What ``log_likelihood`` means for each
    decoder is said at ``git_storm_prior.log_likelihood``.

    Args:
      config: sizes and ablations.
      spec: what the environment looks like.
      axis_name: a mapped axis (``pmap``, ``shard_map``) the batch is split over: BatchNorm
        statistics, masked means and the free-bits threshold are then those of the whole batch,
        provided the caller averages loss and gradients over the axis.
      dtype: of the computation (``jnp.bfloat16`` on GPU and TPU); parameters, losses, softmax and
        statistics stay float32.

    Returns:
      The bundle of pure functions.

    Raises:
      ValueError: if sizes do not fit together, naming the fields.
    """
    validate(config)
    module = _Module(config, spec, axis_name, dtype)

    def init(key: jax.Array) -> PyTree:
        key_params, key_dropout, key_loss = jax.random.split(key, 3)
        rngs = {"params": key_params, "dropout": key_dropout}
        # Without the axis, so that variables can be made outside of what is mapped over it.
        return _Module(config, spec, dtype=dtype).init(rngs, empty_records(spec, (1, 2)), key_loss)

    def loss(
        variables: PyTree, batch: Record, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        chex.assert_rank(batch.reward, 2)
        key_dropout, key_loss = jax.random.split(key)
        (value, metrics), state = module.apply(
            variables,
            batch,
            key_loss,
            method="loss",
            rngs={"dropout": key_dropout},
            mutable=["batch_stats"],
        )
        return value, (state, metrics)

    def observe(
        variables: PyTree, context: Record, key: jax.Array, horizon: int, starts: int = 1
    ) -> tuple[Carry, jax.Array]:
        chex.assert_rank(context.reward, 2)
        return module.apply(variables, context, key, horizon, starts, method="observe")

    def imagine(
        variables: PyTree, carry: Carry, action: jax.Array, key: jax.Array
    ) -> tuple[Carry, Prediction]:
        return module.apply(variables, carry, action, key, method="imagine")

    def decode(variables: PyTree, carry: Carry) -> jax.Array:
        return module.apply(variables, carry, method="decode")

    def log_likelihood(variables: PyTree, batch: Record, key: jax.Array) -> jax.Array:
        chex.assert_rank(batch.reward, 2)
        return module.apply(variables, batch, key, method="log_likelihood")

    code = config.num_classes if config.tokenizer == "categorical" else config.code_size
    feature_size = config.num_tokens * code + config.width
    return WorldModel(init, loss, observe, imagine, decode, feature_size, log_likelihood)
