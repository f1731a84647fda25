"""IRIS: a transformer over the tokens of single frames, the baseline of Delta-IRIS.

Micheli, Alonso and Fleuret (2023). A discrete autoencoder describes each frame by K tokens; a
causal transformer over [z_t^1 .. z_t^K, a_t] predicts the next token, the reward and the end; the
policy acts on decoded frames.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from worldmodels_jax.data import views
from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.models import iris_bundle
from worldmodels_jax.models import iris_imagination as imagination
from worldmodels_jax.models import iris_parts as parts
from worldmodels_jax.models.iris_checks import validate
from worldmodels_jax.models.iris_config import IrisConfig
from worldmodels_jax.models.iris_dynamics import IrisDynamics, Slots
from worldmodels_jax.models.iris_parts import Networks, TokenizerLoss
from worldmodels_jax.models.world_model import Prediction, WorldModel, make_world_model
from worldmodels_jax.nn import lpips
from worldmodels_jax.nn.transformer import KVCache, clear_cache
from worldmodels_jax.ops.frames import from_square, to_pixels
from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record

__all__ = ["Carry", "IrisConfig", "make_iris"]


class Carry(NamedTuple):
    """State of an imagined rollout at step t, before a_t is consumed."""

    cache: KVCache  # of all tokens up to z_t
    tokens: jax.Array  # (B, K) int32, z_t
    frame: jax.Array  # (B, H, W, C) float32 in [0, 1], decoded from z_t
    segment: jax.Array  # (B,) int32, the episode within the context


@make_world_model.register
def make_iris(
    config: IrisConfig,
    spec: EnvSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> WorldModel:
    """IRIS for an environment with frames and discrete actions.

    The loss is ``tokenizer_scale L_tokenizer + world_model_scale L_transformer``: the former over
    all frames of a batch ``(B, T, ...)``, the latter over its tokens and transitions. The two have
    separate parameters, ``params["tokenizer"]`` and ``params["dynamics"]``, and no gradient from
    one to the other, so one optimiser is as two. Model state: none with ``architecture="vqgan"``,
    else ``vq``, the codebook. Features are decoded frames in [0, 1], flattened, after ``observe``
    too. A dream longer than the position table goes on with the latest frame for its memory.

    Args:
      config: sizes and ablations.
      spec: what the environment looks like.
      axis_name: a mapped axis the batch is split over: masked means and the codebook's update are
        then those of the whole batch, provided the caller averages loss and gradients over it.
      dtype: of the computation; parameters, losses, the codebook and statistics stay float32.

    Returns:
      The bundle of pure functions.

    Raises:
      ValueError: if sizes do not fit together, naming the fields, or for another kind of
        environment.
    """
    return iris_bundle.bundle(
        _FUNCTIONS, lambda axis: _networks(config, spec, axis, dtype), axis_name
    )


def _networks(config: IrisConfig, spec: EnvSpec, axis_name: str | None, dtype: Any) -> Networks:
    validate(config, spec)
    sizes = parts.dynamics_sizes(config.world_model, config.tokenizer, spec)
    tokenizer = parts.make_tokenizer(config.tokenizer, spec, axis_name, dtype)
    dynamics, weights = IrisDynamics(**sizes, dtype=dtype), parts.load_perceptual(config.tokenizer)
    return Networks(config, spec, axis_name, tokenizer, dynamics, weights)


def _init(m: Networks, key: jax.Array) -> PyTree:
    key_tokenizer, key_dynamics = jax.random.split(key)
    batch = empty_records(m.spec, (1, 2))
    variables = m.tokenizer.init(key_tokenizer, m.frames(batch))
    tokens = jnp.zeros((1, 2, m.dynamics.num_tokens), jnp.int32)
    dynamics = m.dynamics.init(
        key_dynamics, tokens, batch.action[:, :-1], views.segment_ids(batch.is_first)
    )
    params = {"tokenizer": variables.pop("params"), "dynamics": dynamics["params"]}
    return {"params": params, **variables, **lpips.as_collection(m.lpips)}


def _tokenizer_loss(m: Networks, variables: PyTree, batch: Record, key: jax.Array) -> TokenizerLoss:
    chex.assert_rank(batch.reward, 2)
    everything = jnp.ones(batch.reward.shape, bool)
    return parts.tokenizer_loss(m, variables, m.frames(batch), None, None, everything, key)


def _slots(
    m: Networks, variables: PyTree, batch: Record, tokens: jax.Array, key: jax.Array | None
) -> Slots:
    """Logits of all tokens and transitions; dropout if there is a key."""
    return m.dynamics.apply(
        {"params": variables["params"]["dynamics"]},
        tokens,
        batch.action[:, :-1],
        views.segment_ids(batch.is_first),
        key is None,
        method="predict",
        rngs={} if key is None else {"dropout": key},
    )


def _world_model_loss(
    m: Networks, variables: PyTree, batch: Record, key: jax.Array, tokens: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    chex.assert_rank(batch.reward, 2)
    if tokens is None:
        tokens = m.tokenize(variables, "encode", m.frames(batch)).tokens
    config = m.config.world_model
    target = parts.targets(config, batch)
    # Nothing precedes the first token of a first frame; the others follow from one another.
    valid = jnp.ones(tokens.shape, bool).at[:, 1:, 0].set(target.valid).at[:, 0, 0].set(False)
    slots = _slots(m, variables, batch, tokens, key)
    return parts.prediction_loss(config, slots, tokens, valid, target, m.axis_name)


def _log_likelihood(m: Networks, variables: PyTree, batch: Record, key: jax.Array) -> jax.Array:
    del key  # the tokens are the encoder's, and nothing is sampled
    chex.assert_rank(batch.reward, 2)
    tokens = m.tokenize(variables, "encode", m.frames(batch)).tokens
    logits = _slots(m, variables, batch, tokens, None).tokens
    return -parts.cross_entropy(logits, tokens)[:, 1:]


def _reconstruct(m: Networks, variables: PyTree, tokens: jax.Array) -> jax.Array:
    """``(B, K) -> (B, H, W, C)`` in [0, 1]."""
    decoded = m.tokenize(variables, "decode", m.tokenize(variables, "embed", tokens))
    return to_pixels(from_square(decoded, m.spec.observation_shape))


def _see(m: Networks, variables: PyTree, records: Record) -> jax.Array:
    """Reconstructions: the policy never sees a frame that could not be dreamed."""
    batch, length = records.reward.shape
    tokens = m.tokenize(variables, "encode", m.frames(records)).tokens
    frames = _reconstruct(m, variables, tokens.reshape(batch * length, -1))
    return frames.reshape(batch, length, -1)


def _observe(
    m: Networks, variables: PyTree, context: Record, horizon: int
) -> tuple[Carry, jax.Array]:
    chex.assert_rank(context.reward, 2)
    dynamics, params = m.dynamics, variables["params"]["dynamics"]
    batch = context.reward.shape[0]
    segments = views.segment_ids(context.is_first)
    seen = m.config.world_model.context
    recent = jax.tree.map(lambda x: x[:, -seen:], context)
    tokens = m.tokenize(variables, "encode", m.frames(recent)).tokens
    x, token_segments = dynamics.apply(
        {"params": params}, tokens, recent.action[:, :-1], segments[:, -seen:], method="sequence"
    )
    cache = imagination.new_cache(dynamics, batch, x.shape[1] + horizon * dynamics.block)
    _, cache = dynamics.apply({"params": params}, x, token_segments, cache, method="feed")
    frame = _reconstruct(m, variables, tokens[:, -1])
    return Carry(cache, tokens[:, -1], frame, segments[:, -1]), frame.reshape(batch, -1)


def _imagine(
    m: Networks, variables: PyTree, carry: Carry, action: jax.Array, key: jax.Array
) -> tuple[Carry, Prediction]:
    dynamics, params = m.dynamics, variables["params"]["dynamics"]
    feed = imagination.make_feed(dynamics, params)

    def embed(tokens: jax.Array) -> jax.Array:
        return dynamics.apply({"params": params}, tokens, method="embed_tokens")

    def start_again(cache: KVCache) -> KVCache:
        return feed(embed(carry.tokens), carry.segment, clear_cache(cache))[1]

    cache = imagination.with_room(dynamics, carry.cache, start_again)
    embedded = dynamics.apply({"params": params}, action, method="embed_actions")
    step = imagination.imagine_step(
        dynamics, m.config.world_model, params, cache, carry.segment, embedded, key
    )
    _, cache = feed(embed(step.tokens[:, -1:]), carry.segment, step.cache)
    frame = _reconstruct(m, variables, step.tokens)
    features = frame.reshape(frame.shape[0], -1)
    prediction = Prediction(features, step.reward, step.continuation)
    return Carry(cache, step.tokens, frame, carry.segment), prediction


_FUNCTIONS = iris_bundle.Functions(
    _init, _tokenizer_loss, _world_model_loss, _observe, _imagine, _see, _log_likelihood
)
