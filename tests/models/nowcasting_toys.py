"""A tiny NowcastingGPT and rain for it, for the tests of its files."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.models.nowcasting_config import (
    ClassifierConfig,
    ExtremeEventConfig,
    NowcastingConfig,
    NowcastingLossConfig,
    RainPatchConfig,
    RainTransformerConfig,
)
from worldmodels_jax.models.nowcasting_gpt import NowcastingGPT, make_nowcasting_gpt
from worldmodels_jax.models.nowcasting_networks import Networks, make_networks
from worldmodels_jax.types import DataSpec, PyTree

B, T, C, SIDE, N, V, D = 4, 5, 2, 8, 4, 12, 8  # two frames are seen, three are to be forecast
DATA = DataSpec("toy_rain", {"rain": (T, SIDE, SIDE)}, 100)
KEY = jax.random.key(0)
CONFIG = NowcastingConfig(
    tokenizer=RainPatchConfig(num_codes=V, code_size=3, width=6),
    transformer=RainTransformerConfig(width=D, layers=2, heads=2),
    event=ExtremeEventConfig(threshold_mm_3h=6.0, region=(0, 4, 0, 4)),
    context_frames=C,
    scale=4.0,
)
LOSS = NowcastingLossConfig()
# A classifier differs from its default only where it is used.
SMALL_CLASSIFIER = ClassifierConfig(layers=1, heads=2)


def with_head(head: str, **changes: Any) -> tuple[NowcastingConfig, NowcastingLossConfig]:
    """The config with an extreme value loss, and its loss."""
    config = CONFIG
    if head.startswith("frame_vit"):
        config = dataclasses.replace(CONFIG, classifier=SMALL_CLASSIFIER)
    if head == "fixed_tokens":
        changes = {"fixed_codes": 3, **changes}
    return config, NowcastingLossConfig(evl=True, head=head, **changes)  # type: ignore[arg-type]


def system(
    config: NowcastingConfig = CONFIG, loss: NowcastingLossConfig = LOSS, **kwargs: Any
) -> NowcastingGPT:
    return make_nowcasting_gpt(config, loss, DATA, **kwargs)


def networks(
    config: NowcastingConfig = CONFIG, loss: NowcastingLossConfig = LOSS, **kwargs: Any
) -> Networks:
    return make_networks(config, loss, DATA, kwargs.pop("axis_name", None), jnp.float32)


def init(made: NowcastingGPT) -> PyTree:
    """Untrained variables; compiled, which takes a fraction of the time."""
    return jax.jit(made.init)(KEY)


def rain(seed: int = 0, count: int = B) -> np.ndarray:
    """Rates of up to about 10 mm/h, of which some of the corners' are extreme."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.5, 2.0, (count, T, SIDE, SIDE)).astype(np.float32)
    rates[::2, :, :4, :4] += 4.0
    return rates


def lively(variables: PyTree, seed: int = 1) -> PyTree:
    """Parameters so large that nothing is small beside rounding."""
    leaves, tree = jax.tree.flatten(variables["params"])
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(x + 0.2 * rng.standard_normal(x.shape), jnp.float32) for x in leaves]
    return {**variables, "params": jax.tree.unflatten(tree, drawn)}
