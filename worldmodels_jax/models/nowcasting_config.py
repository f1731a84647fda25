"""The configuration of NowcastingGPT and NowcastingGPT-EVL, and what of it must fit together.

Meo (2026), chapter 3. The defaults are the published sizes, for frames of 128x128 pixels.
"""

import dataclasses
from typing import Any, Literal

from worldmodels_jax.models.offline import LossConfig, OfflineSystem, SystemConfig
from worldmodels_jax.ops.extreme_value import Reduction, WeightMode
from worldmodels_jax.types import DataSpec

HeadKind = Literal["frame_vit", "frame_vit_forecast", "token_table", "fixed_tokens"]
FRAME_HEADS = ("frame_vit", "frame_vit_forecast")


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """What the two kinds of tokenizer have in common.

    Attributes:
      num_codes: V, rows of the codebook.
      code_size: K, size of a code.
      reseed_every: updates between looks for unused codes, which are then moved to vectors of the
        batch, as all are at first; 0 leaves codes to their gradient. Not in the original.
      reseed_below: vectors assigned to a code since the last look, below which it is unused.
    """

    num_codes: int = 1024
    code_size: int = 1024
    reseed_every: int = 100
    reseed_below: int = 5


@dataclasses.dataclass(frozen=True)
class RainVQGANConfig(CodebookConfig):
    """`nn.iris_tokenizer`, of which the published tokenizer is one; frames are squares.

    Attributes:
      channels: of the levels from the finest on; each but the last ends in a halving.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      attention_sizes: sides of the maps with self-attention.
      latent: channels of the latent map.
    """

    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    attention_sizes: tuple[int, ...] = (8,)
    latent: int = 1024


@dataclasses.dataclass(frozen=True)
class RainPatchConfig(CodebookConfig):
    """`nn.patch_tokenizer`, for small machines.

    Attributes:
      patch: side of a token's patch in pixels.
      width: channels of the map of patches.
    """

    num_codes: int = 256
    code_size: int = 16
    patch: int = 4
    width: int = 128


@dataclasses.dataclass(frozen=True)
class RainTransformerConfig:
    """The transformer over tokens, `nn.transformer.gpt`.

    Attributes:
      width: D.
      layers: of the transformer.
      heads: attention heads.
      dropout: rate on embeddings, attention weights and residual branches alike.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The classifier of extreme events; as wide as the transformer, with twice that inside.

    Attributes:
      layers: of its transformer.
      heads: attention heads.
    """

    layers: int = 6
    heads: int = 8


@dataclasses.dataclass(frozen=True)
class ExtremeEventConfig:
    """What counts as an extreme event, in training with the loss for them and in evaluation.

    Attributes:
      threshold_mm_3h: accumulation that an extreme exceeds, the mean over the region; for tokens,
        the mean over their patch at the rate of the frame.
      region: a box (first column, last column + 1, first row, last row + 1) in pixels; empty for
        the whole frame.
    """

    threshold_mm_3h: float = 5.0
    region: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class NowcastingLossConfig(LossConfig):
    """What NowcastingGPT minimises; with ``evl``, what NowcastingGPT-EVL does.

    The published perceptual loss is LPIPS (VGG-16), whose weights this library does not have. With
    a file of them it is ``perceptual=lpips``; by default an L1 distance of Laplacian pyramids,
    which has no weights, stands for it.

    Attributes:
      reconstruction: the tokenizer's error: l1 as in the published code, l2 as in eq. 3.2.
      perceptual: laplacian_pyramid adds the distance of pyramids of four levels, lpips that of
        ``nn.lpips``.
      lpips_file: where its weights are, see ``nn.lpips``.
      commitment: beta, of what draws vectors to their codes.
      evl: add the extreme value loss, and the part "head" that it needs.
      head: where its probabilities come from: frame_vit, a classifier of all frames as published;
        frame_vit_forecast, of the observed ones; token_table, the expected share of extremes among
        the patches that a token stands for; fixed_tokens, the probability of the codes with the
        largest shares, as in Nuwa-EVL.
      evl_scale: lambda, of the extreme value loss.
      gamma: extreme value index, at least 1; 2 in Nuwa-EVL.
      weights: inverse weighs extremes by the share of the rest, proportional by their own.
      p_extreme: the share of extremes.
      reduction: mean, or class_mean, the sum of means over extremes and over the rest.
      fixed_codes: codes of head=fixed_tokens.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    perceptual: Literal["none", "laplacian_pyramid", "lpips"] = "laplacian_pyramid"
    lpips_file: str = ""
    commitment: float = 1.0
    evl: bool = False
    head: HeadKind = "frame_vit"
    evl_scale: float = 0.5
    gamma: float = 1.0
    weights: WeightMode = "inverse"
    p_extreme: float = 0.05
    reduction: Reduction = "mean"
    fixed_codes: int = 15


@dataclasses.dataclass(frozen=True)
class NowcastingConfig(SystemConfig):
    """NowcastingGPT.

    Attributes:
      tokenizer: of frames.
      transformer: over the tokens of a sequence of frames.
      classifier: used with loss.evl and a head of frames.
      event: what counts as extreme.
      context_frames: frames of an example that a forecast is given.
      scale: mm/h that the networks see as 1.
      max_rate: mm/h; heavier rain is cut off in what the networks see.
    """

    tokenizer: RainVQGANConfig | RainPatchConfig = RainVQGANConfig()
    transformer: RainTransformerConfig = RainTransformerConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    event: ExtremeEventConfig = ExtremeEventConfig()
    context_frames: int = 3
    scale: float = 40.0
    max_rate: float = 128.0

    def make(
        self, loss: LossConfig, data: DataSpec, axis_name: str | None, dtype: Any
    ) -> OfflineSystem:
        """See ``SystemConfig``."""
        # The factory takes this class.
        from worldmodels_jax.models.nowcasting_gpt import make_nowcasting_gpt

        if not isinstance(loss, NowcastingLossConfig):
            raise ValueError(
                f"loss is a {type(loss).__name__}, which is another system's: NowcastingGPT takes "
                "a NowcastingLossConfig."
            )
        return make_nowcasting_gpt(self, loss, data, axis_name, dtype)


def check(config: NowcastingConfig, loss: NowcastingLossConfig, data: DataSpec) -> None:
    """Refuse what does not fit together, or would have no effect.

    Raises:
      ValueError: naming the fields.
    """
    if len(data.shapes.get("rain", ())) != 3:
        raise ValueError(
            f"{data.name} has no sequences of rain (its arrays are {dict(data.shapes)}): choose a "
            "data set that has an array 'rain' of frames."
        )
    frames, height, width = data.shapes["rain"]
    if not 1 <= config.context_frames < frames:
        raise ValueError(
            f"model.context_frames={config.context_frames} leaves nothing to see or to forecast of "
            f"{frames} frames: give 1 to {frames - 1}."
        )
    for name in ("scale", "max_rate"):
        if not getattr(config, name) > 0:
            raise ValueError(f"model.{name}={getattr(config, name)}: it must be above 0 mm/h.")
    _check_tokenizer(config.tokenizer, height, width)
    _check_heads("transformer", config.transformer.width, config.transformer.heads)
    _check_event(config.event, height, width)
    _check_loss(config, loss)


def num_tokens(config: RainVQGANConfig | RainPatchConfig, height: int, width: int) -> int:
    """N, tokens of a frame of ``height x width`` pixels."""
    side = config.patch if isinstance(config, RainPatchConfig) else 2 ** (len(config.channels) - 1)
    return (height // side) * (width // side)


def _check_tokenizer(config: RainVQGANConfig | RainPatchConfig, height: int, width: int) -> None:
    if isinstance(config, RainPatchConfig):
        if height % config.patch or width % config.patch:
            raise ValueError(
                f"frames of {height}x{width} cannot be cut into patches of "
                f"model.tokenizer.patch={config.patch}: choose a divisor of both sides."
            )
    else:
        factor = 2 ** (len(config.channels) - 1)
        # The network tells its halvings from sides and tokens, and so needs powers of two.
        if height != width or height % factor:
            raise ValueError(
                f"frames of {height}x{width} cannot be halved by the {len(config.channels)} levels "
                f"of model.tokenizer.channels: they must be squares with a multiple of {factor} as "
                "side; take fewer levels, or a tokenizer of patches."
            )
    if not config.reseed_every:
        _refuse(config, CodebookConfig(), ("reseed_below",), "model.tokenizer", "reseed_every=0")


def _check_heads(section: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(
            f"model.{section}.heads={heads} does not divide model.transformer.width={width}."
        )


def _check_event(event: ExtremeEventConfig, height: int, width: int) -> None:
    if not event.region:
        return
    if len(event.region) == 4:
        left, right, top, bottom = event.region
        if 0 <= left < right <= width and 0 <= top < bottom <= height:
            return
    raise ValueError(
        f"model.event.region={event.region} is no box in frames of {height}x{width}: give (first "
        "column, last column + 1, first row, last row + 1), or () for the whole frame."
    )


def _check_loss(config: NowcastingConfig, loss: NowcastingLossConfig) -> None:
    default = NowcastingLossConfig()
    if loss.perceptual != "lpips":
        _refuse(loss, default, ("lpips_file",), "loss", f"loss.perceptual={loss.perceptual}")
    elif not loss.lpips_file:
        raise ValueError(
            "loss.perceptual=lpips needs trained weights: set loss.lpips_file to a file that "
            "worldmodels_jax/nn/lpips.py says how to make."
        )
    if not loss.evl:
        names = ("head", "evl_scale", "gamma", "weights", "p_extreme", "reduction", "fixed_codes")
        _refuse(loss, default, names, "loss", "loss.evl=false")
    if loss.head != "fixed_tokens":
        _refuse(loss, default, ("fixed_codes",), "loss", f"loss.head={loss.head}")
    elif not 1 <= loss.fixed_codes <= config.tokenizer.num_codes:
        raise ValueError(
            f"loss.fixed_codes={loss.fixed_codes}: there are "
            f"{config.tokenizer.num_codes} codes to choose from."
        )
    if loss.head == "fixed_tokens":
        # There are extremes only among what its loss is taken of.
        _refuse(loss, default, ("reduction",), "loss", "loss.head=fixed_tokens")
    if loss.evl and loss.head in FRAME_HEADS:
        _check_heads("classifier", config.transformer.width, config.classifier.heads)
    else:
        reason = f"loss.head={loss.head}" if loss.evl else "loss.evl=false"
        _refuse(
            config.classifier, ClassifierConfig(), ("layers", "heads"), "model.classifier", reason
        )


def _refuse(section: Any, default: Any, names: tuple[str, ...], path: str, reason: str) -> None:
    """Refuse fields that have no effect for a reason."""
    for name in names:
        value, usual = getattr(section, name), getattr(default, name)
        if value != usual:
            raise ValueError(
                f"{path}.{name}={value} has no effect with {reason}: leave it at {usual}."
            )
