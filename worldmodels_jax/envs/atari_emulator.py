"""One Atari game: frame skip, maximum of two frames, no-ops, sticky actions, lives, time limit."""

import base64
import enum
from types import ModuleType
from typing import Any

import numpy as np

from worldmodels_jax.envs.area_resize import area_resize
from worldmodels_jax.types import EnvSpec

FRAME_SKIP = 4  # raw frames per agent step
SCREEN_SIZE = (64, 64)


class Pending(enum.Enum):
    """What the next call of `Emulator.step` has to do before anything else."""

    NOTHING = "nothing"
    CONTINUE_AFTER_LIFE = "continue_after_life"
    NEW_GAME = "new_game"


class Emulator:
    """One game (a `HostEnv`): an ALE, its phase, and what draws no-ops and sticky actions.

    `atari.make_atari` makes them, checks the arguments and explains them.

    Attributes:
      spec: what a model and an agent must know; A is the size of the minimal action set.
      actions: the minimal action set, A actions of ALE.
    """

    def __init__(
        self,
        ale_py: ModuleType,
        name: str,
        rom: str,
        seed: np.random.SeedSequence,
        sticky_actions: float,
        max_noops: int,
        life_loss_terminal: bool,
        full_episode_frames: int,
    ) -> None:
        self._ale_py = ale_py
        self._sticky_actions = sticky_actions
        self._max_noops = max_noops
        self._life_loss_terminal = life_loss_terminal
        self._full_episode_frames = full_episode_frames
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", int(seed.generate_state(1)[0] >> 1))
        # ALE's saved states lack the held action, so the actions are made sticky here.
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(ale_py.roms.get_rom_path(rom))
        self.actions = list(self._ale.getMinimalActionSet())
        self._noop = ale_py.Action.NOOP
        self._held_action = self._noop
        self._rng = np.random.default_rng(seed)
        self._pending = Pending.NEW_GAME
        self._lives = 0
        height, width = self._ale.getScreenDims()
        self._screens = np.zeros((2, height, width, 3), np.uint8)
        self.spec = EnvSpec(
            name=name,
            observation_shape=(*SCREEN_SIZE, 3),
            observation_dtype="uint8",
            num_actions=len(self.actions),
            discrete=True,
            max_episode_steps=-(-full_episode_frames // FRAME_SKIP),
        )

    def restart(self) -> None:
        """Makes the next step start a new game."""
        self._pending = Pending.NEW_GAME

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Advances by one agent step, or resets if the last step was the last of its episode.

        Args:
          action: index into `actions`; ignored by a reset.

        Returns:
          Observation (64, 64, 3) uint8, reward, terminated, truncated, is_first.
        """
        if self._pending is not Pending.NOTHING:
            return self._reset(), 0.0, False, False, True
        frame, reward = self._advance(self.actions[action])
        lives, over = self._ale.lives(), self._ale.game_over(with_truncation=False)
        life_lost = self._life_loss_terminal and 0 < lives < self._lives
        self._lives = lives
        out_of_time = self._out_of_time()
        terminated = over or life_lost
        if over or out_of_time:
            self._pending = Pending.NEW_GAME
        elif life_lost:
            self._pending = Pending.CONTINUE_AFTER_LIFE
        return frame, reward, terminated, out_of_time and not terminated, False

    def state(self) -> dict[str, Any]:
        """Returns everything that the future depends on, as JSON values."""
        return {
            "ale": base64.b64encode(self._ale.cloneState(include_rng=True).serialize()).decode(),
            "rng": self._rng.bit_generator.state,
            "held_action": self._held_action.value,
            "pending": self._pending.value,
            "lives": self._lives,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state` of the same game and settings."""
        ale_state = self._ale_py.ALEState(base64.b64decode(state["ale"]))
        # The state of the console's reset switch is not part of ALE's state, and Q*bert reads it
        # in its next frame: leave it as it was when the state was saved.
        self._ale.reset_game()
        if ale_state.getEpisodeFrameNumber() > 0:
            self._ale.act(self._noop)
        self._ale.restoreState(ale_state)
        self._rng.bit_generator.state = state["rng"]
        self._held_action = self._ale_py.Action(state["held_action"])
        self._pending = Pending(state["pending"])
        self._lives = state["lives"]

    def close(self) -> None:
        """Frees the console."""
        self._ale = None

    def _reset(self) -> np.ndarray:
        frame = None
        if self._pending is Pending.CONTINUE_AFTER_LIFE:
            frame, _ = self._advance(self._noop)
            if self._ale.game_over(with_truncation=False) or self._out_of_time():
                frame = None
        if frame is None:
            frame = self._new_game()
        self._lives = self._ale.lives()
        self._pending = Pending.NOTHING
        return frame

    def _new_game(self) -> np.ndarray:
        self._ale.reset_game()
        self._held_action = self._noop
        num_noops = self._rng.integers(1, self._max_noops + 1) if self._max_noops else 0
        for _ in range(num_noops):
            self._ale.act(self._noop)
            if self._ale.game_over(with_truncation=False):
                self._ale.reset_game()
        self._ale.getScreenRGB(self._screens[0])
        return area_resize(self._screens[0], SCREEN_SIZE)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        """Repeats an action; returns the maximum of the last two raw frames and the reward sum."""
        reward, num_screens = 0.0, 0
        for raw_frame in range(FRAME_SKIP):
            if self._rng.random() >= self._sticky_actions:
                self._held_action = action
            reward += self._ale.act(self._held_action)
            over = self._ale.game_over(with_truncation=False)
            if over or raw_frame >= FRAME_SKIP - 2:
                self._ale.getScreenRGB(self._screens[num_screens])
                num_screens += 1
            if over:
                break
        # Sprites that the console draws on alternate frames only are in one of the two.
        return area_resize(self._screens[:num_screens].max(axis=0), SCREEN_SIZE), reward

    def _out_of_time(self) -> bool:
        return self._ale.getEpisodeFrameNumber() >= self._full_episode_frames
