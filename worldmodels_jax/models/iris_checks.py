"""What must fit together in the configurations of IRIS and Delta-IRIS."""

import math

from worldmodels_jax.models.iris_config import (
    DeltaIrisConfig,
    IrisConfig,
    ResnetTokenizerConfig,
    VQGANConfig,
)
from worldmodels_jax.types import EnvSpec


def validate(config: DeltaIrisConfig | IrisConfig, spec: EnvSpec) -> None:
    """Raise ValueError for sizes that cannot work together, or for an environment that cannot."""
    shape = spec.observation_shape
    if len(shape) != 3 or spec.observation_dtype != "uint8" or not spec.discrete:
        kind = "discrete" if spec.discrete else "continuous"
        raise ValueError(
            f"IRIS and Delta-IRIS need uint8 images (H, W, C) and discrete actions, but "
            f"{spec.name!r} has {spec.observation_dtype} observations of shape {shape} and {kind} "
            "actions: choose another model."
        )
    name = "tokenizer" if isinstance(config, DeltaIrisConfig) else config.architecture
    tokenizer, dynamics = config.tokenizer, config.world_model
    if max(shape[:2]) > tokenizer.image_size:
        raise ValueError(
            f"frames of {shape[0]}x{shape[1]} do not fit model.{name}.image_size="
            f"{tokenizer.image_size}: raise it, or resize the frames."
        )
    if bool(tokenizer.lpips_weight) != bool(tokenizer.lpips_file):
        raise ValueError(
            f"model.{name}.lpips_weight={tokenizer.lpips_weight} and model.{name}.lpips_file="
            f"{tokenizer.lpips_file!r} go together: give both, or neither."
        )
    if isinstance(tokenizer, VQGANConfig):
        _validate_vqgan(tokenizer)
    else:
        _validate_resnet(tokenizer, name)
    if isinstance(config, IrisConfig):
        _validate_iris(config)
    if dynamics.width % dynamics.heads:
        raise ValueError(
            f"model.world_model.width={dynamics.width} is not a multiple of "
            f"model.world_model.heads={dynamics.heads}."
        )
    if not (config.tokenizer_scale or config.world_model_scale):
        raise ValueError(
            "model.tokenizer_scale=0 and model.world_model_scale=0 leave no loss: raise one."
        )


def _validate_vqgan(tokenizer: VQGANConfig) -> None:
    side = math.isqrt(tokenizer.num_tokens)
    ratio = tokenizer.image_size // max(side, 1)
    power_of_two = ratio.bit_count() == 1 and ratio * side == tokenizer.image_size
    if side**2 != tokenizer.num_tokens or not power_of_two:
        raise ValueError(
            f"model.vqgan.num_tokens={tokenizer.num_tokens} is not what halvings make of "
            f"model.vqgan.image_size={tokenizer.image_size}: choose (image_size / 2^n)^2."
        )


def _validate_resnet(tokenizer: ResnetTokenizerConfig, name: str) -> None:
    side = math.isqrt(tokenizer.num_tokens)
    stride = tokenizer.patch * 2 ** len(tokenizer.halve_after)
    latent_size, rest = divmod(tokenizer.image_size, stride)
    if rest:
        raise ValueError(
            f"model.{name}.image_size={tokenizer.image_size} is not a multiple of {stride}, the "
            "patch times two for each halving: choose a multiple, or fewer halvings."
        )
    if side**2 != tokenizer.num_tokens or side == 0 or latent_size % side:
        raise ValueError(
            f"model.{name}.num_tokens={tokenizer.num_tokens} does not cut the latent map of "
            f"{latent_size}x{latent_size} into equal squares: choose n^2 for an n that divides "
            f"{latent_size}."
        )
    networks = [tokenizer.encoder_channels, tokenizer.decoder_channels]
    if tokenizer.kind == "delta":
        networks.append(tokenizer.embedder_channels)
    levels = min(map(len, networks))
    if any(not 0 <= level < levels for level in tokenizer.halve_after):
        raise ValueError(
            f"model.{name}.halve_after={tokenizer.halve_after} names a level that one of the "
            f"networks does not have; the smallest has {levels} levels, counted from 0."
        )


def _validate_iris(config: IrisConfig) -> None:
    if config.architecture == "resnet" and config.resnet.kind != "frame":
        raise ValueError(
            "model.resnet.kind=delta: the tokens of IRIS are of single frames. Choose kind=frame, "
            "or Delta-IRIS."
        )
    context, most = config.world_model.context, config.world_model.max_blocks
    if not 1 <= context <= most:
        raise ValueError(
            f"model.world_model.context={context} must lie between 1 and "
            f"model.world_model.max_blocks={most}."
        )
