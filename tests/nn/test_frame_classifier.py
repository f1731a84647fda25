"""The classifier of sequences: what it reads, and where it has biases."""

import jax
import jax.numpy as jnp
import numpy as np
from slow_blocks import random_variables

from worldmodels_jax.nn.frame_classifier import FrameClassifier

MODEL = FrameClassifier(width=6, layers=2, heads=2, hidden=7)
STATES = jax.random.normal(jax.random.key(0), (3, 4, 10))


def test_every_frame_and_the_order_of_frames_count() -> None:
    variables = random_variables(MODEL, STATES)
    run = jax.jit(lambda x: MODEL.apply(variables, x))
    logits = run(STATES)
    assert logits.shape == (3, 2)
    assert logits.dtype == jnp.float32
    for t in range(4):
        assert np.abs(run(STATES.at[:, t, 0].add(3.0)) - logits).max() > 1e-4
    assert np.abs(run(STATES[:, ::-1]) - logits).max() > 1e-4
    # Examples are apart.
    np.testing.assert_allclose(run(STATES.at[1].add(1.0))[::2], logits[::2], atol=1e-5)


def test_queries_keys_and_values_have_no_bias() -> None:
    params = jax.eval_shape(MODEL.init, jax.random.key(0), STATES)["params"]
    for layer in range(2):
        attention = params["transformer"][f"attention_{layer}"]
        assert {name for name, part in attention.items() if "bias" in part} == {"out"}
    assert params["positions"].shape == (5, 6)
    assert params["in"]["kernel"].shape == (10, 6)
