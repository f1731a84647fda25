"""Configs of IRIS and Delta-IRIS: published sizes, presets, and sizes that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iris_toys import DELTA, IRIS, KEY, count, vary

from worldmodels_jax.models import delta_iris, iris
from worldmodels_jax.models.delta_iris import make_delta_iris
from worldmodels_jax.models.iris import make_iris
from worldmodels_jax.models.iris_config import (
    delta_iris_atari,
    delta_iris_crafter,
    delta_iris_tiny16,
    iris_atari,
    iris_crafter,
    iris_tiny16,
)
from worldmodels_jax.types import EnvSpec

CRAFTER = EnvSpec("crafter", (64, 64, 3), "uint8", 17, True, 10_000)
ATARI = EnvSpec("atari", (64, 64, 3), "uint8", 18, True, 27_000)


def parameters(model):
    return jax.eval_shape(model.init, KEY)["params"]


def dynamics(make, config, spec):
    return make._networks(config, spec, None, jnp.float32).dynamics


def test_numbers_of_parameters_are_the_published_ones():
    params = parameters(make_delta_iris(delta_iris_crafter(), CRAFTER))
    assert count(params["tokenizer"]) == 5_409_611
    assert count(params["dynamics"]) == 11_948_457
    params = parameters(make_iris(iris_atari(), ATARI))
    assert count(params["tokenizer"]) == 4_027_523
    assert count(params["dynamics"]) == 8_451_077


def test_delta_iris_for_atari_has_the_published_layers():
    params = parameters(make_delta_iris(delta_iris_atari(), ATARI))
    # Frame embedding, action map and tokens: 16 + 4 + 64 channels.
    assert params["tokenizer"]["decoder"]["in"]["kernel"].shape == (3, 3, 84, 256)
    assert params["dynamics"]["reward_head"]["out"]["kernel"].shape == (256, 3)
    # An I-token is the flattened map, not projected.
    assert params["dynamics"]["frame_encoder"]["out"]["kernel"].shape[-1] == 256 // 64
    assert "to_width" not in params["dynamics"]


def test_numbers_of_tokens_are_the_published_ones():
    crafter = dynamics(delta_iris, delta_iris_crafter(), CRAFTER)
    assert (crafter.block, crafter.max_tokens) == (6, 126)
    assert dynamics(delta_iris, delta_iris_atari(), ATARI).max_tokens == 156
    without = dynamics(delta_iris, vary(delta_iris_crafter(), i_tokens=False), CRAFTER)
    assert (without.block, without.max_tokens) == (5, 1 + 5 * 21)
    atari = dynamics(iris, iris_atari(), ATARI)
    assert (atari.block, atari.max_tokens) == (17, 340)
    for num_tokens in (16, 64):
        crafter = dynamics(iris, iris_crafter(num_tokens), CRAFTER)
        assert (crafter.block, crafter.max_blocks) == (num_tokens + 1, 21)


@pytest.mark.parametrize("shape", [(10, 5, 1), (10, 10, 4), (16, 16, 3)])
def test_the_small_presets_take_small_grids_of_any_number_of_channels(shape):
    spec = EnvSpec("grid", shape, "uint8", 5, True, 100)
    models = [make_delta_iris(delta_iris_tiny16(), spec)]
    models += [make_iris(iris_tiny16(num_tokens), spec) for num_tokens in (4, 16, 64)]
    for model in models:
        decoder = parameters(model)["tokenizer"]["decoder"]
        assert model.feature_size == np.prod(shape)
        # Shuffled pixels of 2x2, each with the channels of the image.
        assert decoder["out"]["kernel"].shape[-1] == 4 * shape[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_shape": (5,), "observation_dtype": "float32"}, r"float32 .* shape \(5,\)"),
        ({"discrete": False}, "continuous actions"),
        ({"observation_shape": (20, 5, 1)}, r"20x5 .*model\.tokenizer\.image_size=16"),
    ],
)
def test_environments_that_cannot_be_learnt_are_refused(change, message, spec):
    with pytest.raises(ValueError, match=message):
        make_delta_iris(DELTA, dataclasses.replace(spec, **change))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("tokenizer", {"num_tokens": 5}, r"num_tokens=5 .* 8x8"),
        ("tokenizer", {"num_tokens": 9}, r"num_tokens=9 .* 8x8"),
        ("tokenizer", {"patch": 3}, r"image_size=16 is not a multiple of 3"),
        ("tokenizer", {"halve_after": (1,)}, r"halve_after=\(1,\) .* has 1 levels"),
        ("world_model", {"heads": 3}, r"width=8 .*heads=3"),
    ],
)
def test_sizes_of_delta_iris_that_do_not_fit_are_refused(section, changes, message, spec):
    with pytest.raises(ValueError, match=message):
        make_delta_iris(vary(DELTA, section, **changes), spec)


VQGAN = dataclasses.replace(IRIS, architecture="vqgan")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (vary(VQGAN, "vqgan", num_tokens=5), r"vqgan\.num_tokens=5 .*image_size=16"),
        (vary(VQGAN, "vqgan", num_tokens=9), r"vqgan\.num_tokens=9 .*image_size=16"),
        (vary(VQGAN, "vqgan", image_size=24), r"vqgan\.num_tokens=4 .*image_size=24"),
        (vary(VQGAN, "vqgan", image_size=8), r"10x5 .*model\.vqgan\.image_size=8"),
        (vary(IRIS, "resnet", kind="delta"), r"resnet\.kind=delta"),
        (vary(IRIS, context=9), r"context=9 .*max_blocks=8"),
        (vary(IRIS, context=0), r"context=0 "),
        (dataclasses.replace(IRIS, tokenizer_scale=0.0, world_model_scale=0.0), "leave no loss"),
    ],
)
def test_sizes_of_iris_that_do_not_fit_are_refused(config, message, spec):
    with pytest.raises(ValueError, match=message):
        make_iris(config, spec)
