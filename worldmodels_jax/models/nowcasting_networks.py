"""The networks of NowcastingGPT: tokenizer, transformer and the head that knows extremes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from worldmodels_jax.models.nowcasting_config import (
    FRAME_HEADS,
    NowcastingConfig,
    NowcastingLossConfig,
    RainPatchConfig,
    RainVQGANConfig,
    num_tokens,
)
from worldmodels_jax.nn import lpips
from worldmodels_jax.nn.frame_classifier import FrameClassifier
from worldmodels_jax.nn.iris_tokenizer import IrisTokenizer
from worldmodels_jax.nn.patch_tokenizer import PatchTokenizer
from worldmodels_jax.nn.quantiser import COLLECTION, tokenizer_variables
from worldmodels_jax.nn.transformer import (
    GPT_STD,
    KVCache,
    PredictionHead,
    gpt,
    init_cache,
)
from worldmodels_jax.types import DataSpec, PyTree

# Adam moves a parameter by the learning rate at most: a logit that is 100 times its parameter gets
# from one end of its range to the other within a thousand updates at the pace of a network.
_TABLE_PACE = 100.0


class RainTransformer(nn.Module):
    """Tokens of a sequence of frames, in the order of time and then of rows, one after the other.

    Attributes:
      num_codes: V.
      max_tokens: rows of the position table.
      width: D.
      layers: of the transformer.
      heads: attention heads.
      dropout: rate.
      dtype: compute dtype.
    """

    num_codes: int
    max_tokens: int
    width: int
    layers: int
    heads: int
    dropout: float = 0.0
    dtype: Any = None

    def setup(self) -> None:
        init = nn.initializers.normal(GPT_STD)
        self.codes = nn.Embed(self.num_codes, self.width, embedding_init=init, dtype=self.dtype)
        self.transformer = gpt(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            max_length=self.max_tokens,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.token_head = PredictionHead(self.width, self.num_codes, self.dtype)

    def feed(
        self, tokens: jax.Array, cache: KVCache | None = None, deterministic: bool = True
    ) -> tuple[jax.Array, Any]:
        """Hidden states ``(B, S, D)`` of tokens ``(B, S)`` that follow those in the cache."""
        return self.transformer(self.codes(tokens), jnp.zeros_like(tokens), cache, deterministic)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Of the next token: ``(..., D) -> (..., V)`` float32."""
        return self.token_head(hidden)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits ``(B, S, V)`` of the tokens after each of ``(B, S)``."""
        return self.logits(self.feed(tokens)[0])

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache."""
        return init_cache(
            layers=self.layers,
            batch=batch,
            length=length,
            heads=self.heads,
            head_dim=self.width // self.heads,
            dtype=self.dtype or jnp.float32,
        )


class CodeTable(nn.Module):
    """How likely the patches that a code stands for are extreme: one logit a code.

    Attributes:
      num_codes: V.
      p_extreme: the share of extremes, from which all codes start.
    """

    num_codes: int
    p_extreme: float

    @nn.compact
    def __call__(self) -> jax.Array:
        """``(V,)`` float32 logits."""
        table = self.param("table", nn.initializers.zeros, (self.num_codes,), jnp.float32)
        return _TABLE_PACE * table + jnp.log(self.p_extreme / (1 - self.p_extreme))


class Networks(NamedTuple):
    """A system's networks and what they were made for: the first argument of its functions."""

    config: NowcastingConfig
    loss: NowcastingLossConfig
    axis_name: str | None
    shape: tuple[int, int, int]  # T, H, W
    frame_tokens: int  # N
    tokenizer: IrisTokenizer | PatchTokenizer
    transformer: RainTransformer
    head: FrameClassifier | CodeTable | None
    lpips: Mapping[str, np.ndarray] | None  # weights of the perceptual loss

    @property
    def pooled_frames(self) -> int:
        """The first frames whose states a classifier is given."""
        return (
            self.config.context_frames if self.loss.head == "frame_vit_forecast" else self.shape[0]
        )

    def init(self, key: jax.Array) -> PyTree:
        """Untrained variables."""
        key_tokenizer, key_transformer, key_head = jax.random.split(key, 3)
        frames, height, width = self.shape
        made = self.tokenizer.init(key_tokenizer, jnp.zeros((1, height, width, 1)))
        tokens = jnp.zeros((1, frames * self.frame_tokens), jnp.int32)
        params = {
            "tokenizer": made["params"],
            "transformer": self.transformer.init(key_transformer, tokens)["params"],
        }
        if isinstance(self.head, FrameClassifier):
            states = (1, self.pooled_frames, self.frame_tokens * self.transformer.width)
            params["head"] = self.head.init(key_head, jnp.zeros(states))["params"]
        elif self.head is not None:
            params["head"] = self.head.init(key_head)["params"]
        state = {COLLECTION: made[COLLECTION]} if COLLECTION in made else {}
        return {"params": params, **state, **lpips.as_collection(self.lpips)}

    def scaled(self, rates: jax.Array) -> jax.Array:
        """What networks see of rates ``(..., H, W)`` in mm/h: ``(..., H, W, 1)``."""
        chex.assert_shape(rates, (..., *self.shape[1:]))
        rates = jnp.clip(rates.astype(jnp.float32), 0.0, self.config.max_rate)
        return (rates / self.config.scale)[..., None]

    def rates(self, frames: jax.Array) -> jax.Array:
        """Rates ``(..., H, W)`` in mm/h of what a decoder made, ``(..., H, W, 1)``."""
        return jnp.maximum(frames[..., 0], 0.0) * self.config.scale

    def tokenise(self, variables: PyTree, rates: jax.Array) -> jax.Array:
        """Tokens ``(B, T, N)`` int32 of rates ``(B, T, H, W)`` in mm/h."""
        codes = self.tokenizer.apply(
            tokenizer_variables(variables), self.scaled(rates), method="encode"
        )
        return codes.tokens

    def detokenise(self, variables: PyTree, tokens: jax.Array) -> jax.Array:
        """Rates ``(..., H, W)`` in mm/h of tokens ``(..., N)``."""

        def decode(tokenizer: Any) -> jax.Array:
            return tokenizer.decode(tokenizer.embed(tokens))

        return self.rates(self.tokenizer.apply(tokenizer_variables(variables), method=decode))


def make_networks(
    config: NowcastingConfig,
    loss: NowcastingLossConfig,
    data: DataSpec,
    axis_name: str | None,
    dtype: Any,
) -> Networks:
    """The networks that a config asks for; see ``make_nowcasting_gpt``."""
    frames, height, width = data.shapes["rain"]
    tokens, sizes = num_tokens(config.tokenizer, height, width), config.transformer
    transformer = RainTransformer(
        num_codes=config.tokenizer.num_codes,
        max_tokens=frames * tokens,
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        dropout=sizes.dropout,
        dtype=dtype,
    )
    tokenizer = _tokenizer(config.tokenizer, loss, (height, width), axis_name, dtype)
    head: FrameClassifier | CodeTable | None = None
    if loss.evl and loss.head in FRAME_HEADS:
        classifier = config.classifier
        head = FrameClassifier(
            sizes.width, classifier.layers, classifier.heads, 2 * sizes.width, dtype=dtype
        )
    elif loss.evl:
        head = CodeTable(config.tokenizer.num_codes, loss.p_extreme)
    shape = (frames, height, width)
    weights = None
    if loss.perceptual == "lpips":
        weights = lpips.load_lpips(loss.lpips_file, "vgg")
    return Networks(config, loss, axis_name, shape, tokens, tokenizer, transformer, head, weights)


def _tokenizer(
    config: RainVQGANConfig | RainPatchConfig,
    loss: NowcastingLossConfig,
    size: tuple[int, int],
    axis_name: str | None,
    dtype: Any,
) -> IrisTokenizer | PatchTokenizer:
    common: dict[str, Any] = {
        "image_channels": 1,
        "num_codes": config.num_codes,
        "code_size": config.code_size,
        "commitment": loss.commitment,
        "reseed_every": config.reseed_every,
        "reseed_below": config.reseed_below,
        "axis_name": axis_name,
        "dtype": dtype,
    }
    if isinstance(config, RainPatchConfig):
        return PatchTokenizer(image_size=size, patch=config.patch, width=config.width, **common)
    return IrisTokenizer(
        image_size=size[0],
        num_tokens=num_tokens(config, *size),
        channels=config.channels,
        blocks=config.blocks,
        attention_sizes=config.attention_sizes,
        latent=config.latent,
        **common,
    )
