"""The configurations of IRIS and Delta-IRIS, and the published sizes.

Micheli et al. (2023) and (2024). A preset is a function that returns a config; the defaults of the
classes are those of Delta-IRIS for Crafter and of IRIS for Atari. ``tiny16`` is for frames of up to
16x16 pixels, small grids (Catch, MinAtar) among them, on a CPU.
"""

import dataclasses
from typing import Literal

from worldmodels_jax.models.world_model import ModelConfig

_CHANNELS_64 = (64, 64, 128, 128, 256)


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """What tokenizers are trained for; the defaults are Delta-IRIS's.

    Errors are of pixels in [0, 1]. IRIS's own are the absolute error on a scale of [-1, 1], that is
    ``l1_weight=2``, and LPIPS (VGG-16), whose weights this library does not have: give a file.

    Attributes:
      l1_weight: of the mean absolute error.
      l2_weight: of the mean squared error.
      max_pixel_weight: of the largest squared error of a frame.
      lpips_weight: of the perceptual distance ``nn.lpips``; IRIS's is 1.
      lpips_file: where its weights are, see ``nn.lpips``.
    """

    l1_weight: float = 0.1
    l2_weight: float = 1.0
    max_pixel_weight: float = 0.01
    lpips_weight: float = 0.0
    lpips_file: str = ""


@dataclasses.dataclass(frozen=True)
class ResnetTokenizerConfig(ReconstructionConfig):
    """`nn.delta_tokenizer`; the defaults are Delta-IRIS's for Crafter.

    Attributes:
      kind: delta sees the frame and the action before; frame is the ablation that does not.
      image_size: side to which frames are padded with zeros.
      num_tokens: K, tokens of a frame, a square number.
      num_codes: N, rows of the codebook.
      code_size: size of a code.
      encoder_channels: channels of each level of the encoder.
      latent: channels of the latent map.
      embedder_channels: of the decoder's view of the frame before.
      embedder_latent: channels of that view.
      action_channels: channels of the decoder's action map.
      decoder_channels: of each level of the decoder, in the order of the encoder.
      halve_after: levels that end in a halving.
      patch: side of the patches at the entrance, 1 for none.
      commitment_weight: of what draws vectors to their codes.
      revival_limit: updates after which dead codes are revived only where the usage entropy is
        below one bit; none for no end.
    """

    kind: Literal["delta", "frame"] = "delta"
    image_size: int = 64
    num_tokens: int = 4
    num_codes: int = 1024
    code_size: int = 64
    encoder_channels: tuple[int, ...] = _CHANNELS_64
    latent: int = 64
    embedder_channels: tuple[int, ...] = _CHANNELS_64
    embedder_latent: int = 8
    action_channels: int = 4
    decoder_channels: tuple[int, ...] = _CHANNELS_64
    halve_after: tuple[int, ...] = (0, 2, 3)
    patch: int = 1
    commitment_weight: float = 0.02
    revival_limit: int | None = 0


@dataclasses.dataclass(frozen=True)
class VQGANConfig(ReconstructionConfig):
    """`nn.iris_tokenizer`; the sizes are IRIS's for Atari.

    Attributes:
      image_size: side to which frames are padded with zeros.
      num_tokens: K, tokens of a frame, a square number; fewer by a factor of 4 is one halving more.
      num_codes: N, rows of the codebook.
      code_size: size of a code.
      channels: of every level.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      attention_sizes: sides of the maps with self-attention.
      latent: channels of the latent map.
      commitment_weight: of what draws vectors to their codes.
    """

    image_size: int = 64
    num_tokens: int = 16
    num_codes: int = 512
    code_size: int = 512
    channels: int = 64
    blocks: int = 2
    attention_sizes: tuple[int, ...] = (16, 8)
    latent: int = 512
    commitment_weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """The transformer over tokens and its heads.

    Attributes:
      width: D.
      layers: of the transformer.
      heads: attention heads.
      max_blocks: time steps that the position table has room for; sequences of one record more
        train every position.
      dropout: rate on embeddings, attention weights and residual branches alike.
      reward: two_hot is a distribution over symlog bins, sign one over -1, 0 and 1.
      num_bins: bins of two_hot.
      reward_readout: in imagination, the mean or a sample of that distribution.
      token_weight: of the cross-entropy of tokens.
      reward_weight: of the cross-entropy of rewards.
      termination_weight: of the cross-entropy of terminations.
      truncation_is_end: train the termination on truncations too, as the original does.
    """

    width: int = 512
    layers: int = 3
    heads: int = 8
    max_blocks: int = 21
    dropout: float = 0.0
    reward: Literal["two_hot", "sign"] = "two_hot"
    num_bins: int = 255
    reward_readout: Literal["mean", "sample"] = "mean"
    token_weight: float = 1.0
    reward_weight: float = 1.0
    termination_weight: float = 1.0
    truncation_is_end: bool = False


@dataclasses.dataclass(frozen=True)
class DeltaDynamicsConfig(DynamicsConfig):
    """Delta-IRIS's transformer; the defaults are those for Crafter.

    Attributes:
      i_tokens: a frame's embedding at every step; without them at the first frame only.
      frame_channels: channels of each level of the network that embeds frames.
      frame_latent: channels of its map, which is flattened (and projected to the width, where it is
        not of that size).
      frame_halve_after: its levels that end in a halving.
      frame_patch: side of the patches at its entrance, 1 for none.
    """

    i_tokens: bool = True
    frame_channels: tuple[int, ...] = (32, 32, 64, 64, 128)
    frame_latent: int = 8
    frame_halve_after: tuple[int, ...] = (0, 2, 3)
    frame_patch: int = 1


@dataclasses.dataclass(frozen=True)
class IrisDynamicsConfig(DynamicsConfig):
    """IRIS's transformer; the defaults are those for Atari.

    Attributes:
      context: real frames that it sees at the start of a dream; more of them warm the policy only.
    """

    width: int = 256
    layers: int = 10
    heads: int = 4
    max_blocks: int = 20
    dropout: float = 0.1
    reward: Literal["two_hot", "sign"] = "sign"
    reward_readout: Literal["mean", "sample"] = "sample"
    context: int = 1


@dataclasses.dataclass(frozen=True)
class DeltaIrisConfig(ModelConfig):
    """Delta-IRIS.

    Attributes:
      tokenizer: the autoencoder of frames.
      world_model: the transformer.
      tokenizer_scale: weight of the tokenizer's loss; 0 leaves it as it is.
      world_model_scale: weight of the transformer's loss; 0 leaves it as it is.
    """

    tokenizer: ResnetTokenizerConfig = ResnetTokenizerConfig()
    world_model: DeltaDynamicsConfig = DeltaDynamicsConfig()
    tokenizer_scale: float = 1.0
    world_model_scale: float = 1.0

    @property
    def system(self) -> str:
        """See ``ModelConfig``."""
        return "Delta-IRIS"


@dataclasses.dataclass(frozen=True)
class IrisConfig(ModelConfig):
    """IRIS.

    Attributes:
      architecture: the autoencoder of frames, VQGAN's as published, or that of Delta-IRIS without
        its conditioning, so that a comparison of the two is one of conditioning.
      vqgan: used with architecture=vqgan.
      resnet: used with architecture=resnet; its kind must be frame.
      world_model: the transformer.
      tokenizer_scale: weight of the tokenizer's loss; 0 leaves it as it is.
      world_model_scale: weight of the transformer's loss; 0 leaves it as it is.
    """

    architecture: Literal["vqgan", "resnet"] = "vqgan"
    vqgan: VQGANConfig = VQGANConfig()
    resnet: ResnetTokenizerConfig = ResnetTokenizerConfig(kind="frame")
    world_model: IrisDynamicsConfig = IrisDynamicsConfig()
    tokenizer_scale: float = 1.0
    world_model_scale: float = 1.0

    @property
    def tokenizer(self) -> VQGANConfig | ResnetTokenizerConfig:
        """The section that is used."""
        return self.vqgan if self.architecture == "vqgan" else self.resnet

    @property
    def system(self) -> str:
        """See ``ModelConfig``."""
        return "IRIS"


def delta_iris_crafter() -> DeltaIrisConfig:
    """Delta-IRIS for Crafter, 64x64x3."""
    return DeltaIrisConfig()


def delta_iris_atari() -> DeltaIrisConfig:
    """Delta-IRIS for Atari, 64x64x3."""
    return DeltaIrisConfig(
        tokenizer=ResnetTokenizerConfig(
            embedder_channels=(32, 32, 64, 64, 128), embedder_latent=16, revival_limit=400
        ),
        world_model=DeltaDynamicsConfig(
            width=256,
            heads=4,
            max_blocks=26,
            reward="sign",
            reward_readout="sample",
            token_weight=0.1,
            termination_weight=0.1,
            frame_latent=4,
        ),
    )


def iris_atari() -> IrisConfig:
    """IRIS for Atari, 64x64x3."""
    return IrisConfig()


def iris_crafter(num_tokens: int = 16) -> IrisConfig:
    """IRIS for Crafter as Delta-IRIS's paper compares it, of 16 or 64 tokens a frame."""
    return IrisConfig(
        vqgan=VQGANConfig(num_tokens=num_tokens, num_codes=1024),
        world_model=IrisDynamicsConfig(width=512, heads=8, max_blocks=21),
    )


_TINY_TOKENIZER = ResnetTokenizerConfig(
    image_size=16,
    num_codes=64,
    code_size=16,
    encoder_channels=(24, 24),
    latent=8,
    embedder_channels=(24,),
    embedder_latent=8,
    decoder_channels=(24, 24, 24),
    halve_after=(),
    patch=2,
    revival_limit=None,
)


def delta_iris_tiny16() -> DeltaIrisConfig:
    """Delta-IRIS of four tokens for frames of up to 16x16 pixels."""
    return DeltaIrisConfig(
        tokenizer=_TINY_TOKENIZER,
        world_model=DeltaDynamicsConfig(
            width=96,
            layers=2,
            heads=4,
            max_blocks=16,
            frame_channels=(24,),
            frame_latent=8,
            frame_halve_after=(),
            frame_patch=2,
        ),
    )


def iris_tiny16(num_tokens: int = 16) -> IrisConfig:
    """IRIS with the networks of ``delta_iris_tiny16``, of 4, 16 or 64 tokens a frame."""
    return IrisConfig(
        architecture="resnet",
        resnet=dataclasses.replace(_TINY_TOKENIZER, kind="frame", num_tokens=num_tokens),
        world_model=IrisDynamicsConfig(
            width=96,
            layers=2,
            heads=4,
            max_blocks=16,
            dropout=0.0,
            reward="two_hot",
            reward_readout="mean",
        ),
    )
