"""The tokenizer of patches: which pixels a token sees, and a slow one."""

import jax
import jax.numpy as jnp
import numpy as np
from slow_blocks import numpy_params, random_variables, silu

from worldmodels_jax.nn.patch_tokenizer import PatchTokenizer

MODEL = PatchTokenizer(
    image_size=(12, 8), image_channels=2, patch=4, width=5, num_codes=7, code_size=3, commitment=1.0
)
FRAMES = jax.random.normal(jax.random.key(0), (2, 12, 8, 2))


def conv3(x: np.ndarray, layer: dict) -> np.ndarray:
    rows, columns = x.shape[:2]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((rows, columns, layer["kernel"].shape[-1]))
    for i in range(3):
        for j in range(3):
            out += padded[i : i + rows, j : j + columns] @ layer["kernel"][i, j]
    return out + layer["bias"]


def test_against_a_slow_one() -> None:
    variables = random_variables(MODEL, FRAMES)
    params = numpy_params(variables)
    apply = jax.jit(MODEL.apply, static_argnames="method")
    codes = apply(variables, FRAMES, method="encode")
    assert codes.tokens.shape == (2, 6)
    x = np.zeros((3, 2, 5))
    for i in range(3):
        for j in range(2):
            patch = np.asarray(FRAMES)[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            kernel = params["encoder_in"]["kernel"]
            x[i, j] = np.einsum("ijc,ijcf->f", patch, kernel) + params["encoder_in"]["bias"]
    x = x + conv3(silu(x), params["encoder_residual"])
    x = silu(x) @ params["to_code"]["kernel"][0, 0] + params["to_code"]["bias"]
    np.testing.assert_allclose(codes.inputs[0], x.reshape(6, 3), rtol=1e-4, atol=1e-4)

    decoded = apply(variables, codes.inputs, method="decode")
    x = x @ params["from_code"]["kernel"][0, 0] + params["from_code"]["bias"]
    x = x + conv3(silu(x), params["decoder_residual"])
    x = silu(x) @ params["decoder_out"]["kernel"][0, 0] + params["decoder_out"]["bias"]
    assert decoded.shape == FRAMES.shape
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(
                decoded[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4],
                x[i, j].reshape(4, 4, 2),
                rtol=1e-4,
                atol=1e-4,
            )


def test_leading_axes_are_free() -> None:
    variables = random_variables(MODEL, FRAMES)
    both = MODEL.apply(variables, FRAMES[None], method="encode")
    one = MODEL.apply(variables, FRAMES, method="encode")
    np.testing.assert_array_equal(both.tokens[0], one.tokens)
    assert jnp.shape(MODEL.apply(variables, FRAMES[None])) == (1, *FRAMES.shape)
