"""I3D: its published sizes, its parts against slow ones, and that every weight has its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.nn import i3d
from worldmodels_jax.nn.i3d import i3d_logits, i3d_weight_shapes


def random_weights(shapes, seed=0):
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("/w"):
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif name.endswith("moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.2, shape)
        weights[name] = value.astype(np.float32)
    return weights


def test_number_of_parameters_is_the_published_one():
    sizes = {name: int(np.prod(shape)) for name, shape in i3d_weight_shapes().items()}
    assert len(sizes) == 57 * 4 + 2
    kernels = sum(n for name, n in sizes.items() if name.endswith("conv_3d/w"))
    offsets = sum(n for name, n in sizes.items() if name.endswith("beta"))
    logits = sum(n for name, n in sizes.items() if name.startswith("Logits"))
    assert offsets == 7_280
    assert logits == 410_000
    assert kernels + offsets == 12_279_984 + 409_600
    # 12.29 million is the count of ports whose batch normalisation has a scale too, without logits.
    assert kernels - 409_600 + 2 * offsets == 12_287_264


def test_names_are_those_of_the_checkpoint():
    shapes = i3d_weight_shapes()
    assert shapes["Conv3d_1a_7x7/conv_3d/w"] == (7, 7, 7, 3, 64)
    assert shapes["Conv3d_1a_7x7/batch_norm/moving_variance"] == (64,)
    assert shapes["Mixed_4f/Branch_1/Conv3d_0b_3x3/conv_3d/w"] == (3, 3, 3, 160, 320)
    assert shapes["Mixed_5c/Branch_3/Conv3d_0b_1x1/conv_3d/w"] == (1, 1, 1, 832, 128)
    assert shapes["Logits/Conv3d_0c_1x1/conv_3d/b"] == (400,)
    # A slip of the authors' code that their checkpoint has preserved.
    assert "Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w" in shapes
    assert "Mixed_5b/Branch_2/Conv3d_0b_3x3/conv_3d/w" not in shapes


class Reads(dict):
    """Weights that count how often each is read."""

    def __init__(self, weights):
        super().__init__(weights)
        self.reads = dict.fromkeys(weights, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return super().__getitem__(name)


@pytest.mark.parametrize("shape", [(2, 48, 224, 224, 3), (1, 2, 32, 32, 3)])
def test_every_array_has_one_place(shape):
    """Shapes only: a branch that was left out would not fit the next block's kernels."""
    reads = []

    def logits(weights, video):
        reads.append(Reads(weights))
        return i3d_logits(reads[0], video)

    struct = jax.ShapeDtypeStruct
    weights = {name: struct(s, jnp.float32) for name, s in i3d_weight_shapes().items()}
    out = jax.eval_shape(logits, weights, struct(shape, jnp.float32))
    assert (out.shape, out.dtype) == ((shape[0], 400), jnp.float32)
    assert set(reads[0].reads.values()) == {1}


def slow_unit(weights, name, x, stride=1):
    """One video (T, H, W, C), window by window; the odd zero of "SAME" is at the end."""
    kernel = weights[f"{name}/conv_3d/w"]
    size = [-(-n // stride) for n in x.shape[:3]]
    pads = [
        max((m - 1) * stride + k - n, 0)
        for m, k, n in zip(size, kernel.shape, x.shape, strict=False)
    ]
    padded = np.pad(x, [*((p // 2, p - p // 2) for p in pads), (0, 0)])
    out = np.zeros((*size, kernel.shape[-1]))
    for place in np.ndindex(*size):
        window = tuple(
            slice(i * stride, i * stride + k) for i, k in zip(place, kernel.shape, strict=False)
        )
        out[place] = np.tensordot(padded[window], kernel, 4)
    norm = f"{name}/batch_norm"
    out = (out - weights[f"{norm}/moving_mean"]) / np.sqrt(
        weights[f"{norm}/moving_variance"] + 1e-3
    )
    return np.maximum(out + weights[f"{norm}/beta"], 0)


def unit_shapes(name, kernel):
    statistics = ("beta", "moving_mean", "moving_variance")
    return {
        f"{name}/conv_3d/w": kernel,
        **{f"{name}/batch_norm/{s}": kernel[-1:] for s in statistics},
    }


@pytest.mark.parametrize(("kernel", "stride", "size"), [(7, 2, 8), (3, 1, 5)])
def test_a_unit_equals_a_slow_one(kernel, stride, size):
    weights = random_weights(unit_shapes("u", (kernel, kernel, kernel, 2, 3)))
    x = np.random.default_rng(2).normal(size=(size, size, size - 1, 2)).astype(np.float32)
    out = i3d._unit(weights, "u", jnp.asarray(x[None]), stride)
    expected = slow_unit(weights, "u", x, stride)
    assert (expected > 0).any()
    np.testing.assert_allclose(out[0], expected, atol=1e-4)


def test_an_inception_block_equals_a_slow_one():
    shapes = {}
    for branch, unit, kernel in [
        (0, "0a_1x1", (1, 1, 1, 3, 2)),
        (1, "0a_1x1", (1, 1, 1, 3, 2)),
        (1, "0b_3x3", (3, 3, 3, 2, 4)),
        (2, "0a_1x1", (1, 1, 1, 3, 1)),
        (2, "0b_3x3", (3, 3, 3, 1, 2)),
        (3, "0b_1x1", (1, 1, 1, 3, 3)),
    ]:
        shapes |= unit_shapes(f"M/Branch_{branch}/Conv3d_{unit}", kernel)
    weights = random_weights(shapes, seed=3)
    # All negative: a pooling that takes the padding for zeros would show.
    x = -np.random.default_rng(4).uniform(1, 2, (3, 4, 4, 3)).astype(np.float32)
    padded = np.pad(x, [(1, 1)] * 3 + [(0, 0)], constant_values=-np.inf)
    pooled = np.stack(
        [padded[t : t + 3, h : h + 3, w : w + 3].max((0, 1, 2)) for t, h, w in np.ndindex(3, 4, 4)]
    ).reshape(x.shape)
    slow = lambda name, value: slow_unit(weights, f"M/{name}", value)  # noqa: E731
    expected = np.concatenate(
        [
            slow("Branch_0/Conv3d_0a_1x1", x),
            slow("Branch_1/Conv3d_0b_3x3", slow("Branch_1/Conv3d_0a_1x1", x)),
            slow("Branch_2/Conv3d_0b_3x3", slow("Branch_2/Conv3d_0a_1x1", x)),
            slow("Branch_3/Conv3d_0b_1x1", pooled),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(
        i3d._inception(weights, "M", jnp.asarray(x[None]))[0], expected, atol=1e-4
    )


def test_pooling_strides_by_hand():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6, 1)
    # Three windows of three, the padding at the end.
    np.testing.assert_array_equal(i3d._max_pool(x, (1, 3, 3), (1, 2, 2)).ravel(), [2, 4, 5])
    np.testing.assert_array_equal(i3d._max_pool(x, (2, 2, 2), (2, 2, 2)).ravel(), [1, 3, 5])


def test_logits_average_windows_of_two_steps():
    """Windows (0, 3), (3, 0): the middle step counts twice."""
    x = np.array([0.0, 3.0, 0.0])[None, :, None, None, None] * np.ones((1, 3, 2, 2, 1))
    weights = {
        "Logits/Conv3d_0c_1x1/conv_3d/w": np.array([2.0, -1.0]).reshape(1, 1, 1, 1, 2),
        "Logits/Conv3d_0c_1x1/conv_3d/b": np.array([0.5, 0.0]),
    }
    np.testing.assert_allclose(i3d._head(weights, jnp.asarray(x)), [[3.5, -1.5]])
    np.testing.assert_allclose(i3d._head(weights, jnp.asarray(x[:, 1:2])), [[6.5, -3.0]])


def test_videos_without_three_channels_are_refused():
    with pytest.raises(AssertionError):
        i3d_logits({}, jnp.zeros((1, 9, 32, 32, 1)))
