"""α-TCVAE and its siblings: every objective, what it learns from, and what is refused."""

import functools
import math
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from worldmodels_jax.models import vae as vae_lib
from worldmodels_jax.models.offline import LossConfig
from worldmodels_jax.models.vae import SHIFTS, VaeConfig, VaeLossConfig, make_vae
from worldmodels_jax.types import DataSpec

K, B, N = 3, 8, 100
SHAPE = (4, 4, 1)
SPEC = DataSpec("toy", {"image": SHAPE}, N)
CONFIG = VaeConfig(num_latents=K, widths=(16,))
FACTOR = VaeConfig(num_latents=K, widths=(16,), discriminator_width=16, discriminator_depth=2)
KEY = jax.random.key(0)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (B, *SHAPE), np.uint8),
    "factors": np.zeros((B, 2), np.int32),
}
OBJECTIVES = {
    "vae": VaeLossConfig(kind="vae"),
    "beta_vae": VaeLossConfig(kind="beta_vae", beta=3.0),
    "factor_vae": VaeLossConfig(kind="factor_vae", beta=2.0, gamma=5.0),
    "beta_tcvae": VaeLossConfig(kind="beta_tcvae", beta=4.0),
    "hfs": VaeLossConfig(kind="hfs", beta=2.0, gamma=5.0),
    "annealed_vae": VaeLossConfig(kind="annealed_vae", gamma=5.0, capacity=4.0, capacity_steps=8),
    "poe": VaeLossConfig(alpha=0.5, beta=2.0),
    "poe_mean": VaeLossConfig(alpha=0.5, beta=2.0, ceb_reduction="mean"),
    "mi": VaeLossConfig(alpha=0.5, beta=2.0, ceb="mi", weighting="weighted"),
    "mi_tc": VaeLossConfig(alpha=0.5, beta=2.0, ceb="mi_tc"),
}


@functools.cache
def made(name: str, axis_name: str | None = None) -> Any:
    return make_vae(FACTOR if name == "factor_vae" else CONFIG, OBJECTIVES[name], SPEC, axis_name)


@functools.cache
def variables_of(name: str = "vae") -> Any:
    # Larger weights of the encoder's end: posteriors that say something and differ.
    variables = jax.jit(made(name).init)(KEY)
    last = variables["params"]["model"]["encoder"]["DenseStack_0"]["Dense_1"]
    last["kernel"] = 2.0 * last["kernel"]
    last["bias"] = jnp.arange(2.0 * K) / K - 1.0
    return variables


@functools.cache
def outcome(name: str, step: int = 0) -> tuple[float, dict[str, float]]:
    value, (state, metrics) = jax.jit(made(name).losses["model"])(
        variables_of(name), BATCH, KEY, jnp.int32(step)
    )
    assert state == {}
    assert float(metrics["loss"]) == float(value)
    return float(value), {k: float(x) for k, x in metrics.items()}


def regulariser(name: str, step: int = 0) -> float:
    value, metrics = outcome(name, step)
    return value - metrics["reconstruction"]


def posterior(name: str = "vae") -> tuple[np.ndarray, np.ndarray]:
    mean, log_variance = made(name).encode(variables_of(name), BATCH["image"])
    return np.asarray(mean, np.float64), np.asarray(log_variance, np.float64)


def kl(mean: np.ndarray, log_variance: np.ndarray) -> float:
    return 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1).mean()


# Shapes


def test_shapes() -> None:
    v, variables = made("vae"), variables_of()
    mean, log_variance = v.encode(variables, BATCH["image"])
    assert mean.shape == log_variance.shape == (B, K)
    assert v.decode(variables, mean).shape == (B, *SHAPE)
    samples = jax.eval_shape(v.samples, variables, BATCH, KEY)
    assert samples["reconstruction"].shape == (2, B, *SHAPE)
    assert samples["prior"].shape == (2, 8, *SHAPE)
    assert samples["traversal"].shape == (K, len(SHIFTS), *SHAPE)
    assert {x.dtype for x in samples.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_convolutions_have_the_same_interface(name: str) -> None:
    config = VaeConfig(network="conv", num_latents=K, channels=(2, 2), hidden=4)
    v = make_vae(config, OBJECTIVES[name], SPEC, dtype=jnp.bfloat16)
    variables = jax.eval_shape(v.init, KEY)
    value, _ = jax.eval_shape(v.losses["model"], variables, BATCH, KEY, jnp.int32(0))
    assert (value.shape, value.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("name", ["poe", "mi_tc"])
@pytest.mark.parametrize("log_variance", [-20.0, 20.0])
def test_extreme_posteriors_have_finite_losses(name: str, log_variance: float) -> None:
    variables = jax.tree.map(lambda x: x, variables_of(name))
    bias = jnp.array([0.0] * K + [log_variance, -log_variance, log_variance])
    variables["params"]["model"]["encoder"]["DenseStack_0"]["Dense_1"]["bias"] = bias
    value, _ = jax.jit(made(name).losses["model"])(variables, BATCH, KEY, jnp.int32(0))
    assert np.isfinite(value)


# Objectives


def test_reconstruction_is_a_bernoulli_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    v, variables = made("vae"), variables_of()
    _, (_, metrics) = v.losses["model"](variables, BATCH, KEY, jnp.int32(0))
    logits = v.decode(variables, v.encode(variables, BATCH["image"])[0])
    expected = -distrax.Bernoulli(logits).log_prob(BATCH["image"] / 255.0).sum((1, 2, 3)).mean()
    assert float(metrics["reconstruction"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_gaussian_likelihood_by_hand() -> None:
    logits = jnp.array([[[[0.0], [np.log(3.0)]]]])  # sigmoids 1/2 and 3/4
    target = jnp.array([[[[1.0], [0.25]]]])
    nll = vae_lib.pixel_nll("gaussian", logits, target)
    np.testing.assert_allclose(nll, [0.5 * (0.25 + 0.25)], rtol=1e-6)


def test_the_sample_has_the_posteriors_deviation() -> None:
    image = jnp.asarray(np.repeat(BATCH["image"][:1], 4000, axis=0))
    v, variables = made("vae"), variables_of()
    parts = v.encode.args[0]
    mean, log_variance = (np.asarray(x[0]) for x in v.encode(variables, image[:1]))
    sample = np.asarray(vae_lib._posterior(parts, variables, image, KEY).sample)
    np.testing.assert_allclose(sample.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(sample.std(0), np.exp(0.5 * log_variance), rtol=0.05)


@pytest.mark.parametrize(("name", "beta"), [("vae", 1.0), ("beta_vae", 3.0)])
def test_beta_weighs_the_kl(name: str, beta: float) -> None:
    assert regulariser(name) == pytest.approx(beta * kl(*posterior(name)), rel=1e-4)


@pytest.mark.parametrize(("step", "capacity"), [(0, 0.0), (2, 1.0), (100, 4.0)])
def test_the_annealed_vae_has_a_capacity(step: int, capacity: float) -> None:
    expected = 5.0 * abs(kl(*posterior()) - capacity)
    assert regulariser("annealed_vae", step) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("name", "share"), [("poe", 1), ("poe_mean", 1 / K)])
def test_alpha_tcvae_of_the_text_against_numpy(name: str, share: float) -> None:
    mean, log_variance = posterior(name)
    precision = np.exp(-log_variance)
    v_p = 1 / precision.sum(1, keepdims=True)
    mu_p = v_p * (precision * mean).sum(1, keepdims=True)
    c = 0.5 * (np.log(v_p) - log_variance + (1 / precision + (mean - mu_p) ** 2) / v_p - 1)
    # K = 3, α = 1/2: w_C = w_V = 0.5 / (5/6).
    expected = 2.0 * 0.6 * (share * c.sum(1).mean() + kl(mean, log_variance))
    assert regulariser(name) == pytest.approx(expected, rel=1e-4)
    assert outcome(name)[1]["product_kl"] == pytest.approx(c.sum(1).mean(), rel=1e-4)


def test_alpha_zero_is_beta_vae_bit_by_bit() -> None:
    v = make_vae(CONFIG, VaeLossConfig(alpha=0.0, beta=3.0), SPEC)
    value, _ = jax.jit(v.losses["model"])(variables_of("beta_vae"), BATCH, KEY, jnp.int32(0))
    assert float(value) == outcome("beta_vae")[0]


@pytest.mark.parametrize(
    ("name", "weights"),
    [("beta_tcvae", (1.0, 4.0, 1.0)), ("mi", (1.2, 0.0, 1.2)), ("mi_tc", (0.6, 2.0, 0.6))],
)
def test_the_parts_of_the_kl_are_weighed(name: str, weights: tuple[float, ...]) -> None:
    _, metrics = outcome(name)
    parts = [metrics[k] for k in ("information", "total_correlation", "dimension_wise")]
    assert regulariser(name) == pytest.approx(np.dot(weights, parts), rel=1e-3)
    assert min(abs(part) for part in parts) > 0.01


def test_the_estimates_know_how_many_images_there_are() -> None:
    bigger = make_vae(CONFIG, OBJECTIVES["mi"], DataSpec("toy", {"image": SHAPE}, 10 * N))
    _, (_, metrics) = jax.jit(bigger.losses["model"])(variables_of("mi"), BATCH, KEY, jnp.int32(0))
    gain = float(metrics["information"]) - outcome("mi")[1]["information"]
    assert gain == pytest.approx(math.log(10), rel=1e-4)


def test_hfs_measures_the_means() -> None:
    mean, log_variance = posterior("hfs")
    total = 0.0
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        grid = np.stack(np.meshgrid(mean[:, i], mean[:, j], indexing="ij"), -1).reshape(-1, 1, 2)
        total += ((grid - mean[None][..., [i, j]]) ** 2).sum(-1).min(1).max()
    expected = 2.0 * kl(mean, log_variance) + 5.0 * total
    assert regulariser("hfs") == pytest.approx(expected, rel=1e-4)


def test_log_variances_are_bounded_where_asked() -> None:
    loss = VaeLossConfig(logvar_clip=(-0.1, 0.2))
    _, log_variance = make_vae(CONFIG, loss, SPEC).encode(variables_of(), BATCH["image"])
    free = np.clip(posterior()[1], -0.1, 0.2)
    np.testing.assert_allclose(log_variance, free, atol=1e-6)
    assert np.isclose(free, -0.1).any()


# FactorVAE


def test_an_untrained_discriminator_costs_ln_2() -> None:
    v, variables = made("factor_vae"), variables_of("factor_vae")
    assert list(v.losses) == ["model", "discriminator"]
    assert set(variables["params"]) == {"model", "discriminator"}
    value, _ = v.losses["discriminator"](variables, BATCH, KEY, jnp.int32(0))
    assert float(value) == pytest.approx(math.log(2), rel=1e-5)
    assert outcome("factor_vae")[1]["total_correlation"] == 0.0
    first = [x[: B // 2] for x in posterior("factor_vae")]
    assert regulariser("factor_vae") == pytest.approx(2.0 * kl(*first), rel=1e-4)


def trained_discriminator() -> Any:
    """Of latents that are all the same number, so far from independent."""
    v, variables = made("factor_vae"), jax.tree.map(lambda x: x, variables_of("factor_vae"))
    last = variables["params"]["model"]["encoder"]["DenseStack_0"]["Dense_1"]
    last["kernel"] = jnp.repeat(last["kernel"][:, :1], 2 * K, 1).at[:, K:].set(0.0)
    last["bias"] = jnp.array([0.0] * K + [-8.0] * K)
    optimiser = optax.adam(1e-2)
    own = variables["params"]["discriminator"]
    state = optimiser.init(own)

    @jax.jit
    def update(own: Any, state: Any, key: jax.Array) -> Any:
        def loss(own: Any) -> Any:
            whole = {"params": {**variables["params"], "discriminator": own}}
            return v.losses["discriminator"](whole, BATCH, key, jnp.int32(0))[0]

        value, gradient = jax.value_and_grad(loss)(own)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(own, updates), state, value

    for step in range(150):
        own, state, value = update(own, state, jax.random.key(step))
    return {"params": {**variables["params"], "discriminator": own}}, float(value)


def test_a_trained_discriminator_finds_dependent_latents() -> None:
    v = made("factor_vae")
    variables, value = trained_discriminator()
    assert value < 0.5 * math.log(2)
    _, (_, metrics) = v.losses["model"](variables, BATCH, KEY, jnp.int32(0))
    assert float(metrics["total_correlation"]) > 1.0

    def both(image: np.ndarray) -> list[float]:
        return [
            float(loss(variables, {"image": image}, KEY, jnp.int32(0))[0])
            for loss in v.losses.values()
        ]

    # The model learns from the first half, the discriminator from both.
    before, other = both(BATCH["image"]), BATCH["image"].copy()
    other[B // 2 :] = 255 - other[B // 2 :]
    after = both(other)
    assert after[0] == before[0]
    assert after[1] != before[1]

    gradient = jax.grad(lambda v_: v.losses["discriminator"](v_, BATCH, KEY, jnp.int32(0))[0])(
        variables
    )
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradient["params"]["model"]))


def test_halves_must_be_equal() -> None:
    batch = {"image": BATCH["image"][:5]}
    with pytest.raises(ValueError, match=r"has 5 images: set training\.batch_size to an even"):
        made("factor_vae").losses["model"](variables_of("factor_vae"), batch, KEY, jnp.int32(0))


# Learning


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_along_the_gradient_lowers_the_loss(name: str) -> None:
    variables, step = variables_of(name), jnp.int32(0)

    def loss(params: Any) -> jax.Array:
        whole = {"params": {**variables["params"], "model": params}}
        return made(name).losses["model"](whole, BATCH, KEY, step)[0]

    own = variables["params"]["model"]
    value, gradient = jax.jit(jax.value_and_grad(loss))(own)
    again = jax.jit(loss)
    after = again(jax.tree.map(lambda x, g: x - 1e-4 * g, own, gradient))
    assert float(value) == pytest.approx(outcome(name)[0], rel=1e-5)  # the same key, compiled anew
    assert float(value) == pytest.approx(float(again(own)), rel=1e-5)
    assert float(after) < float(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["annealed_vae", "hfs", "beta_tcvae", "mi", "poe"])
def test_a_split_batch_has_the_gradient_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is estimated from a batch is so from all devices' examples."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    params, step = variables_of(name)["params"], jnp.int32(3)

    def differentiate(v: Any, image: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return v.losses["model"]({"params": params}, {"image": image}, KEY, step)[0]

        return jax.value_and_grad(loss)(params)

    whole = jax.jit(lambda x: differentiate(made(name), x))(BATCH["image"])
    each = jax.vmap(lambda x: differentiate(made(name, "device"), x), axis_name="device")
    pieces = jax.jit(each)(BATCH["image"].reshape(4, 2, *SHAPE))
    split = jax.tree.map(lambda x: x.mean(0), pieces)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), split, whole)


# Pictures


def test_a_traversal_moves_one_latent_by_posterior_deviations() -> None:
    v, variables = made("vae"), variables_of()
    pictures = jax.jit(v.samples)(variables, BATCH, KEY)
    mean, log_variance = v.encode(variables, BATCH["image"][:1])
    for k, shift in [(0, -10), (2, 2)]:
        z = mean.at[0, k].add(shift * jnp.exp(0.5 * log_variance[0, k]))
        expected = jax.nn.sigmoid(v.decode(variables, z))[0]
        np.testing.assert_allclose(
            pictures["traversal"][k, SHIFTS.index(shift)], expected, rtol=1e-4, atol=1e-5
        )
    real, decoded = pictures["reconstruction"]
    np.testing.assert_allclose(real, BATCH["image"] / 255.0, rtol=1e-6)
    same = pictures["traversal"][:, SHIFTS.index(0)]
    np.testing.assert_allclose(same, jnp.broadcast_to(decoded[0], same.shape), rtol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("config", "loss", "message"),
    [
        ({}, {"kind": "vae", "beta": 2.0}, r"loss\.beta is 2\.0, but loss\.kind=vae"),
        ({}, {"kind": "beta_vae", "alpha": 0.5}, r"loss\.alpha is 0\.5"),
        ({}, {"gamma": 1.0}, r"loss\.gamma is 1\.0"),
        ({}, {"kind": "vae", "weighting": "weighted"}, r"loss\.weighting is weighted"),
        ({}, {"weighting": "weighted"}, r"loss\.ceb=poe estimates nothing"),
        ({}, {"kind": "vae", "capacity": 1.0}, r"choose annealed_vae"),
        ({}, {"kind": "vae", "ceb_reduction": "mean"}, r"loss\.ceb_reduction is mean"),
        ({}, {"ceb": "mi", "ceb_reduction": "mean"}, r"loss\.ceb=mi has no KL to the product"),
        ({}, {"alpha": 1.5}, "alpha is 1.5"),
        ({}, {"kind": "hfs", "hfs_pairs": 0}, r"loss\.hfs_pairs is 0"),
        ({}, {"kind": "beta_vae", "beta": -1.0}, r"loss\.beta is -1\.0"),
        ({}, {"logvar_clip": (1.0, 1.0)}, r"loss\.logvar_clip is \(1\.0, 1\.0\)"),
        ({"num_latents": 1}, {}, "there are 1"),
        ({"num_latents": 1}, {"kind": "hfs"}, r"model\.num_latents is 1"),
        ({"num_latents": 0}, {"kind": "vae"}, r"model\.num_latents is 0"),
        ({"channels": (2,)}, {}, r"model\.channels is \(2,\), which only model\.network=conv"),
        ({"network": "conv", "widths": (2,)}, {}, r"model\.widths is \(2,\)"),
        ({"network": "conv"}, {}, r"images of 4x4 cannot be halved 4 times"),
        ({"discriminator_width": 4}, {}, r"model\.discriminator_width is 4"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(
    config: dict[str, Any], loss: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_vae(VaeConfig(**config), VaeLossConfig(**loss), SPEC)


def test_other_data_and_other_losses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs an array image of \(H, W, C\), but rain has"):
        make_vae(VaeConfig(), VaeLossConfig(), DataSpec("rain", {"rain": (9, 8, 8)}, 10))
    with pytest.raises(ValueError, match="loss is a LossConfig"):
        VaeConfig().make(LossConfig(), SPEC, None, jnp.float32)
    assert VaeConfig().make(VaeLossConfig(), SPEC, None, jnp.float32).losses
