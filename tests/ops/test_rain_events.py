"""Which events and patches are extreme, by hand."""

import jax.numpy as jnp
import numpy as np

from worldmodels_jax.ops.rain_events import sequence_label, token_labels


def test_sequences() -> None:
    rates = np.zeros((2, 2, 4, 6), np.float32)
    rates[0, :, 2:, 4:] = 2.0  # 6 mm in 3 hours, below and to the right
    rates[1, 0] = 4.0  # a mean of 2 mm/h everywhere
    box = (4, 6, 2, 4)
    assert sequence_label(rates, 5.0, box).tolist() == [1, 1]
    # Of all pixels it is 2 / 6 mm/h.
    assert sequence_label(rates, 5.0).tolist() == [0, 1]
    assert sequence_label(rates, 6.0, box).tolist() == [0, 0]


def test_patches_are_in_raster_order() -> None:
    rates = np.zeros((1, 4, 6), np.float32)
    rates[0, 0, 4] = 8.0  # a mean of 2 mm/h over the patch of 2x2
    rates[0, 3, 0] = 6.0  # of 1.5
    assert token_labels(jnp.asarray(rates), 5.0, (2, 3)).tolist() == [[0, 0, 1, 0, 0, 0]]
    assert token_labels(jnp.asarray(rates), 4.0, (2, 3)).tolist() == [[0, 0, 1, 1, 0, 0]]
