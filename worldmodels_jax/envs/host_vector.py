"""Host environments behind one call, in this process or in worker processes that may be lost.

Environments that are stepped from Python are the one place of the library where an object holds
mutable state, because an emulator's or a simulator's is. `EnvVector.save_state` turns all of it
into bytes and back, so that a run can be resumed.
"""

import functools
import json
import logging
import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import numpy as np

from worldmodels_jax.envs.host_faults import Loss, environment_error, lost_for_good_error
from worldmodels_jax.envs.host_process import InProcessGroup, WorkerLostError, WorkerProcess
from worldmodels_jax.envs.host_worker import EnvFaultError
from worldmodels_jax.types import HostEnv, TimeStep

_MAX_LOSSES_IN_A_ROW = 3
_CLOSE_SECONDS = 5.0
_Group = InProcessGroup | WorkerProcess


def make_host_vector(
    make_env: Callable[[np.random.SeedSequence], HostEnv],
    *,
    num_envs: int,
    seed: int,
    workers: int = 0,
    timeout: float = 60.0,
    settings: Mapping[str, Any] | None = None,
) -> "EnvVector":
    """Makes E environments, each with a stream of its own of the seed.

    Time steps are the same, bit by bit, however many workers there are.

    Args:
      make_env: makes one environment. With workers it is pickled: a frozen dataclass with
        ``__call__``, or a ``functools.partial`` of a function, of an importable module.
      num_envs: E.
      seed: environment e gets ``np.random.SeedSequence(seed).spawn(E)[e]``.
      workers: processes to split the environments over, at most E of them; 0 steps all of them
        one after the other in this process.
      timeout: seconds that a worker may take for one call before it is killed and replaced; to
        start it may take two minutes.
      settings: JSON values that a saved state must agree with.

    Returns:
      The vector; its first ``step`` is a reset if ``reset`` was not called.

    Raises:
      ModuleNotFoundError: as ``make_env`` raises it.
      ValueError: likewise, for a number out of its range, if ``make_env`` cannot be sent to a
        worker, or if the environments' specs differ.
      RuntimeError: if ``make_env`` raises anything else, or kills its process again and again.
    """
    numbers = {"num_envs": num_envs, "workers": workers, "timeout": timeout}
    if not (num_envs >= 1 and workers >= 0 and timeout > 0):
        raise ValueError(
            f"Out of range: {numbers}; num_envs must be at least 1, workers at least 0 and timeout "
            "above 0 seconds."
        )
    start: Callable[[Mapping[int, np.random.SeedSequence]], _Group]
    if workers:
        try:
            pickled = pickle.dumps(make_env)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"make_env={make_env!r} cannot be sent to workers={workers} processes ({error}); "
                "make it a frozen dataclass with __call__ or a functools.partial of a function at "
                "the top of a module, or choose workers=0."
            ) from error
        start = functools.partial(WorkerProcess, pickled, timeout=timeout)
    else:
        start = functools.partial(InProcessGroup, make_env)
    return EnvVector(
        start, repr(make_env), num_envs, seed, min(max(workers, 1), num_envs), settings
    )


class EnvVector:
    """E environments behind one call (a `HostVector`); made by `make_host_vector`.

    A worker process that dies, or gives no answer in time, is replaced, and its environments by
    fresh ones, whose seeds derive from the vector's seed, their indices and the number of the
    restart. Their time step in that call is a first one. An exception in the environments' own
    code, or in this process during a call, closes the vector: the environments may be out of step.

    Attributes:
      spec: what a model and an agent must know.
      num_envs: E.
      losses: reports of the workers that were lost, in order; ``str`` makes them readable.
    """

    def __init__(
        self,
        start: Callable[[Mapping[int, np.random.SeedSequence]], _Group],
        name: str,
        num_envs: int,
        seed: int,
        num_groups: int,
        settings: Mapping[str, Any] | None,
    ) -> None:
        """Starts all groups; ``name`` stands for the environments until their spec is known."""
        self.num_envs = num_envs
        self.losses: list[Loss] = []
        self._start, self._name, self._seed = start, name, seed
        self._restarts = [0] * num_envs
        self._losses_in_a_row = [0] * num_groups
        self._members = [part.tolist() for part in np.array_split(np.arange(num_envs), num_groups)]
        self._groups: list[_Group] = []
        # Also when the interpreter exits or the vector is forgotten.
        self._stop = weakref.finalize(self, _stop, self._groups, patience=0.0)
        for members in self._members:
            self._groups.append(start(self._seeds(members)))
        specs = [spec for part in self._ask("specs", [None] * num_groups) for spec in part]
        self.spec = specs[0]
        self._name = self.spec.name
        if any(spec != self.spec for spec in specs):
            self._stop()
            raise ValueError(f"{name} makes environments of different specs: {set(specs)}.")
        settings = {"name": self._name, "num_envs": num_envs, **(settings or {})}
        self._settings = json.loads(json.dumps(settings))

    def reset(self) -> TimeStep:
        """Starts over in every environment.

        Returns:
          The first time step: observation ``(E, *observation_shape)``, the other fields ``(E,)``.

        Raises:
          ValueError: if the vector was closed.
          RuntimeError: see `step`.
        """
        self._ask("restart", [None] * len(self._members))
        shape = (self.num_envs,) if self.spec.discrete else (self.num_envs, self.spec.num_actions)
        return self._step(np.zeros(shape, np.int32 if self.spec.discrete else np.float32))

    def step(self, actions: np.ndarray) -> TimeStep:
        """Takes one agent step in every environment, in all workers at the same time.

        Args:
          actions: ``(E,)`` integers in [0, A), or ``(E, A)`` finite numbers; ignored by
            environments whose last time step was last.

        Returns:
          The time step arrived at: observation ``(E, *observation_shape)``, reward ``(E,)``
          float32 and the flags ``(E,)`` bool.

        Raises:
          ValueError: for actions out of their range, or if the vector was closed.
          RuntimeError: if an environment raises an exception, or a worker is lost four times
            without a good step between.
        """
        actions = np.asarray(actions)
        if self.spec.discrete:
            chex.assert_shape(actions, (self.num_envs,))
            is_index = np.issubdtype(actions.dtype, np.integer)
            if not (is_index and ((actions >= 0) & (actions < self.spec.num_actions)).all()):
                raise ValueError(
                    f"actions={actions} of {self._name} are not all integers in "
                    f"[0, {self.spec.num_actions}); give indices into its set of actions."
                )
        else:
            chex.assert_shape(actions, (self.num_envs, self.spec.num_actions))
            actions = actions.astype(np.float32)
            if not np.isfinite(actions).all():
                raise ValueError(
                    f"actions={actions} of {self._name} are not all finite; give vectors in "
                    f"[-1, 1]^{self.spec.num_actions}."
                )
        return self._step(actions)

    def save_state(self) -> bytes | None:
        """Returns the environments, their random generators and counters as bytes.

        The current time step is not part of it: it is the caller's, who stored it already.

        Returns:
          The bytes, or None if these environments cannot be saved.

        Raises:
          ValueError: if the vector was closed.
          RuntimeError: see `step`.
        """
        answers = self._ask("states", [None] * len(self._members))
        states = [state for part in answers for state in part]
        if any(state is None for state in states):
            return None
        saved = {"settings": self._settings, "restarts": self._restarts, "envs": states}
        return json.dumps(saved).encode()

    def load_state(self, state: bytes) -> None:
        """Continues, bit by bit, where `save_state` was called.

        Args:
          state: what `save_state` returned, on a vector made with the same arguments (the seed
            and the number of workers may differ; the state's random generators supersede the seed,
            except in environments that are lost later).

        Raises:
          ValueError: if it was saved with other arguments, or if the vector was closed.
          RuntimeError: see `step`.
        """
        saved = json.loads(state)
        if saved["settings"] != self._settings:
            raise ValueError(
                f"The saved state belongs to {saved['settings']}, this vector to {self._settings}; "
                "make the vector with the saved arguments."
            )
        self._restarts = list(saved["restarts"])
        self._ask("restore", self._split(saved["envs"]))

    def close(self) -> None:
        """Frees the environments and ends their workers; every later call is an error."""
        groups, self._groups[:] = list(self._groups), []
        _stop(groups, patience=_CLOSE_SECONDS)

    def _step(self, actions: np.ndarray) -> TimeStep:
        answers = self._ask("step", self._split(actions))
        observation: Any = np.concatenate([group.observations for group in self._groups])
        fields: list[Any] = [np.concatenate(parts) for parts in zip(*answers, strict=True)]
        return TimeStep(observation, *fields)

    def _split(self, values: Sequence[Any] | np.ndarray) -> list[Any]:
        return [values[members[0] : members[-1] + 1] for members in self._members]

    def _seeds(self, members: list[int]) -> dict[int, np.random.SeedSequence]:
        # Restarts have a branch of the seed to themselves, beside those of the E environments.
        return {
            e: np.random.SeedSequence(
                self._seed,
                spawn_key=(self.num_envs, e, self._restarts[e]) if self._restarts[e] else (e,),
            )
            for e in members
        }

    def _ask(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Sends a command to all groups, then gathers their answers."""
        if not self._groups:
            raise ValueError(f"This {self._name} was closed; make a new one.")
        lost: dict[int, WorkerLostError] = {}
        answers: list[Any] = [None] * len(arguments)
        try:
            for number, argument in enumerate(arguments):
                try:
                    self._groups[number].send(command, argument)
                except WorkerLostError as reason:
                    lost[number] = reason
            for number in range(len(arguments)):
                if number in lost:
                    continue
                try:
                    answers[number] = self._groups[number].receive()
                    if command == "step":
                        self._losses_in_a_row[number] = 0
                except WorkerLostError as reason:
                    lost[number] = reason
            for number, loss in lost.items():
                answers[number] = self._ask_anew(number, loss, command, arguments[number])
        except EnvFaultError as fault:
            self._stop()
            raise environment_error(fault, self._name, self._seed) from (fault.__cause__ or fault)
        except BaseException:
            # Some groups may have done what was asked and others not: nothing sound can follow.
            self._stop()
            raise
        return answers

    def _ask_anew(self, number: int, lost: WorkerLostError, command: str, argument: Any) -> Any:
        """Replaces a lost group until one answers; a step of fresh environments is a reset."""
        members = self._members[number]
        while True:
            for e in members:
                self._restarts[e] += 1
            restarts = max(self._restarts[e] for e in members)
            loss = Loss(self._name, tuple(members), self._seed, str(lost), restarts)
            self._losses_in_a_row[number] += 1
            if self._losses_in_a_row[number] > _MAX_LOSSES_IN_A_ROW:
                raise lost_for_good_error(loss, self._losses_in_a_row[number]) from lost
            self.losses.append(loss)
            logging.getLogger(__name__).warning("%s", loss)
            self._groups[number].end(patience=0.0)
            self._groups[number] = self._start(self._seeds(members))
            try:
                self._groups[number].send(command, argument)
                return self._groups[number].receive()
            except WorkerLostError as again:
                lost = again


def _stop(groups: list[_Group], patience: float) -> None:
    for group in groups:
        group.hang_up()
    for group in groups:
        group.end(patience)
    groups.clear()
