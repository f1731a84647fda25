"""What is left out before sampling, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.ops.truncation import truncate

PROBS = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.4, 0.1]])


def left(top_k: int | None = None, top_p: float | None = None) -> np.ndarray:
    return np.exp(truncate(jnp.log(PROBS) + 3.0, top_k, top_p))


def test_by_hand() -> None:
    np.testing.assert_allclose(left(), PROBS, rtol=1e-5)
    np.testing.assert_allclose(left(top_k=2)[0], [0, 4 / 7, 0, 3 / 7], rtol=1e-5)
    # Equal to the k-th: both stay.
    np.testing.assert_allclose(left(top_k=2)[1], [25 / 90, 25 / 90, 40 / 90, 0], rtol=1e-5)
    np.testing.assert_allclose(left(top_k=1)[0], [0, 1, 0, 0])
    # 0.4 + 0.3 is below 0.75, so the next belongs to it.
    np.testing.assert_allclose(left(top_p=0.75)[0], [0, 4 / 9, 2 / 9, 3 / 9], rtol=1e-5)
    np.testing.assert_allclose(left(top_p=0.65)[0], [0, 4 / 7, 0, 3 / 7], rtol=1e-5)
    np.testing.assert_allclose(left(top_p=1e-6)[0], [0, 1, 0, 0])
    # The share is one of what the k likeliest make up: 4/9 + 3/9 is below 0.8, 0.4 + 0.3 + 0.2 not.
    np.testing.assert_allclose(left(3, 0.8)[0], [0, 4 / 9, 2 / 9, 3 / 9], rtol=1e-5)
    np.testing.assert_allclose(left(3, 0.7)[0], [0, 4 / 7, 0, 3 / 7], rtol=1e-5)
    np.testing.assert_allclose(left(100, 1.0), PROBS, rtol=1e-5)


def test_what_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k=0 leaves nothing"):
        left(top_k=0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"top_p={share}"):
            left(top_p=share)
