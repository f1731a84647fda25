"""The configuration of GIT-STORM's world model, and what of it must fit together."""

import dataclasses
from typing import Literal

from worldmodels_jax.models.world_model import ModelConfig
from worldmodels_jax.nn.mixer import Mixing


@dataclasses.dataclass(frozen=True)
class MaskGITConfig:
    """The MaskGIT prior head and its decoding.

    Attributes:
      width: embedding and transformer width of the head.
      layers: layers of its bidirectional transformer.
      heads: attention heads.
      hidden: units of its feed-forward layers.
      condition: how h reaches the tokens, one slice each or all of it to each.
      tied_logits: logits as dot products with the embeddings rather than a Dense layer.
      input: tokens shown in training, of the predicted frame ("next") or of the frame before
        ("current", as the authors' code does).
      decoder: draft_and_revise (algorithms 1 and 2) or confidence (MaskGIT's own).
      draft_rounds: T_draft, groups of the draft's partition.
      revise_rounds: T_revise, groups of each revision's partition.
      repetitions: number of revisions.
      confidence_steps: steps of the confidence decoder.
      temperature: sampling temperature of either decoder.
    """

    width: int = 128
    layers: int = 4
    heads: int = 8
    hidden: int = 128
    condition: Literal["slice", "broadcast"] = "slice"
    tied_logits: bool = True
    input: Literal["next", "current"] = "next"
    decoder: Literal["draft_and_revise", "confidence"] = "draft_and_revise"
    draft_rounds: int = 1
    revise_rounds: int = 1
    repetitions: int = 1
    confidence_steps: int = 8
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class GitStormConfig(ModelConfig):
    """GIT-STORM's world model; the defaults are the paper's for 64x64 pixels.

    Attributes:
      prior: maskgit is GIT-STORM, mlp (one linear layer) is STORM.
      maskgit: the MaskGIT prior; unused with prior=mlp.
      tokenizer: categorical VAE or VQ.
      num_tokens: N, categorical variables per frame.
      num_classes: V, classes per variable (codebook rows of the VQ).
      code_size: size of a VQ code.
      channels: channels of the encoder's blocks, each of which halves the image.
      mlp_width: width of encoder and decoder for vector observations.
      mixer: how latent and action are joined.
      width: D, width of the causal transformer and of the heads.
      layers: layers of the causal transformer.
      heads: attention heads.
      hidden: units of its feed-forward layers.
      max_length: rows of the position table, bounds batch_length and context + horizon.
      dropout: rate in the causal transformer.
      num_bins: bins of the two-hot reward.
      unimix: share of the uniform distribution in posterior and prior.
      dynamics_scale: beta_1, weight of the dynamics loss.
      representation_scale: beta_2, weight of the representation loss.
      free_bits: nats below which neither KL is pushed down.
      cross_episode_attention: attend across resets, as public STORM does.
      acting_latent: posterior encodes the current frame; prior lets the policy see the predicted
        latent only, as public STORM does.
    """

    prior: Literal["maskgit", "mlp"] = "maskgit"
    maskgit: MaskGITConfig = MaskGITConfig()
    tokenizer: Literal["categorical", "vq"] = "categorical"
    num_tokens: int = 32
    num_classes: int = 32
    code_size: int = 32
    channels: tuple[int, ...] = (32, 64, 128, 256)
    mlp_width: int = 512
    mixer: Mixing = "concat"
    width: int = 512
    layers: int = 2
    heads: int = 8
    hidden: int = 1024
    max_length: int = 64
    dropout: float = 0.1
    num_bins: int = 255
    unimix: float = 0.01
    dynamics_scale: float = 0.5
    representation_scale: float = 0.1
    free_bits: float = 1.0
    cross_episode_attention: bool = False
    acting_latent: Literal["posterior", "prior"] = "posterior"

    @property
    def system(self) -> str:
        """See ``ModelConfig``."""
        return "GIT-STORM" if self.prior == "maskgit" else "STORM"

    @property
    def longest(self) -> int | None:
        """See ``ModelConfig``."""
        return self.max_length


def validate(config: GitStormConfig) -> None:
    """Raise ValueError for sizes that cannot work together."""
    if config.width % config.heads:
        raise ValueError(
            f"model.width={config.width} is not a multiple of model.heads={config.heads}."
        )
    if config.prior == "mlp":
        return
    head = config.maskgit
    if head.width % head.heads:
        raise ValueError(
            f"model.maskgit.width={head.width} is not a multiple of "
            f"model.maskgit.heads={head.heads}."
        )
    if head.condition == "slice" and config.width % config.num_tokens:
        raise ValueError(
            f"model.maskgit.condition=slice gives each of model.num_tokens={config.num_tokens} "
            f"tokens an equal slice of the hidden state, which model.width={config.width} does "
            "not allow: choose a multiple, or condition=broadcast."
        )
    for field in ("draft_rounds", "revise_rounds", "confidence_steps"):
        rounds = getattr(head, field)
        used = head.decoder == ("confidence" if field == "confidence_steps" else "draft_and_revise")
        if used and not 1 <= rounds <= config.num_tokens:
            raise ValueError(
                f"model.maskgit.{field}={rounds} must lie between 1 and "
                f"model.num_tokens={config.num_tokens}."
            )
    if head.repetitions < 0:
        raise ValueError(f"model.maskgit.repetitions={head.repetitions} must not be negative.")
