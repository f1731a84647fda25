"""Delta-IRIS: a transformer over tokens that say what the frame and action before do not.

Micheli, Alonso and Fleuret (2024). A discrete autoencoder describes o_{t+1} given o_t and a_t by a
few tokens; a causal transformer over [I_t, a_t, z_{t+1}^1 .. z_{t+1}^K] predicts these, the reward
and the end; the policy acts on decoded frames.
"""

import functools
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
from worldmodels_jax.models.iris_config import DeltaIrisConfig
from worldmodels_jax.models.iris_dynamics import DeltaDynamics, Slots
from worldmodels_jax.models.iris_parts import Networks, TokenizerLoss
from worldmodels_jax.models.world_model import Prediction, WorldModel, make_world_model
from worldmodels_jax.nn import lpips
from worldmodels_jax.nn.transformer import KVCache, clear_cache
from worldmodels_jax.ops.frames import from_square, to_pixels, to_square
from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record

__all__ = ["Carry", "DeltaIrisConfig", "make_delta_iris"]


class Carry(NamedTuple):
    """State of an imagined rollout at step t, before a_t is consumed."""

    cache: KVCache  # of all tokens up to z_t, and of I_t where every step has its I-token
    frame: jax.Array  # (B, H, W, C) float32 in [0, 1], o_t
    segment: jax.Array  # (B,) int32, the episode within the context
    beginning: jax.Array | None  # (B, D) what is added to a_t; None with I-tokens at every step


@make_world_model.register
def make_delta_iris(
    config: DeltaIrisConfig,
    spec: EnvSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    *,
    uniform_tokens: bool = False,
) -> WorldModel:
    """Delta-IRIS for an environment with frames and discrete actions.

    The loss is ``tokenizer_scale L_tokenizer + world_model_scale L_transformer`` over the
    transitions of a batch ``(B, T, ...)``, T at least 2. The two have separate parameters,
    ``params["tokenizer"]`` and ``params["dynamics"]``, and no gradient from one to the other, so
    one optimiser is as two. Model state: ``vq``, the codebook. Features are frames in [0, 1],
    flattened: the real one after ``observe``, decoded ones after ``imagine``. A dream longer than
    the position table goes on with an empty memory.

    Args:
      config: sizes and ablations.
      spec: what the environment looks like.
      axis_name: a mapped axis the batch is split over: masked means and the codebook's update are
        then those of the whole batch, provided the caller averages loss and gradients over it.
      dtype: of the computation; parameters, losses, the codebook and statistics stay float32.
      uniform_tokens: dream with tokens drawn uniformly, to see what they decide and what the frame
        and the action before do (section 3.4).

    Returns:
      The bundle of pure functions.

    Raises:
      ValueError: if sizes do not fit together, naming the fields, or for another kind of
        environment.
    """
    imagine = functools.partial(_imagine, uniform_tokens=uniform_tokens)
    functions = _FUNCTIONS._replace(imagine=imagine)
    return iris_bundle.bundle(
        functions, lambda axis: _networks(config, spec, axis, dtype), axis_name
    )


def _networks(
    config: DeltaIrisConfig, spec: EnvSpec, axis_name: str | None, dtype: Any
) -> Networks:
    validate(config, spec)
    c = config.world_model
    dynamics = DeltaDynamics(
        **parts.dynamics_sizes(c, config.tokenizer, spec),
        i_tokens=c.i_tokens,
        frame_channels=c.frame_channels,
        frame_latent=c.frame_latent,
        frame_halve_after=c.frame_halve_after,
        frame_patch=c.frame_patch,
        dtype=dtype,
    )
    tokenizer = parts.make_tokenizer(config.tokenizer, spec, axis_name, dtype)
    weights = parts.load_perceptual(config.tokenizer)
    return Networks(config, spec, axis_name, tokenizer, dynamics, weights)


def _init(m: Networks, key: jax.Array) -> PyTree:
    key_tokenizer, key_dynamics = jax.random.split(key)
    batch = empty_records(m.spec, (1, 2))
    frames, action = m.frames(batch), batch.action[:, :-1]
    variables = m.tokenizer.init(key_tokenizer, frames[:, 1:], frames[:, :-1], action)
    tokens = jnp.zeros((1, 1, m.dynamics.num_tokens), jnp.int32)
    dynamics = m.dynamics.init(
        key_dynamics, frames[:, :-1], action, tokens, jnp.zeros((1, 1), jnp.int32)
    )
    params = {"tokenizer": variables.pop("params"), "dynamics": dynamics["params"]}
    return {"params": params, **variables, **lpips.as_collection(m.lpips)}


def _tokens(m: Networks, variables: PyTree, frames: jax.Array, action: jax.Array) -> jax.Array:
    """Of what each action led to: ``(B, T, S, S, C), (B, T-1) -> (B, T-1, K)``."""
    return m.tokenize(variables, "encode", frames[:, 1:], frames[:, :-1], action).tokens


def _tokenizer_loss(m: Networks, variables: PyTree, batch: Record, key: jax.Array) -> TokenizerLoss:
    _check_length(batch)
    frames, valid = m.frames(batch), views.transitions(batch).valid
    return parts.tokenizer_loss(
        m, variables, frames[:, 1:], frames[:, :-1], batch.action[:, :-1], valid, key
    )


def _slots(
    m: Networks, variables: PyTree, batch: Record, tokens: jax.Array, key: jax.Array | None
) -> Slots:
    """Logits of all transitions; dropout if there is a key."""
    rngs = {} if key is None else {"dropout": key}
    return m.dynamics.apply(
        {"params": variables["params"]["dynamics"]},
        m.frames(batch)[:, :-1],
        batch.action[:, :-1],
        tokens,
        views.segment_ids(batch.is_first)[:, :-1],
        key is None,
        method="predict",
        rngs=rngs,
    )


def _world_model_loss(
    m: Networks, variables: PyTree, batch: Record, key: jax.Array, tokens: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    _check_length(batch)
    if tokens is None:
        tokens = _tokens(m, variables, m.frames(batch), batch.action[:, :-1])
    config = m.config.world_model
    target = parts.targets(config, batch)
    valid = jnp.broadcast_to(target.valid[..., None], tokens.shape)
    slots = _slots(m, variables, batch, tokens, key)
    return parts.prediction_loss(config, slots, tokens, valid, target, m.axis_name)


def _log_likelihood(m: Networks, variables: PyTree, batch: Record, key: jax.Array) -> jax.Array:
    del key  # the tokens are the encoder's, and nothing is sampled
    _check_length(batch)
    tokens = _tokens(m, variables, m.frames(batch), batch.action[:, :-1])
    return -parts.cross_entropy(_slots(m, variables, batch, tokens, None).tokens, tokens)


def _embed_frames(m: Networks, params: PyTree, frames: jax.Array) -> jax.Array:
    return m.dynamics.apply({"params": params}, frames, method="embed_frames")


def _see(m: Networks, variables: PyTree, records: Record) -> jax.Array:
    frames = from_square(m.frames(records), m.spec.observation_shape)
    return frames.reshape(*records.reward.shape, -1)


def _observe(
    m: Networks, variables: PyTree, context: Record, horizon: int
) -> tuple[Carry, jax.Array]:
    chex.assert_rank(context.reward, 2)
    dynamics, params = m.dynamics, variables["params"]["dynamics"]
    batch, length = context.reward.shape
    if length > dynamics.max_blocks:
        raise ValueError(
            f"a context of {length} frames exceeds the position table: raise "
            f"model.world_model.max_blocks={dynamics.max_blocks}, or shorten it."
        )
    frames, action = m.frames(context), context.action[:, :-1]
    segments = views.segment_ids(context.is_first)
    if length > 1:
        tokens = _tokens(m, variables, frames, action)
    else:
        tokens = jnp.zeros((batch, 0, dynamics.num_tokens), jnp.int32)
    embedded = _embed_frames(m, params, frames)
    x, token_segments = dynamics.apply(
        {"params": params}, embedded, action, tokens, segments, method="sequence"
    )
    cache = imagination.new_cache(dynamics, batch, x.shape[1] + horizon * dynamics.block)
    _, cache = dynamics.apply({"params": params}, x, token_segments, cache, method="feed")
    beginning = None
    if not dynamics.i_tokens:
        beginning = dynamics.apply({"params": params}, embedded, segments, method="beginnings")
        beginning = beginning[:, -1].astype(jnp.float32)
    frame = from_square(frames[:, -1], m.spec.observation_shape)
    return Carry(cache, frame, segments[:, -1], beginning), frame.reshape(batch, -1)


def _imagine(
    m: Networks,
    variables: PyTree,
    carry: Carry,
    action: jax.Array,
    key: jax.Array,
    uniform_tokens: bool = False,
) -> tuple[Carry, Prediction]:
    dynamics, params = m.dynamics, variables["params"]["dynamics"]
    feed = imagination.make_feed(dynamics, params)
    square = to_square(carry.frame, m.tokenizer.image_size)

    def start_again(cache: KVCache) -> KVCache:
        embedded = _embed_frames(m, params, square)
        return feed(embedded[:, None], carry.segment, clear_cache(cache))[1]

    cache = imagination.with_room(dynamics, carry.cache, start_again)
    embedded = dynamics.apply({"params": params}, action, method="embed_actions")
    beginning = carry.beginning
    if beginning is not None:
        embedded = embedded + beginning.astype(embedded.dtype)
        beginning = jnp.zeros_like(beginning)
    step = imagination.imagine_step(
        dynamics, m.config.world_model, params, cache, carry.segment, embedded, key, uniform_tokens
    )
    vectors = m.tokenize(variables, "embed", step.tokens)
    decoded = m.tokenize(variables, "decode", vectors, square, action)
    frame = to_pixels(from_square(decoded, m.spec.observation_shape))

    last = step.tokens[:, -1:]
    rest = [dynamics.apply({"params": params}, last, method="embed_tokens")]
    if dynamics.i_tokens:
        seen = to_square(frame, m.tokenizer.image_size)
        rest.append(_embed_frames(m, params, seen)[:, None])
    _, cache = feed(jnp.concatenate(rest, 1), carry.segment, step.cache)
    prediction = Prediction(frame.reshape(frame.shape[0], -1), step.reward, step.continuation)
    return Carry(cache, frame, carry.segment, beginning), prediction


def _check_length(batch: Record) -> None:
    chex.assert_rank(batch.reward, 2)
    if batch.reward.shape[1] < 2:
        raise ValueError(
            "Delta-IRIS learns from pairs of frames, but the sequences have "
            f"{batch.reward.shape[1]} record: raise training.batch_length to at least 2."
        )


_FUNCTIONS = iris_bundle.Functions(
    _init, _tokenizer_loss, _world_model_loss, _observe, _imagine, _see, _log_likelihood
)
