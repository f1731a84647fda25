"""Atari 2600 games, stepped on the host.

This is the one place of the library where an object holds mutable state, because an emulator is
one. `AtariVector.save_state` turns all of it into bytes and back, so that a run can be resumed.
"""

import json
from types import ModuleType
from typing import Any

import chex
import numpy as np

from worldmodels_jax.envs.atari_emulator import FRAME_SKIP, SCREEN_SIZE, Emulator
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import EnvSpec, TimeStep

# Two-player games: loading one of them without its mode makes ALE exit the process.
_WITHOUT_SINGLE_PLAYER = frozenset({"combat", "joust", "maze_craze", "warlords"})


class AtariVector:
    """E emulators of one game behind one call; made by `make_atari`.

    Time steps are NumPy arrays with a leading axis E. The step after a terminated or truncated
    time step is a reset, per emulator, and ignores the action (as in `envs.auto_reset`).

    The emulators are stepped one after the other: ALE holds the interpreter lock while it
    emulates, so threads gain nothing (measured: 0.31 s alone, 0.32 s with four threads).

    Attributes:
      spec: what a model and an agent must know; A is the size of the minimal action set.
      num_envs: E.
    """

    def __init__(self, spec: EnvSpec, emulators: list[Emulator], settings: dict[str, Any]) -> None:
        """Takes ownership of the emulators; ``settings`` is what a saved state must agree with."""
        self.spec = spec
        self.num_envs = len(emulators)
        self._emulators = emulators
        self._settings = settings

    def reset(self) -> TimeStep:
        """Starts a new game in every emulator.

        Returns:
          The first time step: observation (E, 64, 64, 3) uint8, the other fields (E,).
        """
        for emulator in self._open_emulators():
            emulator.require_new_game()
        return self.step(np.zeros(self.num_envs, np.int32))

    def step(self, actions: np.ndarray) -> TimeStep:
        """Takes one agent step (four raw frames) in every emulator.

        Args:
          actions: (E,) integers in [0, A); ignored by emulators whose last time step was last.

        Returns:
          The time step arrived at: observation (E, 64, 64, 3) uint8, reward (E,) float32 summed
          over the raw frames and not clipped, and the flags (E,) bool.

        Raises:
          ValueError: for an action that is no integer in [0, A), or if the vector was closed.
        """
        actions = np.asarray(actions)
        chex.assert_shape(actions, (self.num_envs,))
        is_index = np.issubdtype(actions.dtype, np.integer)
        if not (is_index and ((actions >= 0) & (actions < self.spec.num_actions)).all()):
            raise ValueError(
                f"actions={actions} of {self.spec.name} are not all integers in "
                f"[0, {self.spec.num_actions}); give indices into its minimal action set."
            )
        results = zip(
            *(
                emulator.step(int(action))
                for emulator, action in zip(self._open_emulators(), actions, strict=True)
            ),
            strict=True,
        )
        dtypes = (np.uint8, np.float32, bool, bool, bool)
        fields: list[Any] = [
            np.asarray(field, dtype) for field, dtype in zip(results, dtypes, strict=True)
        ]
        return TimeStep(*fields)

    def save_state(self) -> bytes:
        """Returns the emulators, their random generators and counters as bytes.

        The current time step is not part of it: it is the caller's, who stored it already.
        """
        emulators = [emulator.state() for emulator in self._open_emulators()]
        return json.dumps({"settings": self._settings, "emulators": emulators}).encode()

    def load_state(self, state: bytes) -> None:
        """Continues, bit by bit, where `save_state` was called.

        Args:
          state: what `save_state` returned, on a vector made with the same arguments (the seed
            may differ: it is superseded).

        Raises:
          ValueError: if it was saved with other arguments.
        """
        saved = json.loads(state)
        if saved["settings"] != self._settings:
            raise ValueError(
                f"The saved state belongs to {saved['settings']}, this vector to {self._settings}; "
                "make the vector with the saved arguments."
            )
        for emulator, emulator_state in zip(
            self._open_emulators(), saved["emulators"], strict=True
        ):
            emulator.restore(emulator_state)

    def close(self) -> None:
        """Frees the emulators; every later call is an error."""
        self._emulators = []

    def _open_emulators(self) -> list[Emulator]:
        if not self._emulators:
            raise ValueError(f"This {self.spec.name} was closed; make a new one.")
        return self._emulators


def game_names() -> tuple[str, ...]:
    """Returns the games that can be played, in CamelCase as in ALE's ids, sorted.

    Raises:
      ModuleNotFoundError: if ``ale_py`` is not installed.
    """
    return tuple(sorted(_roms_by_game(_import_ale())))


def make_atari(
    game: str,
    *,
    num_envs: int,
    seed: int,
    sticky_actions: float = 0.0,
    max_noops: int = 30,
    life_loss_terminal: bool = True,
    full_episode_frames: int = 108_000,
) -> AtariVector:
    """Makes E emulators of a game as the Atari 100k benchmark plays it.

    An agent step is four raw frames; the observation is the maximum of the last two (of the last
    one, should the game end before), resized by area to 64x64 RGB; the action set is minimal.

    Args:
      game: in CamelCase, e.g. ``"Pong"``, ``"MsPacman"``.
      num_envs: E.
      seed: of no-ops and sticky actions; each emulator gets its own stream of it.
      sticky_actions: the probability, at each raw frame, that the previous raw frame's action is
        taken again.
      max_noops: a new game begins with 1 to this many no-op raw frames, uniformly; 0 for none.
      life_loss_terminal: for learning: losing a life while others remain terminates the episode,
        and the next is the game going on, one no-op step later (its reward is dropped, as any on
        arriving at a first observation). False for evaluation: an episode is a full game.
      full_episode_frames: raw frames after which a game is truncated, those of no-ops included.

    Returns:
      The vector; its first ``step`` is a reset if ``reset`` was not called.

    Raises:
      ModuleNotFoundError: if ``ale_py`` is not installed.
      ValueError: for an unknown game or a number out of its range.
    """
    settings = {
        "game": game,
        "num_envs": num_envs,
        "sticky_actions": sticky_actions,
        "max_noops": max_noops,
        "life_loss_terminal": life_loss_terminal,
        "full_episode_frames": full_episode_frames,
    }
    if not (num_envs >= 1 and 0 <= sticky_actions < 1 and 0 <= max_noops < full_episode_frames):
        raise ValueError(
            f"Out of range: {settings}; num_envs must be at least 1, sticky_actions in [0, 1) and "
            "max_noops from 0 to below full_episode_frames."
        )
    ale_py = _import_ale()
    roms = _roms_by_game(ale_py)
    if game not in roms:
        raise unknown_name_error(
            "Atari game", game, sorted(roms), "worldmodels_jax.envs.atari.game_names()"
        )
    emulators = [
        Emulator(
            ale_py,
            roms[game],
            emulator_seed,
            sticky_actions,
            max_noops,
            life_loss_terminal,
            full_episode_frames,
        )
        for emulator_seed in np.random.SeedSequence(seed).spawn(num_envs)
    ]
    spec = EnvSpec(
        name=f"atari/{game}",
        observation_shape=(*SCREEN_SIZE, 3),
        observation_dtype="uint8",
        num_actions=len(emulators[0].actions),
        discrete=True,
        max_episode_steps=-(-full_episode_frames // FRAME_SKIP),
    )
    return AtariVector(spec, emulators, settings)


def _import_ale() -> ModuleType:
    try:
        import ale_py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Atari needs ale_py, which is not installed: run "
            "`pip install 'worldmodels_jax[atari]'` (it brings the ROMs along)."
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


def _roms_by_game(ale_py: ModuleType) -> dict[str, str]:
    roms = set(ale_py.roms.get_all_rom_ids()) - _WITHOUT_SINGLE_PLAYER
    return {rom.title().replace("_", ""): rom for rom in roms}
