"""Tables of scores of codes and images that are known in advance."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.data.factors import FactorSet
from worldmodels_jax.evaluation import representation as lib
from worldmodels_jax.evaluation.disentanglement import fit_classifiers
from worldmodels_jax.evaluation.image_features import ImageFeatures
from worldmodels_jax.evaluation.representation import Codes, Sizes

KEY = jax.random.key(0)
SIZES = (3, 4)
# Two factors as the brightness of two of four pixels.
SOURCE = FactorSet(
    "toy",
    ("a", "b"),
    SIZES,
    lambda f: jnp.zeros((2, 2, 1), jnp.uint8).at[0, :, 0].set((50 * f).astype(jnp.uint8)),
)


def examples(count: int, seed: int) -> dict[str, np.ndarray]:
    factors = np.asarray(SOURCE.sample_factors(jax.random.key(seed), count))
    return {"image": np.asarray(SOURCE.render(jnp.asarray(factors))), "factors": factors}


DATA = Dataset("toy", examples(400, 0), examples(240, 1), SOURCE)


def encode(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """The factors themselves, in the first two of three latents; posteriors are narrow."""
    pixels = np.asarray(image)[:, 0, :, 0] / 50.0 - 1.0
    mean = np.c_[pixels, np.zeros(len(pixels))].astype(np.float32)
    return mean, np.broadcast_to(np.float32([-6.0, -6.0, 0.0]), mean.shape)


def decode(z: Any) -> jax.Array:
    """The image of a code, as nearly as logits can tell it."""
    z = jnp.asarray(z)
    pixels = jnp.clip((z[:, :2] + 1.0) * 50.0 / 255.0, 1e-6, 1 - 1e-6)
    top = jnp.log(pixels) - jnp.log1p(-pixels)
    return jnp.stack([top, jnp.full_like(top, -14.0)], axis=1)[..., None]


# All of it


@pytest.fixture(scope="module")
def tables() -> lib.Tables:
    return lib.evaluate_representation(encode, decode, DATA, fast=True, sizes=Sizes(400, 240, 200))


def test_perfect_codes_have_perfect_scores(tables: lib.Tables) -> None:
    scores = tables["disentanglement"]
    d, c, i = three = [
        scores[f"dci_{name}"] for name in ("disentanglement", "completeness", "informativeness")
    ]
    # A forest's trees look at some latents only, and so give the empty one a little weight.
    assert min(d, c) > 0.9
    assert i == pytest.approx(1.0, abs=0.02)
    assert scores["dci_arithmetic"] == pytest.approx(np.mean(three))
    assert scores["dci_geometric"] == pytest.approx((d * c * i) ** (1 / 3))
    assert scores["mig"] > 0.95
    assert scores["snc"] == pytest.approx(1.0)
    assert scores["nk"] == pytest.approx(1 - (1 / 3 + 1 / 4) / 2, abs=0.1)
    assert scores["unfairness"] == 0.0
    assert scores["attribute_accuracy"] > 0.95


def test_usage_of_perfect_codes(tables: lib.Tables) -> None:
    usage = tables["usage"]
    assert usage["active_units"] == 2.0
    assert usage["balance"] == 0.0
    # All there is to say is which of the combinations it is.
    assert usage["information"] == pytest.approx(math.log(12), abs=0.1)
    assert usage["total_correlation"] == pytest.approx(0.0, abs=0.1)


def test_perfect_reconstructions_are_as_the_images(tables: lib.Tables) -> None:
    assert tables["reconstruction"]["mse"] < 1e-6
    vendi, fid = tables["vendi_random"], tables["fid_random"]
    assert list(vendi) == list(fid) == ["real", "recon", "noise", "traversal"]
    assert vendi["recon"] == pytest.approx(vendi["real"], rel=1e-3)
    assert fid["recon"] == pytest.approx(fid["real"], rel=0.01)
    assert fid["noise"] > 5 * fid["real"]


def test_the_same_seed_gives_the_same_tables_of_images(tables: lib.Tables) -> None:
    codes = lib.encode_arrays(encode, DATA.test)
    network = ImageFeatures("flat", lambda x: x.reshape(len(x), -1), np.full(4, 0.5))
    arguments = (decode, DATA.train["image"][:240], DATA.test["image"], codes, [network])
    first, second = (lib.score_images(*arguments, KEY) for _ in range(2))
    assert first == second
    other = lib.score_images(*arguments, jax.random.key(1))
    assert other["vendi_flat"]["real"] == first["vendi_flat"]["real"]
    assert other["vendi_flat"]["noise"] != first["vendi_flat"]["noise"]


def test_sets_without_factors_are_refused() -> None:
    arrays = {"image": DATA.test["image"]}
    with pytest.raises(ValueError, match="but mine has image: give"):
        lib.evaluate_representation(encode, decode, Dataset("mine", arrays, arrays))


# Unfairness


def test_unfairness_of_a_prediction_that_copies_the_other_factor() -> None:
    def confused(image: Any) -> tuple[np.ndarray, np.ndarray]:
        mean, log_variance = encode(image)
        return mean[:, ::-1][:, [1, 1, 0]], log_variance  # the second factor twice

    class Copy:
        """Says whether the second factor is above one."""

        def predict(self, codes: np.ndarray) -> np.ndarray:
            return (codes[:, 0] > 0.5).astype(int)

    factors = DATA.test["factors"]
    # Of four values two are above: given the value, the prediction is certain; else it is 1/2.
    bias = lib.intervened_unfairness([Copy(), Copy()], confused, SOURCE, factors)
    # Its other half is the second prediction given the first factor, which is independent.
    assert bias == pytest.approx(0.5 / 2, abs=1e-6)


def test_without_a_renderer_unfairness_is_what_is_observed() -> None:
    train, test = (lib.encode_arrays(encode, arrays) for arrays in (DATA.train, DATA.test))
    scores = lib.score_codes(train, test, encode, None, KEY, fast=True)
    classifiers = fit_classifiers(train.mean, train.factors, fast=True)
    expected = lib.unfairness(lib.predict_factors(classifiers, test.mean), test.factors)
    assert scores["unfairness"] == expected > 0.0


# Parts


def test_reconstruction_by_hand() -> None:
    images = np.full((3, 2, 2, 1), 255, np.uint8)
    images[0] = 0

    def none(z: Any) -> jax.Array:
        return jnp.zeros((len(z), 2, 2, 1))

    scores = lib.score_reconstruction(encode, none, images)
    assert scores["nll"] == pytest.approx(4 * math.log(2), rel=1e-5)
    assert scores["mse"] == pytest.approx(0.25)

    def bright(z: Any) -> jax.Array:
        return jnp.full((len(z), 2, 2, 1), math.log(3))

    scores = lib.score_reconstruction(encode, bright, images)
    expected = 4 * (math.log(4) + 2 * (math.log(4) - math.log(3))) / 3
    assert scores["nll"] == pytest.approx(expected, rel=1e-5)
    assert scores["mse"] == pytest.approx((0.75**2 + 2 * 0.25**2) / 3, rel=1e-5)


def test_latents_that_say_nothing() -> None:
    little = np.full((500, 2), 1e-3, np.float32)
    usage = lib.score_usage(Codes(little, 0 * little, np.zeros((500, 1), int)), KEY)
    assert usage["balance"] == pytest.approx(1.0)
    assert usage["active_units"] == 0.0
    for name in ("kl", "information", "total_correlation"):
        assert usage[name] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("scale", ["posterior", "aggregate", "prior"])
def test_traversals_move_one_latent(scale: lib.Scale) -> None:
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 3000, 3)).astype(np.float32)
    codes = Codes(mean, log_variance, np.zeros((3000, 1), int))
    moved = lib.traversal_codes(codes, KEY, scale) - mean
    assert ((moved != 0).sum(1) == 1).all()
    counts = (moved != 0).sum(0)
    np.testing.assert_allclose(counts / 3000, 1 / 3, atol=0.04)
    variance = np.exp(log_variance)
    if scale == "aggregate":
        variance = np.broadcast_to(mean.var(0) + variance.mean(0), variance.shape)
    if scale == "prior":
        variance = np.ones_like(variance)
    row, latent = np.nonzero(moved)
    shifts, counts = np.unique(
        np.round(moved[row, latent] / np.sqrt(variance[row, latent]), 2), return_counts=True
    )
    np.testing.assert_allclose(shifts, [-10, -8, -6, -4, -2, -1, 1, 2, 4, 6, 8, 10], atol=0.02)
    np.testing.assert_allclose(counts / 3000, 1 / 12, atol=0.03)
