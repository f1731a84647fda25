"""The parent's side of a process that steps environments, and its like without a process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from worldmodels_jax.envs import host_worker
from worldmodels_jax.envs.host_worker import EnvFaultError, EnvGroup
from worldmodels_jax.types import HostEnv

# Programs, not environments, take this long to start: imports from a cold disk.
_START_SECONDS = 120.0
# A few small matrix products a step gain nothing from threads, and the learner needs the cores.
# The accelerator belongs to the learner.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class WorkerLostError(Exception):
    """A process died or gave no answer in time; the message says which."""


class InProcessGroup:
    """Environments stepped in this process; `WorkerProcess` without a process."""

    def __init__(
        self,
        make_env: Callable[[np.random.SeedSequence], HostEnv],
        seeds: Mapping[int, np.random.SeedSequence],
    ) -> None:
        """Takes what `host_worker.EnvGroup` takes, and makes the environments when first asked."""
        self._make_env, self._seeds = make_env, seeds
        self._group: EnvGroup | None = None
        self._request: tuple[str, Any] = ("specs", None)

    @property
    def observations(self) -> np.ndarray:
        """The newest, ``(n, *observation_shape)``; the next step overwrites them."""
        assert self._group is not None
        return self._group.observations

    def send(self, command: str, argument: Any) -> None:
        """Asks for an answer; see `host_worker.EnvGroup.answer`."""
        self._request = command, argument

    def receive(self) -> Any:
        """Returns the answer to what was sent.

        Raises:
          EnvFaultError: if an environment raises an exception.
        """
        if self._group is None:
            self._group = EnvGroup(self._make_env, self._seeds)
        return self._group.answer(*self._request)

    def hang_up(self) -> None:
        """Tells the environments to close."""
        if self._group is not None:
            self._group.close()

    def end(self, patience: float) -> None:
        """Does nothing: there is no process to end."""
        del patience


class WorkerProcess:
    """Environments stepped in a process of their own.

    The process is no fork, since that of a process with JAX's threads can deadlock, and it does
    not import the main program, as `multiprocessing` would have it: that one imports all of JAX.
    """

    def __init__(
        self, make_env: bytes, seeds: Mapping[int, np.random.SeedSequence], timeout: float
    ) -> None:
        """Starts the process and does not wait for it.

        Args:
          make_env: pickled; makes one environment.
          seeds: by the environment's index in the vector.
          timeout: seconds that an answer may take.
        """
        self._timeout, self._deadline = timeout, 0.0
        self._ready, self._observations = False, np.zeros(0)
        self._start_patience = max(timeout, _START_SECONDS)
        with contextlib.ExitStack() as on_failure:
            self._channel, theirs = socket.socketpair()
            on_failure.enter_context(self._channel)
            memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
            # It has no name: nothing is left of it once both processes are gone, however they end.
            self._memory = on_failure.enter_context(tempfile.TemporaryFile(dir=memory))
            descriptors = theirs.fileno(), self._memory.fileno()
            with theirs:
                self._process = subprocess.Popen(
                    # -P: the file's own directory has modules that are named as packages are.
                    [sys.executable, "-P", host_worker.__file__]
                    + [str(number) for number in (*descriptors, os.getpid())],
                    env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": _python_path()},
                    stdin=subprocess.DEVNULL,
                    pass_fds=descriptors,
                    # Signals of the terminal are for the parent, which ends this process itself.
                    start_new_session=True,
                )
            on_failure.pop_all()
        self._channel.settimeout(self._start_patience)
        with contextlib.suppress(OSError):  # told by the first answer, which will be missing
            host_worker.send(self._channel, (make_env, dict(seeds)))

    @property
    def observations(self) -> np.ndarray:
        """The newest, ``(n, *observation_shape)``; the next step overwrites them."""
        return self._observations

    def send(self, command: str, argument: Any) -> None:
        """Asks for an answer; see `host_worker.EnvGroup.answer`. Waits for a start to finish.

        Raises:
          EnvFaultError: if the environments could not be made.
          WorkerLostError: if the process is gone or does not read.
        """
        if not self._ready:
            self._wait_for_start()
        self._channel.settimeout(self._timeout)
        self._deadline = time.monotonic() + self._timeout
        try:
            host_worker.send(self._channel, (command, argument))
        except TimeoutError as error:
            raise self._no_answer(self._timeout) from error
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Any:
        """Returns the answer to what was sent.

        Raises:
          EnvFaultError: if an environment raised an exception.
          WorkerLostError: if the process is gone or does not answer in time.
        """
        return self._receive(self._deadline, self._timeout)

    def hang_up(self) -> None:
        """Tells the process to close its environments and to exit."""
        self._channel.close()

    def end(self, patience: float) -> None:
        """Waits for the process to exit and kills it if it does not.

        Args:
          patience: seconds to wait.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        self._process.wait()
        self._channel.close()
        self._memory.close()

    def _wait_for_start(self) -> None:
        patience = self._start_patience
        specs = self._receive(time.monotonic() + patience, patience)
        shape = (len(specs), *specs[0].observation_shape)
        dtype = np.dtype(specs[0].observation_dtype)
        self._observations = host_worker.map_observations(self._memory.fileno(), shape, dtype)
        self._ready = True

    def _receive(self, deadline: float, patience: float) -> Any:
        try:
            kind, content = host_worker.receive(self._channel, deadline)
        except TimeoutError as error:
            raise self._no_answer(patience) from error
        except EOFError as error:
            raise self._death() from error
        if kind == "fault":
            raise EnvFaultError(*content)
        return content

    def _no_answer(self, patience: float) -> WorkerLostError:
        return WorkerLostError(f"gave no answer within {patience:g} s")

    def _death(self) -> WorkerLostError:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return WorkerLostError("closed its connection")
        if code >= 0:
            return WorkerLostError(f"exited with status {code}")
        hint = " (the system's way when memory runs out)" * (-code == signal.SIGKILL)
        return WorkerLostError(f"was killed by {signal.Signals(-code).name}{hint}")


def _python_path() -> str:
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)
