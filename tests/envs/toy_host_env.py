"""Host environments for the tests of `envs.host_vector`; light, since every worker imports it."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels_jax.types import EnvSpec, HostVector, TimeStep

WALK, RAISE, HANG, DIE = 1, 2, 3, 4  # actions; 0 and 1 move


class Walk:
    """A random walk whose observation is (position, steps in the episode, noise, process id)."""

    def __init__(self, seed: np.random.SeedSequence, options: "MakeWalk") -> None:
        shape = (4,) if options.num_actions != 2 else (2, 2)
        self.spec = EnvSpec(
            "toy/Walk", shape, "float32", options.num_actions, options.discrete, options.limit
        )
        self._options = options
        self._rng = np.random.default_rng(seed)
        self._position, self._steps, self._ended = 0.0, 0, True

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, bool]:
        is_first = self._ended
        if is_first:
            self._position, self._steps = float(self._rng.normal()), 0
        else:
            if self.spec.discrete:
                assert type(action) is int
                self._fail(action)
            else:
                assert action.shape == (self.spec.num_actions,)
            self._position += float(np.sum(action) + self._rng.normal())
            self._steps += 1
        terminated = not is_first and self._position > 6
        truncated = not is_first and not terminated and self._steps >= self.spec.max_episode_steps
        self._ended = terminated or truncated
        pid = os.getpid() if self._options.shows_pid else 0
        observation = np.array([self._position, self._steps, self._rng.random(), pid], np.float32)
        observation = observation.astype(self._options.dtype).reshape(self.spec.observation_shape)
        reward = 0.0 if is_first else self._position
        return observation, reward, terminated, truncated, is_first

    def restart(self) -> None:
        self._ended = True

    def state(self) -> Any:
        if not self._options.can_save:
            return None
        return [self._rng.bit_generator.state, self._position, self._steps, self._ended]

    def restore(self, state: Any) -> None:
        self._rng.bit_generator.state, self._position, self._steps, self._ended = state

    def close(self) -> None:
        if self._options.close_log:
            with open(self._options.close_log, "a") as file:
                file.write("closed\n")

    def _fail(self, action: int) -> None:
        if action == RAISE:
            raise KeyError("lost the key")
        if action == HANG:
            time.sleep(600)
        if action == DIE:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class MakeWalk:
    """Makes walks."""

    num_actions: int = 5
    discrete: bool = True
    limit: int = 4
    shows_pid: bool = False
    can_save: bool = True
    close_log: str = ""
    dtype: str = "float32"

    def __call__(self, seed: np.random.SeedSequence) -> Walk:
        return Walk(seed, self)


def raise_value_error(seed: np.random.SeedSequence) -> Walk:
    """Fails for one environment only, and tells of the process that it is in."""
    if seed.spawn_key == (1,):
        started = {"gymnax", "optax"} & set(sys.modules)
        platforms = os.environ.get("JAX_PLATFORMS")
        raise ValueError(f"level 9 is unknown; {platforms=} started={sorted(started)}")
    return Walk(seed, MakeWalk())


def raise_module_not_found(seed: np.random.SeedSequence) -> Walk:
    """As an environment whose optional package is missing."""
    raise ModuleNotFoundError("toy needs toylib: run `pip install toylib`.")


def die_at_once(seed: np.random.SeedSequence) -> Walk:
    """As a simulator that exits where it should raise."""
    os._exit(7)


def of_different_specs(seed: np.random.SeedSequence) -> Walk:
    """A walk whose time limit depends on its index."""
    return Walk(seed, MakeWalk(limit=10 + seed.spawn_key[0]))


def play(vector: HostVector, actions: np.ndarray) -> TimeStep:
    """Steps through actions (T, E, ...); returns time steps with leading axes (T, E)."""
    steps = [vector.step(action) for action in actions]
    return TimeStep(*(np.stack(field) for field in zip(*steps, strict=True)))


def process_ids(step: TimeStep) -> list[int]:
    """Which process each walk that shows it is in."""
    return step.observation[:, 3].astype(int).tolist()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Waits for a condition and tells whether it came true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def gone(pid: int) -> bool:
    """Tells whether a process has ended, be it that nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
