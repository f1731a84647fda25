"""A tiny DreamerV3 of either version, with random variables and records, for its tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from random_parameters import random_parameters

from worldmodels_jax.models import dreamer_v3_config
from worldmodels_jax.models.dreamer_v3 import DreamerV3Config, _Module, make_dreamer_v3
from worldmodels_jax.types import EnvSpec, Record

B, T, N, V, D, A, F = 2, 5, 4, 3, 16, 3, 5
SPEC = EnvSpec("vector", (F,), "float32", A, True, 100)
GRID = EnvSpec("grid", (10, 5, 1), "uint8", A, True, 100)
CONFIG = DreamerV3Config(
    deter=D,
    hidden=8,
    num_tokens=N,
    num_classes=V,
    blocks=2,
    channels=(8,),
    units=8,
    vector_layers=1,
    num_bins=21,
)
V1 = dataclasses.replace(
    dreamer_v3_config.v1_xs(),
    deter=D,
    hidden=8,
    num_tokens=N,
    num_classes=V,
    channels=(8,),
    units=8,
    num_bins=21,
)
KEY = jax.random.key(0)


def vary(**changes):
    return dataclasses.replace(CONFIG, **changes)


def random_variables(config, spec=SPEC):
    return random_parameters(jax.eval_shape(make_dreamer_v3(config, spec).init, KEY), 0.5)


def batch_of(spec=SPEC, seed=0):
    """Two episodes of 2 and T - 2 records; the first terminates in row 0, is cut in row 1."""
    rng = np.random.default_rng(seed)
    flags = {name: np.zeros((B, T), bool) for name in ("terminated", "truncated", "is_first")}
    flags["terminated"][0, 1] = flags["truncated"][1, 1] = True
    flags["is_first"][:, 2] = True
    shape = (B, T, *spec.observation_shape)
    observation = rng.normal(0, 2, shape).astype(np.float32)
    if spec.observation_dtype == "uint8":
        observation = rng.integers(0, 256, shape, np.uint8)
    action = rng.integers(0, A, (B, T), np.int32)
    if not spec.discrete:
        action = rng.uniform(-1, 1, (B, T, A)).astype(np.float32)
    reward = np.where(flags["is_first"], 0.0, rng.normal(0, 2, (B, T))).astype(np.float32)
    return jax.tree.map(jnp.asarray, Record(observation, action, reward, **flags))


def part(config, variables, method, *args, spec=SPEC):
    """A method of the model's parts, or a function of them."""
    return _Module(config, spec).apply(variables, *args, method=method)


def reached(gradient):
    """Names of the parts, those of the RSSM in its place, that got any gradient."""
    parts = {**gradient, **gradient["rssm"]}
    del parts["rssm"]
    return {
        name
        for name, tree in parts.items()
        if any((leaf != 0).any() for leaf in jax.tree.leaves(tree))
    }
