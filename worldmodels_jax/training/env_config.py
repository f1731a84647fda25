"""The environment of a run: one config class for each suite, so that every field has an effect."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """A JAX-native environment; it runs inside the compiled loop.

    Attributes:
      name: one of envs.names(): a gymnax id, a Craftax id, SpriteJump or ScrollGrid.
      num_envs: E, environments stepped together.
      max_episode_steps: agent steps after which an episode is truncated; none keeps the suite's.
    """

    name: str = "Catch-bsuite"
    num_envs: int = 1
    max_episode_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class AtariConfig:
    """An Atari game, stepped on the host; the defaults are the protocol of Atari 100k.

    Attributes:
      game: in CamelCase as in ALE's ids, e.g. Pong or MsPacman.
      num_envs: E, environments stepped together.
      max_episode_steps: agent steps (four frames each) after which a game is truncated.
      workers: processes that step the games; 0 steps them in the training process.
      sticky_actions: probability that the last action is repeated on a raw frame.
      max_noops: up to this many no-ops after a reset.
      life_loss: a lost life counts as termination for learning (never in evaluation).
    """

    game: str = "Pong"
    num_envs: int = 1
    max_episode_steps: int = 27_000
    workers: int = 0
    sticky_actions: float = 0.0
    max_noops: int = 30
    life_loss: bool = True

    @property
    def name(self) -> str:
        """The environment's name."""
        return f"atari/{self.game}"


@dataclasses.dataclass(frozen=True)
class DmcConfig:
    """A DeepMind Control task from 64x64 pixels, stepped on the host.

    Attributes:
      task: domain and task, e.g. walker_walk or cup_catch.
      num_envs: E, environments stepped together.
      max_episode_steps: agent steps after which an episode is truncated; none keeps the suite's.
      workers: processes that step and render; 0 does it in the training process.
      action_repeat: simulator steps per agent step.
      camera: number of the camera; none takes the benchmark's (2 for quadrupeds, else 0).
      rendering: fast leaves out shadows, reflections and multisampling: cheaper on a CPU, but
        other pixels, so its scores compare with nothing published.
    """

    task: str = "walker_walk"
    num_envs: int = 16
    max_episode_steps: int | None = None
    workers: int = 8
    action_repeat: int = 2
    camera: int | None = None
    rendering: Literal["full", "fast"] = "full"

    @property
    def name(self) -> str:
        """The environment's name."""
        return f"dmc/{self.task}"


@dataclasses.dataclass(frozen=True)
class GymnasiumConfig:
    """A registered gymnasium environment, stepped on the host.

    Attributes:
      id: as gymnasium.make takes it, e.g. CartPole-v1 or module:Name-v0.
      num_envs: E, environments stepped together.
      max_episode_steps: agent steps after which an episode is truncated; none keeps its own.
      workers: processes that step them; 0 steps them in the training process.
      pixels: observe rendered frames in place of the environment's own observations.
      resize: height and width that frames are resized to, by area; none keeps theirs.
    """

    id: str = "CartPole-v1"
    num_envs: int = 4
    max_episode_steps: int | None = None
    workers: int = 0
    pixels: bool = False
    resize: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The environment's name."""
        return f"gymnasium/{self.id}"


AnyEnvConfig = EnvConfig | AtariConfig | DmcConfig | GymnasiumConfig
