"""Parameters that hide nothing, for the tests of several models."""

import jax
import jax.numpy as jnp
import numpy as np


def random_parameters(shapes, std, rng=None):
    """Parameters at which nothing is zero, saturated or lost in a normalisation.

    Args:
      shapes: a tree of what has a shape, named as flax names parameters.
      std: of all but scales and biases.
      rng: to draw from; a fresh one by default.
    """
    rng = rng or np.random.default_rng(0)

    def draw(path, x):
        spread = {"scale": (1.0, 0.2), "bias": (0.0, 0.2)}.get(path[-1].key, (0.0, std))
        return jnp.asarray(rng.normal(*spread, x.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
