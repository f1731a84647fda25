"""The smallest systems that ``fit`` can train: a line, and two parts that pull at each other."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.models.offline import LossConfig, OfflineSystem, SystemConfig
from worldmodels_jax.training.data_config import DataConfig
from worldmodels_jax.training.fit_config import FitConfig, FitTraining, OnePart, PartTraining
from worldmodels_jax.types import DataSpec

WEIGHTS = np.array([2.0, -1.0, 0.5], np.float32)


class ToySystem(NamedTuple):
    init: Callable[..., Any]
    losses: Mapping[str, Any]
    samples: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class ToyLossConfig(LossConfig):
    """Attributes:
    toy_scale: of the squared error.
    """

    toy_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class ToyConfig(SystemConfig):
    """Attributes:
    toy_kind: a line, or a line and a second part that learns the first one's mean weight.
    """

    toy_kind: str = "line"

    def make(
        self, loss: LossConfig, data: DataSpec, axis_name: str | None, dtype: Any
    ) -> OfflineSystem:
        del axis_name, dtype
        assert isinstance(loss, ToyLossConfig)
        (width,) = data.shapes["x"]

        def init(key: jax.Array) -> Any:
            line = {"w": jax.random.normal(key, (width,))}
            params = line if self.toy_kind == "line" else {"model": line, "critic": jnp.zeros(())}
            return {"params": params, "counters": {"calls": jnp.zeros((), jnp.int32)}}

        def line_loss(variables: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
            del key, step
            params = variables["params"]
            w = params["w"] if self.toy_kind == "line" else params["model"]["w"]
            value = loss.toy_scale * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
            counters = {"calls": variables["counters"]["calls"] + 1}
            return value, ({"counters": counters}, {"loss": value})

        def critic_loss(variables: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
            del batch, key
            params = variables["params"]
            # Also pulls at the line's weights, which are not this part's to move.
            value = (params["critic"] - params["model"]["w"].mean()) ** 2
            return value, ({}, {"loss": value, "at": step.astype(jnp.float32)})

        losses = {"model": line_loss}
        if self.toy_kind != "line":
            losses["critic"] = critic_loss

        def samples(variables: Any, batch: Any, key: jax.Array) -> Any:
            del variables, key
            return {"inputs": jnp.clip(batch["x"], 0, 1)[:, None, :, None, None]}

        return ToySystem(init, losses, samples)


@dataclasses.dataclass(frozen=True)
class ToyData(DataConfig):
    """Attributes:
    toy_count: examples, and as many again to evaluate with.
    """

    toy_count: int = 40

    def load(self, data_dir: Any) -> Dataset:
        del data_dir
        x = np.random.default_rng(0).normal(size=(2 * self.toy_count, 3)).astype(np.float32)
        arrays = {"x": x, "y": x @ WEIGHTS}
        halves = (slice(self.toy_count), slice(self.toy_count, None))
        return Dataset("toy", *({k: v[half] for k, v in arrays.items()} for half in halves))


def toy(*, parts: Any = None, kind: str = "line", **training: Any) -> FitConfig:
    defaults = {"steps": 40, "batch_size": 8, "chunk": 10, "checkpoint_every": 20}
    return FitConfig(
        preset="toy",
        data=ToyData(),
        model=ToyConfig(kind),
        loss=ToyLossConfig(),
        parts=parts or OnePart(PartTraining(lr=0.1)),
        training=FitTraining(**{**defaults, **training}),
    )
