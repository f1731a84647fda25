"""NowcastingGPT: sizes, what depends on what, samples, and what each part's loss trains."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nowcasting_toys import (
    CONFIG,
    KEY,
    LOSS,
    B,
    C,
    N,
    T,
    V,
    init,
    lively,
    networks,
    rain,
    system,
    with_head,
)

from worldmodels_jax.models.nowcasting_config import (
    NowcastingConfig,
    NowcastingLossConfig,
    RainVQGANConfig,
)
from worldmodels_jax.models.nowcasting_gpt import make_nowcasting_gpt
from worldmodels_jax.types import DataSpec

HEADS = ("frame_vit", "frame_vit_forecast", "token_table", "fixed_tokens")
STEP = jnp.int32(0)


@pytest.fixture(scope="module")
def variables() -> Any:
    return lively(init(system()))


def test_published_sizes() -> None:
    """NowcastingGPT has 402,734,977 parameters with LPIPS, the classifier adds 117,639,170."""
    data = DataSpec("knmi", {"rain": (9, 128, 128)}, 30_632)
    made = make_nowcasting_gpt(NowcastingConfig(), NowcastingLossConfig(evl=True), data)
    params = jax.eval_shape(made.init, KEY)["params"]
    sizes = {
        name: sum(math.prod(x.shape) for x in jax.tree.leaves(part))
        for name, part in params.items()
    }
    assert sizes == {"tokenizer": 81_969_793, "transformer": 306_049_024, "head": 117_639_170}
    lpips = 14_714_688 + 1_472
    assert sizes["tokenizer"] + sizes["transformer"] + lpips == 402_734_977
    tokens = jax.eval_shape(
        made.tokenise, jax.eval_shape(made.init, KEY), jnp.zeros((2, 9, 128, 128))
    )
    assert tokens.shape == (2, 9, 64)


def test_a_vqgan_of_levels_of_different_widths() -> None:
    tokenizer = RainVQGANConfig(
        num_codes=V, code_size=3, channels=(2, 4, 6), blocks=1, attention_sizes=(2,), latent=5
    )
    made = system(dataclasses.replace(CONFIG, tokenizer=tokenizer))
    variables = lively(init(made))
    kernels = variables["params"]["tokenizer"]
    assert kernels["encoder_levels_1"]["block_0"]["conv_0"]["kernel"].shape == (3, 3, 2, 4)
    assert kernels["decoder_levels_0"]["block_0"]["conv_0"]["kernel"].shape == (3, 3, 4, 2)
    assert "attention_0" not in kernels["encoder_levels_1"]
    run = jax.jit(lambda v, x: (made.tokenise(v, x), made.reconstruct(v, x)))
    tokens, decoded = run(variables, rain())
    assert tokens.shape == (B, T, N)
    assert decoded.shape == rain().shape
    assert (decoded >= 0).all()


def test_the_gradient_passes_straight_through_the_codes(variables: Any) -> None:
    """To the encoder it is what it would be if codes were what was encoded; to codes, none."""
    tokenizer = networks().tokenizer
    params = variables["params"]["tokenizer"]
    state = {"vq": variables["vq"]}
    frames = jnp.asarray(rain())[..., None]

    def error(params: Any, inputs: Any) -> jax.Array:
        def run(tokenizer: Any) -> jax.Array:
            codes = tokenizer.encode(frames)
            vectors = codes.vectors if inputs is None else codes.inputs + inputs
            return ((tokenizer.decode(vectors) - frames) ** 2).mean()

        return tokenizer.apply({"params": params, **state}, method=run)

    codes = tokenizer.apply({"params": params, **state}, frames, method="encode")
    through = jax.jit(jax.grad(error))(params, None)
    identity = jax.jit(jax.grad(error))(params, codes.vectors - codes.inputs)
    for part in ("encoder_in", "to_code", "decoder_out"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            through[part],
            identity[part],
        )
        assert np.abs(through[part]["kernel"]).max() > 0
    assert not np.any(through["quantiser"]["codes"])


def test_codes_and_vectors_are_drawn_to_one_another(variables: Any) -> None:
    """The two terms of the quantiser's loss have a gradient on one side each."""
    frames = jnp.asarray(rain())[..., None]
    state = {"vq": variables["vq"]}
    grads = {}
    for beta in (0.0, 1.0):
        tokenizer = networks(loss=dataclasses.replace(LOSS, commitment=beta)).tokenizer
        grads[beta] = jax.jit(
            jax.grad(
                lambda params, tokenizer=tokenizer: tokenizer.apply(
                    {"params": params, **state}, frames, method="encode"
                ).loss.mean()
            )
        )(variables["params"]["tokenizer"])
    assert not np.any(grads[0.0]["to_code"]["kernel"])
    assert np.any(grads[0.0]["quantiser"]["codes"])
    assert np.any(grads[1.0]["to_code"]["kernel"])
    np.testing.assert_allclose(
        grads[1.0]["quantiser"]["codes"], grads[0.0]["quantiser"]["codes"], rtol=1e-5
    )


def test_the_tokenizers_loss_is_its_terms(variables: Any) -> None:
    batch = {"rain": jnp.asarray(rain())}
    found = {}
    for rec, perceptual in (("l1", "none"), ("l2", "none"), ("l1", "laplacian_pyramid")):
        loss = NowcastingLossConfig(reconstruction=rec, perceptual=perceptual)  # type: ignore[arg-type]
        run = jax.jit(system(loss=loss).losses["tokenizer"])
        value, (_, metrics) = run(variables, batch, KEY, STEP)
        found[rec, perceptual] = float(value)
    decoded = system().reconstruct(variables, batch["rain"])
    m = metrics
    # The decoder's rates are cut off at 0, its errors are not.
    assert m["reconstruction_l1"] >= np.abs(decoded - batch["rain"]).mean() / 4 - 1e-6
    base = float(m["quantiser_loss"])
    assert found["l1", "none"] == pytest.approx(base + float(m["reconstruction_l1"]), rel=1e-5)
    assert found["l2", "none"] == pytest.approx(base + float(m["reconstruction_l2"]), rel=1e-5)
    assert found["l1", "laplacian_pyramid"] == pytest.approx(
        found["l1", "none"] + float(m["perceptual_loss"]), rel=1e-5
    )


def test_the_transformers_loss_is_that_of_the_next_token() -> None:
    config = dataclasses.replace(
        CONFIG, transformer=dataclasses.replace(CONFIG.transformer, dropout=0.0)
    )
    made, m = system(config), networks(config)
    variables = lively(init(made))
    loss, (state, metrics) = jax.jit(made.losses["transformer"])(
        variables, {"rain": jnp.asarray(rain())}, KEY, STEP
    )
    tokens = np.asarray(made.tokenise(variables, rain())).reshape(B, -1)
    logits = m.transformer.apply({"params": variables["params"]["transformer"]}, tokens)
    log_p = np.asarray(jax.nn.log_softmax(logits))[:, :-1]
    picked = np.take_along_axis(log_p, tokens[:, 1:, None], -1)
    assert float(loss) == pytest.approx(-picked.mean(), rel=1e-5)
    assert metrics["token_accuracy"] == pytest.approx((log_p.argmax(-1) == tokens[:, 1:]).mean())
    assert state == {}


@pytest.mark.parametrize("head", HEADS)
def test_all_heads_learn_and_bend_the_transformer(head: str) -> None:
    config, loss = with_head(head)
    made = system(config, loss)
    assert list(made.losses) == ["tokenizer", "head", "transformer"]
    untrained = init(made)
    variables = lively(untrained)
    # A table begins with no code ahead of another.
    variables["params"]["head"] = untrained["params"]["head"]
    batch = {"rain": jnp.asarray(rain())}

    def part_loss(name: str, part: Any) -> Any:
        params = {**variables["params"], name: part}
        return made.losses[name]({**variables, "params": params}, batch, KEY, STEP)

    optimiser = optax.adam(3e-3)

    @jax.jit
    def train(part: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            part, state = carry
            value, grads = jax.value_and_grad(lambda p: part_loss("head", p)[0])(part)
            updates, state = optimiser.update(grads, state)
            return (optax.apply_updates(part, updates), state), value

        carry = part, optimiser.init(part)
        (part, _), values = jax.lax.scan(step, carry, None, 60)
        return part, values

    trained, values = train(variables["params"]["head"])
    assert np.isfinite(values).all()
    assert values[-5:].mean() < values[:5].mean() - 0.02

    variables = {**variables, "params": {**variables["params"], "head": trained}}

    def both(part: Any) -> Any:
        loss, (_, metrics) = part_loss("transformer", part)
        return (loss, metrics["token_loss"]), metrics

    slopes, metrics = jax.jit(jax.jacrev(both, has_aux=True))(variables["params"]["transformer"])
    slope, without = slopes
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    assert metrics["extreme_value_loss"] > 0
    assert metrics["loss"] == pytest.approx(
        float(metrics["token_loss"] + 0.5 * metrics["extreme_value_loss"]), rel=1e-5
    )
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), slope, without)
    # A classifier does not see logits.
    by_tokens = not head.startswith("frame_vit")
    assert (max(jax.tree.leaves(moved["token_head"])) > 0) == by_tokens
    assert max(jax.tree.leaves(moved["transformer"])) > 0


def test_what_each_classifier_reads() -> None:
    future = rain().copy()
    future[:, C:] = rain(7)[:, C:]
    for head, changes in (("frame_vit", True), ("frame_vit_forecast", False)):
        config, loss = with_head(head)
        made = system(config, loss)
        variables = lively(init(made))
        assert made.extreme_probability is not None
        probability = jax.jit(made.extreme_probability)
        before, after = probability(variables, rain()), probability(variables, future)
        assert before.shape == (B,)
        assert ((before > 0) & (before < 1)).all()
        assert (not np.allclose(before, after, atol=1e-6)) == changes
    reads_all: Any = system(*with_head("frame_vit")).extreme_probability
    with pytest.raises(ValueError, match=f"frame_vit reads {T} frames"):
        reads_all(variables, rain()[:, :C])
    assert system(*with_head("token_table")).extreme_probability is None
    assert system().extreme_probability is None


def test_labels_of_heads(variables: Any) -> None:
    """The frequent error of labels: of the wrong frames, of the wrong place."""
    rates = np.zeros((2, T, 8, 8), np.float32)
    rates[0, C:, :4, :4] = 3.0  # 9 mm in 3 hours in the region, after what is seen
    rates[1, :C] = 50.0  # extreme, but over
    batch = {"rain": jnp.asarray(rates)}
    for head, expected in (
        ("frame_vit", 1 / 2),
        ("token_table", (3 + 2 * 4) / (2 * T * 4)),
    ):
        made = system(*with_head(head))
        _, (_, metrics) = jax.jit(made.losses["head"])(init(made), batch, KEY, STEP)
        assert metrics["extremes"] == pytest.approx(expected)


def test_a_loss_split_over_devices_is_that_of_the_whole() -> None:
    """Losses, their gradients and the codebook, which all devices must agree on."""
    config, loss = with_head("token_table", reduction="class_mean")
    config = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, dropout=0.0)
    )
    made, split = system(config, loss), system(config, loss, axis_name="device")
    variables = lively(init(made))
    rates = rain()
    rates[1:] = 0.0  # extremes on one device alone
    halves = {"rain": jnp.asarray(rates).reshape(2, B // 2, *rates.shape[1:])}
    for name in made.losses:

        def run(batch: Any, losses: Any = split.losses, name: str = name) -> Any:
            value, (state, _) = losses[name](variables, batch, KEY, STEP)
            return jax.lax.pmean(value, "device"), state

        value, state = jax.jit(jax.vmap(run, axis_name="device"))(halves)
        whole, _ = jax.jit(made.losses[name])(variables, {"rain": jnp.asarray(rates)}, KEY, STEP)
        np.testing.assert_allclose(value, whole, rtol=1e-5)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), state)


def test_what_is_beyond_the_range_is_cut_off(variables: Any) -> None:
    rates = rain()
    heavy = np.where(rates > 4, 1e4, rates)
    cut = np.minimum(heavy, 128.0)
    tokenise = jax.jit(system().tokenise)
    np.testing.assert_array_equal(tokenise(variables, heavy), tokenise(variables, cut))


def test_half_precision_keeps_losses_in_float32() -> None:
    config, loss = with_head("frame_vit")
    made = system(config, loss, dtype=jnp.bfloat16)
    variables = init(made)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    for part in made.losses.values():
        value, (_, metrics) = jax.jit(part)(variables, {"rain": jnp.asarray(rain())}, KEY, STEP)
        assert value.dtype == jnp.float32
        assert all(np.isfinite(x) for x in metrics.values())
