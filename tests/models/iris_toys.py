"""Tiny sizes of IRIS and Delta-IRIS, and parameters that hide nothing, for the tests of both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from random_parameters import random_parameters

from worldmodels_jax.models.iris_config import (
    DeltaDynamicsConfig,
    DeltaIrisConfig,
    IrisConfig,
    IrisDynamicsConfig,
    ResnetTokenizerConfig,
    VQGANConfig,
)

K, N, D = 4, 6, 8
KEY = jax.random.key(0)
ACTIONS = jnp.array([[0, 1], [2, 0], [1, 1]])  # of three steps

# Frames of 10x5 become 16x16, a latent map of 8x8.
TOKENIZER = ResnetTokenizerConfig(
    image_size=16,
    num_tokens=K,
    num_codes=N,
    code_size=3,
    encoder_channels=(4,),
    latent=2,
    embedder_channels=(4,),
    embedder_latent=2,
    action_channels=1,
    decoder_channels=(4,),
    halve_after=(),
    patch=2,
    revival_limit=None,
)
_SIZES = {"width": D, "layers": 2, "heads": 2, "max_blocks": 8, "num_bins": 21}
DELTA = DeltaIrisConfig(
    tokenizer=TOKENIZER,
    world_model=DeltaDynamicsConfig(
        **_SIZES, frame_channels=(4,), frame_latent=2, frame_halve_after=(), frame_patch=2
    ),
)
IRIS = IrisConfig(
    architecture="resnet",
    resnet=dataclasses.replace(TOKENIZER, kind="frame"),
    vqgan=VQGANConfig(
        image_size=16,
        num_tokens=K,
        num_codes=N,
        code_size=3,
        channels=4,
        blocks=1,
        attention_sizes=(4,),
        latent=5,
    ),
    world_model=IrisDynamicsConfig(
        **_SIZES, dropout=0.0, reward="two_hot", reward_readout="mean", context=8
    ),
)


def vary(config, section="world_model", **changes):
    """The config with other values in one of its sections."""
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **changes)}
    )


def random_variables(model):
    """Of all parameters, and of the codebook."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY)
    variables = {"params": random_parameters(shapes["params"], 0.5, rng)}
    if "vq" in shapes:
        book = shapes["vq"]["quantiser"]["codebook"]
        codes = rng.normal(size=book.codes.shape)
        codes = codes / np.sqrt((codes**2).sum(-1, keepdims=True))
        book = book._replace(
            codes=jnp.asarray(codes, jnp.float32),
            usage=jnp.full(len(codes), 1.0 / len(codes)),
            updates=jnp.zeros((), jnp.int32),
        )
        variables["vq"] = {"quantiser": {"codebook": book}}
    return variables


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def total(tree):
    """Sum of the magnitudes of all entries."""
    return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def two_hot(y, bins):
    """One scalar: weights on its two neighbours."""
    weights = np.zeros(len(bins))
    y = np.clip(np.sign(y) * np.log1p(abs(y)), bins[0], bins[-1] - 1e-5)
    low = np.searchsorted(bins, y, side="right") - 1
    weights[low + 1] = (y - bins[low]) / (bins[low + 1] - bins[low])
    weights[low] = 1 - weights[low + 1]
    return weights


def expected_losses(slots, tokens, token_valid, batch, num_bins=21):
    """Token, reward and termination loss, one entry at a time."""
    bins = np.linspace(-20, 20, num_bins)
    log_p = jax.tree.map(log_softmax, slots)
    token, reward, end = [], [], []
    for b, t, k in np.ndindex(tokens.shape):
        if token_valid[b, t, k]:
            token.append(-log_p.tokens[b, t, k, tokens[b, t, k]])
    for b, t in np.ndindex(slots.reward.shape[:2]):
        if not batch.is_first[b, t + 1]:
            weights = two_hot(float(batch.reward[b, t + 1]), bins)
            reward.append(-(weights * log_p.reward[b, t]).sum())
            end.append(-log_p.termination[b, t, int(batch.terminated[b, t + 1])])
    return tuple(map(np.mean, (token, reward, end)))


def rollout(model, variables, context, actions):
    """The observed carry and features; carries and predictions of every step, stacked."""

    @jax.jit
    def run(variables, context, actions):
        carry, features = model.observe(variables, context, KEY, len(actions))

        def step(carry, inputs):
            carry, prediction = model.imagine(variables, carry, *inputs)
            return carry, (carry, prediction)

        keys = jax.random.split(KEY, len(actions))
        _, (carries, predictions) = jax.lax.scan(step, carry, (actions, keys))
        return carry, features, carries, predictions

    return run(variables, context, actions)
