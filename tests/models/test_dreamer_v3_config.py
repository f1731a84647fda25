"""DreamerV3's published sizes, and what its config refuses."""

import dataclasses

import jax
import pytest
from dreamer_toys import CONFIG, GRID, KEY, SPEC, V1, vary

from worldmodels_jax.models import dreamer_v3_config
from worldmodels_jax.models.dreamer_v3 import DreamerV3Config, make_dreamer_v3
from worldmodels_jax.types import EnvSpec


@pytest.mark.parametrize(
    ("preset", "millions"), [("xs", 8), ("s", 18), ("m", 37), ("l", 77), ("xl", 200)]
)
def test_number_of_parameters_of_2023_is_the_published_one(preset, millions):
    config = getattr(dreamer_v3_config, f"v1_{preset}")()
    model = make_dreamer_v3(config, EnvSpec("atari", (64, 64, 3), "uint8", 18, True, 100))
    size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, KEY)))
    # The published numbers count actor and critic, which are MLPs like the heads.
    units, layers = config.units, config.head_layers
    hidden = model.feature_size * units + (layers - 1) * units**2 + 2 * layers * units
    size += 2 * hidden + units * (18 + 255)
    assert abs(size / 1e6 - millions) < 1


def test_number_of_parameters_of_2024():
    model = make_dreamer_v3(
        dreamer_v3_config.size12m(), EnvSpec("atari", (64, 64, 3), "uint8", 18, True, 100)
    )
    params = jax.eval_shape(model.init, KEY)["params"]
    d, h, z, e, g = 2048, 256, 32 * 16, 4 * 4 * 64, 8

    def layer(inputs, outputs):  # with a bias and the scale of its norm
        return inputs * outputs + 2 * outputs

    cell = layer(d, h) + layer(z, h) + layer(18, h)
    cell += g * (d // g + 3 * h) * (d // g) + 2 * d
    cell += g * (d // g) * (3 * d // g) + 3 * d
    prior = layer(d, h) + layer(h, h) + h * z + z
    posterior = layer(d + e, h) + h * z + z
    size = sum(x.size for x in jax.tree.leaves(params["rssm"]))
    assert size == cell + prior + posterior
    assert model.feature_size == d + z


@pytest.mark.parametrize(
    ("preset", "deter", "hidden", "classes", "channels"),
    [
        ("size1m", 512, 64, 4, (8, 12, 16, 16)),
        ("size12m", 2048, 256, 16, (32, 48, 64, 64)),
        ("size25m", 3072, 384, 24, (48, 72, 96, 96)),
        ("size50m", 4096, 512, 32, (64, 96, 128, 128)),
        ("size100m", 6144, 768, 48, (96, 144, 192, 192)),
        ("size200m", 8192, 1024, 64, (128, 192, 256, 256)),
        ("size400m", 12288, 1536, 96, (192, 288, 384, 384)),
    ],
)
def test_sizes_of_2024(preset, deter, hidden, classes, channels):
    config = getattr(dreamer_v3_config, preset)()
    assert (config.deter, config.hidden, config.num_classes) == (deter, hidden, classes)
    assert (config.units, config.channels) == (hidden, channels)
    if preset == "size12m":
        assert config == DreamerV3Config()


@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        (vary(blocks=3), SPEC, r"model.deter=16 .* model.blocks=3"),
        (vary(units=0), SPEC, r"model.units=0 must be at least 1"),
        (vary(discount_horizon=1.0), SPEC, r"model.discount_horizon=1.0 must be greater than 1"),
        (vary(channels=(8, 8)), GRID, r"frames of 10x5 .* model.channels a length of 1"),
        (vary(channels=(9,)), GRID, r"model.channels\[-1\]=9 .* model.blocks=2"),
        (CONFIG, dataclasses.replace(SPEC, observation_shape=(3, 3)), r"\(3, 3\) are neither"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, spec, message):
    with pytest.raises(ValueError, match=message):
        make_dreamer_v3(config, spec)


def test_settings_that_are_not_used_are_not_checked():
    make_dreamer_v3(dataclasses.replace(V1, blocks=3), GRID)
    make_dreamer_v3(vary(channels=(8, 8)), SPEC)
