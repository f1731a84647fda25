"""What the tests of GIT-STORM share: a small model of vectors and two episodes for it.

Vector observations spare the compilation of convolutions; random parameters show mistakes that
those which start at zero hide.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from random_parameters import random_parameters

from worldmodels_jax.models.git_storm import _Module, make_git_storm
from worldmodels_jax.models.git_storm_config import GitStormConfig, MaskGITConfig
from worldmodels_jax.types import EnvSpec, Record

B, T, N, V, D, A, F = 2, 5, 4, 3, 8, 3, 5
SPEC = EnvSpec("vector", (F,), "float32", A, True, 100)
HEAD = MaskGITConfig(width=8, layers=1, heads=2, hidden=8)
CONFIG = GitStormConfig(
    maskgit=HEAD,
    num_tokens=N,
    num_classes=V,
    code_size=6,
    mlp_width=8,
    width=D,
    layers=2,
    heads=2,
    hidden=8,
    max_length=10,
    dropout=0.0,
    num_bins=21,
    free_bits=0.0,
)
KEY = jax.random.key(0)
HIDDEN = jax.random.normal(KEY, (B, T - 1, D))


def vary(**changes):
    return dataclasses.replace(CONFIG, **changes)


def head(**changes):
    return vary(maskgit=dataclasses.replace(HEAD, **changes))


def random_variables(config, spec=SPEC):
    return random_parameters(jax.eval_shape(make_git_storm(config, spec).init, KEY), 0.7)


def batch_of(spec=SPEC, seed=0):
    """Two episodes of 2 and T - 2 records; the first terminates in row 0, is cut in row 1."""
    rng = np.random.default_rng(seed)
    flags = {name: np.zeros((B, T), bool) for name in ("terminated", "truncated", "is_first")}
    flags["terminated"][0, 1] = flags["truncated"][1, 1] = True
    flags["is_first"][:, 2] = True
    if spec.discrete:
        action = rng.integers(0, A, (B, T), np.int32)
    else:
        action = rng.uniform(-1, 1, (B, T, A)).astype(np.float32)
    records = Record(
        observation=rng.normal(0, 2, (B, T, F)).astype(np.float32),
        action=action,
        reward=np.where(flags["is_first"], 0.0, rng.normal(0, 2, (B, T))).astype(np.float32),
        **flags,
    )
    return jax.tree.map(jnp.asarray, records)


def encode(module, observation, key):
    return module.tokenizer.encode(observation, key, train=True)


def part(config, variables, method, *args):
    """A method of the model's parts, or a function of them."""
    return _Module(config, SPEC).apply(variables, *args, method=method)
