"""The configuration of DreamerV3's world model, its published sizes, and what must fit together."""

import dataclasses

from worldmodels_jax.models.world_model import ModelConfig
from worldmodels_jax.nn.image_coder import Resampling, coarse_size
from worldmodels_jax.nn.linear import Fan, NormKind
from worldmodels_jax.nn.rssm import Cell, Initial
from worldmodels_jax.ops.scalar_head import ScalarKind
from worldmodels_jax.types import EnvSpec


@dataclasses.dataclass(frozen=True)
class DreamerV3Config(ModelConfig):
    """DreamerV3's world model, in the version of 2024; ``v1_*`` below are that of January 2023.

    There is no recommended size: the defaults are those of ``size12m``, and a run should name the
    preset it was made from. Presets are made for 64x64 frames; smaller ones need fewer
    ``channels``. Their parameters are counted with actor and critic; by our count the names of 2024
    are rounded up (size12m has 10.5 M, size200m 166 M), those of 2023 right to a million.

    The ablation "plain KL, without stop-gradients" is dynamics_scale=1, representation_scale=1: the
    gradients of both halves add up to those of the whole KL.

    Attributes:
      deter: D, the size of the recurrent state h.
      hidden: units of the hidden layers of the RSSM.
      num_tokens: N, categorical variables of the latent z.
      num_classes: V, classes of each.
      cell: block_gru (2024) or gru (2023).
      blocks: groups of h in the block-diagonal layers, of the cell and of the frame decoder.
      dynamics_layers: block-diagonal hidden layers of the cell (block_gru only).
      prior_layers: hidden layers of the prior.
      posterior_layers: hidden layers of the posterior.
      initial_state: what precedes an episode, zeros (2024) or learned (2023).
      channels: of the stages of the frame encoder, each of which halves the frame; none () flattens
        frames and gives them to the layers that serve vectors.
      resampling: pool (2024) or stride (2023).
      units: units of the hidden layers of vector encoder and decoder and of the heads.
      vector_layers: hidden layers of the encoder and of the decoder of vectors.
      head_layers: hidden layers of the reward and the continuation head.
      reward_head: symexp_twohot (2024), symlog_twohot (2023) or mse (for comparison).
      num_bins: bins of a two-hot reward.
      norm: rms (2024) or layer (2023).
      fan: by what first weights are scaled, fan_in (2024) or fan_avg (2023).
      unimix: share of the uniform distribution in prior and posterior.
      dynamics_scale: weight of the dynamics loss.
      representation_scale: weight of the representation loss.
      free_bits: nats below which neither KL is pushed down, at each step.
      discounted_continuation: train the continuation head towards gamma (1 - terminated) (2024)
        rather than 1 - terminated (2023). Either way ``Prediction.continuation`` is the probability
        of not having terminated, without gamma, which the agent multiplies in.
      discount_horizon: gamma = 1 - 1 / discount_horizon, the agent's.
    """

    deter: int = 2048
    hidden: int = 256
    num_tokens: int = 32
    num_classes: int = 16
    cell: Cell = "block_gru"
    blocks: int = 8
    dynamics_layers: int = 1
    prior_layers: int = 2
    posterior_layers: int = 1
    initial_state: Initial = "zeros"
    channels: tuple[int, ...] = (32, 48, 64, 64)
    resampling: Resampling = "pool"
    units: int = 256
    vector_layers: int = 3
    head_layers: int = 1
    reward_head: ScalarKind = "symexp_twohot"
    num_bins: int = 255
    norm: NormKind = "rms"
    fan: Fan = "fan_in"
    unimix: float = 0.01
    dynamics_scale: float = 1.0
    representation_scale: float = 0.1
    free_bits: float = 1.0
    discounted_continuation: bool = True
    discount_horizon: float = 333.0

    @property
    def system(self) -> str:
        """See ``ModelConfig``."""
        return "DreamerV3"


def _size(deter: int, hidden: int, num_classes: int, depth: int) -> DreamerV3Config:
    return DreamerV3Config(
        deter=deter,
        hidden=hidden,
        num_classes=num_classes,
        channels=(2 * depth, 3 * depth, 4 * depth, 4 * depth),
        units=hidden,
    )


def size1m() -> DreamerV3Config:
    """The smallest published size, for vector observations."""
    return _size(512, 64, 4, 4)


def size12m() -> DreamerV3Config:
    """Published as 12 M parameters."""
    return _size(2048, 256, 16, 16)


def size25m() -> DreamerV3Config:
    """Published as 25 M parameters."""
    return _size(3072, 384, 24, 24)


def size50m() -> DreamerV3Config:
    """Published as 50 M parameters."""
    return _size(4096, 512, 32, 32)


def size100m() -> DreamerV3Config:
    """Published as 100 M parameters."""
    return _size(6144, 768, 48, 48)


def size200m() -> DreamerV3Config:
    """Published as 200 M parameters; what the paper of 2024 reports."""
    return _size(8192, 1024, 64, 64)


def size400m() -> DreamerV3Config:
    """Published as 400 M parameters."""
    return _size(12288, 1536, 96, 96)


def tiny() -> DreamerV3Config:
    """Ours, for a CPU and small grids or vectors: no convolutions, 8 latents of 8 classes."""
    return DreamerV3Config(
        deter=128,
        hidden=64,
        num_tokens=8,
        num_classes=8,
        blocks=1,
        channels=(),
        units=96,
        vector_layers=2,
    )


def _v1(deter: int, depth: int, units: int, layers: int) -> DreamerV3Config:
    return DreamerV3Config(
        deter=deter,
        hidden=units,
        num_classes=32,
        cell="gru",
        prior_layers=1,
        initial_state="learned",
        channels=(depth, 2 * depth, 4 * depth, 8 * depth),
        resampling="stride",
        units=units,
        vector_layers=layers,
        head_layers=layers,
        reward_head="symlog_twohot",
        norm="layer",
        fan="fan_avg",
        dynamics_scale=0.5,
        discounted_continuation=False,
    )


def v1_xs() -> DreamerV3Config:
    """XS of 2023: 8 M parameters."""
    return _v1(256, 24, 256, 1)


def v1_s() -> DreamerV3Config:
    """S of 2023: 18 M parameters."""
    return _v1(512, 32, 512, 2)


def v1_m() -> DreamerV3Config:
    """M of 2023: 37 M parameters."""
    return _v1(1024, 48, 640, 3)


def v1_l() -> DreamerV3Config:
    """L of 2023: 77 M parameters."""
    return _v1(2048, 64, 768, 4)


def v1_xl() -> DreamerV3Config:
    """XL of 2023: 200 M parameters."""
    return _v1(4096, 96, 1024, 5)


def validate(config: DreamerV3Config, spec: EnvSpec) -> None:
    """Check sizes against each other and the observations.

    Raises:
      ValueError: naming the fields, their values and the remedy.
    """
    if len(spec.observation_shape) not in (1, 3):
        raise ValueError(
            f"observations of shape {spec.observation_shape} are neither images (H, W, C) nor "
            "vectors (F,): reshape them in the environment's adapter."
        )
    counts = ("deter", "hidden", "num_tokens", "num_classes", "blocks", "units")
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"model.{name}={getattr(config, name)} must be at least 1.")
    frames = len(spec.observation_shape) == 3 and config.channels
    if frames:
        height, width, _ = spec.observation_shape
        coarse_size((height, width), len(config.channels))
    pooled = frames and config.resampling == "pool"
    if (config.cell == "block_gru" or pooled) and config.deter % config.blocks:
        raise ValueError(
            f"model.deter={config.deter} cannot be split into model.blocks={config.blocks}: choose "
            "a multiple of it, or fewer blocks."
        )
    if pooled and config.channels[-1] % config.blocks:
        raise ValueError(
            f"model.channels[-1]={config.channels[-1]} cannot be split into model.blocks="
            f"{config.blocks}: choose a multiple of it, or fewer blocks."
        )
    if config.discount_horizon <= 1:
        raise ValueError(
            f"model.discount_horizon={config.discount_horizon} must be greater than 1: it is "
            "1 / (1 - gamma) steps, e.g. 333."
        )
