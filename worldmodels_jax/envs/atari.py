"""Atari 2600 games, stepped on the host."""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

from worldmodels_jax.envs.atari_emulator import Emulator
from worldmodels_jax.envs.host_vector import EnvVector, make_host_vector
from worldmodels_jax.envs.unknown_name import unknown_name_error

# Two-player games: loading one of them without its mode makes ALE exit the process.
_WITHOUT_SINGLE_PLAYER = frozenset({"combat", "joust", "maze_craze", "warlords"})


@dataclasses.dataclass(frozen=True)
class _MakeEmulator:
    """Makes one emulator of a game, in this process or in a worker; see `make_atari`."""

    game: str
    sticky_actions: float
    max_noops: int
    life_loss_terminal: bool
    full_episode_frames: int

    def __call__(self, seed: np.random.SeedSequence) -> Emulator:
        ale_py = _import_ale()
        return Emulator(
            ale_py,
            f"atari/{self.game}",
            _roms_by_game(ale_py)[self.game],
            seed,
            self.sticky_actions,
            self.max_noops,
            self.life_loss_terminal,
            self.full_episode_frames,
        )


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
    workers: int = 0,
    timeout: float = 60.0,
) -> EnvVector:
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
      workers: processes to split the emulators over; 0 for this process. On two
        busy cores two made 1.2 to 1.6 times the steps of none, and one 0.9 times. (Threads gain
        nothing: ALE holds the interpreter lock while it emulates.)
      timeout: seconds that a worker may take for one call before it is killed and replaced.

    Returns:
      The vector; its first ``step`` is a reset if ``reset`` was not called.

    Raises:
      ModuleNotFoundError: if ``ale_py`` is not installed.
      ValueError: for an unknown game or a number out of its range.
    """
    settings: dict[str, Any] = {
        "game": game,
        "sticky_actions": sticky_actions,
        "max_noops": max_noops,
        "life_loss_terminal": life_loss_terminal,
        "full_episode_frames": full_episode_frames,
    }
    if not (num_envs >= 1 and 0 <= sticky_actions < 1 and 0 <= max_noops < full_episode_frames):
        numbers = {"num_envs": num_envs, **settings}
        raise ValueError(
            f"Out of range: {numbers}; num_envs must be at least 1, sticky_actions in [0, 1) and "
            "max_noops from 0 to below full_episode_frames."
        )
    roms = _roms_by_game(_import_ale())
    if game not in roms:
        raise unknown_name_error(
            "Atari game", game, sorted(roms), "worldmodels_jax.envs.atari.game_names()"
        )
    return make_host_vector(
        _MakeEmulator(**settings),
        num_envs=num_envs,
        seed=seed,
        workers=workers,
        timeout=timeout,
        settings=settings,
    )


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
