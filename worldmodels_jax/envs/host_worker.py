"""A group of environments and the program that steps one in a process of its own.

Only NumPy and the standard library are imported here, and `host_process` runs this file by its
path: the package around it starts JAX, which a process that steps a simulator can do without.
"""

import contextlib
import json
import logging
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from worldmodels_jax.types import EnvSpec, HostEnv

_PARENT_CHECK_SECONDS = 1.0


class EnvFaultError(Exception):
    """An environment's own code raised an exception.

    Attributes:
      during: what was asked of it, e.g. ``"step"``.
      environment: its index in the vector, or None if ``make_env`` itself could not be unpickled.
      kinds: names of the exception's class and of its bases.
      message: of the exception.
      trace: its traceback as text.
    """

    def __init__(
        self, during: str, environment: int | None, kinds: list[str], message: str, trace: str
    ) -> None:
        super().__init__(during, environment, kinds, message, trace)
        self.during, self.environment, self.kinds = during, environment, kinds
        self.message, self.trace = message, trace

    def __str__(self) -> str:
        return f"{self.during} raised\n{self.trace}"


@contextlib.contextmanager
def _fault_of(environment: int | None, during: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        trace = traceback.format_exc()
        raise EnvFaultError(during, environment, kinds, str(error), trace) from error


class EnvGroup:
    """Environments that are stepped one after the other, n of them.

    Attributes:
      specs: of each.
      observations: the newest, ``(n, *observation_shape)``; each step overwrites them.
    """

    def __init__(
        self,
        make_env: Callable[[np.random.SeedSequence], "HostEnv"],
        seeds: Mapping[int, np.random.SeedSequence],
        allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.zeros,
    ) -> None:
        """Makes the environments.

        Args:
          make_env: of one environment.
          seeds: by the environment's index in the vector.
          allocate: memory for the observations.

        Raises:
          EnvFaultError: if one cannot be made.
        """
        self._envs: dict[int, HostEnv] = {}
        try:
            for index, seed in seeds.items():
                with _fault_of(index, "make"):
                    self._envs[index] = make_env(seed)
        except BaseException:
            self.close()
            raise
        self.specs: list[EnvSpec] = [env.spec for env in self._envs.values()]
        spec = self.specs[0]
        shape = (len(self._envs), *spec.observation_shape)
        self.observations = allocate(shape, np.dtype(spec.observation_dtype))

    def answer(self, command: str, argument: Any) -> Any:
        """Carries out a command.

        Args:
          command: ``"specs"``, ``"step"``, ``"restart"``, ``"states"`` or ``"restore"``.
          argument: actions for ``"step"``, states for ``"restore"``.

        Returns:
          The specs; reward, terminated, truncated and is_first of a step, ``(n,)`` each; the
          states as JSON values.

        Raises:
          EnvFaultError: if an environment raises an exception.
        """
        match command:
            case "specs":
                return self.specs
            case "step":
                return self._step(argument)
            case "restart":
                for index, env in self._envs.items():
                    with _fault_of(index, command):
                        env.restart()
                return None
            case "states":
                return [self._state(index, env) for index, env in self._envs.items()]
            case "restore":
                for (index, env), state in zip(self._envs.items(), argument, strict=True):
                    with _fault_of(index, command):
                        env.restore(state)
                return None
        raise ValueError(f"{command=}")

    def close(self) -> None:
        """Closes all environments, those after a failing one too."""
        while self._envs:
            index, env = self._envs.popitem()
            try:
                env.close()
            except Exception:
                logging.getLogger(__name__).warning("environment %d: close", index, exc_info=True)

    def _step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        shape, dtype = self.observations.shape[1:], self.observations.dtype
        results = []
        for row, (index, env) in enumerate(self._envs.items()):
            with _fault_of(index, "step"):
                action = actions[row]
                observation, *rest = env.step(action if action.ndim else int(action))
                observation = np.asarray(observation)
                if observation.shape != shape or observation.dtype != dtype:
                    raise ValueError(
                        f"the observation is {observation.dtype}{list(observation.shape)}, "
                        f"where its spec says {dtype}{list(shape)}"
                    )
                self.observations[row] = observation
                results.append(rest)
        dtypes = (np.float32, bool, bool, bool)
        fields = zip(*results, strict=True)
        return tuple(np.array(field, dtype) for field, dtype in zip(fields, dtypes, strict=True))

    def _state(self, index: int, env: "HostEnv") -> Any:
        with _fault_of(index, "state"):
            return json.loads(json.dumps(env.state()))


def send(channel: socket.socket, message: Any) -> None:
    """Sends one message.

    Raises:
      OSError: if the other side is gone, or does not read within the socket's timeout.
    """
    payload = pickle.dumps(message)
    channel.sendall(len(payload).to_bytes(8, "big") + payload)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """Receives one message.

    Args:
      channel: where from.
      deadline: a time of ``time.monotonic``; None waits for ever.

    Raises:
      TimeoutError: if the message is not complete by the deadline.
      EOFError: if the other side is gone.
    """
    size = int.from_bytes(_receive_bytes(channel, 8, deadline), "big")
    return pickle.loads(_receive_bytes(channel, size, deadline))


def _receive_bytes(channel: socket.socket, count: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < count:
        if deadline is not None:
            # What lies there already is taken even when the caller comes late.
            channel.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            piece = channel.recv(min(count - len(received), 2**20))
        except ConnectionError:
            piece = b""
        if not piece:
            raise EOFError
        received += piece
    return bytes(received)


def map_observations(descriptor: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in a file's memory, shared by all that map it, and freed with the last of them."""
    size = dtype.itemsize * int(np.prod(shape))
    return np.frombuffer(mmap.mmap(descriptor, size), dtype).reshape(shape)


def main(channel_descriptor: int, memory_descriptor: int, parent: int) -> None:
    """Serves a parent process until its end of the channel is closed.

    Args:
      channel_descriptor: of a socket. The first message holds the pickled ``make_env`` and the
        seeds; every later one is a command with its argument.
      memory_descriptor: of an empty file that will hold the observations.
      parent: its process id.
    """
    # A parent that is told to stop still saves these environments; it ends them itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        # Written, not truncated to size: memory that is missing is an error here, not a signal
        # in the middle of a step.
        with open(memory_descriptor, "wb", closefd=False) as file:
            file.write(bytes(dtype.itemsize * int(np.prod(shape))))
        return map_observations(memory_descriptor, shape, dtype)

    with socket.socket(fileno=channel_descriptor) as channel:
        pickled, seeds = receive(channel)
        try:
            with _fault_of(None, "unpickle"):
                make_env = pickle.loads(pickled)
            group = EnvGroup(make_env, seeds, allocate)
        except EnvFaultError as fault:
            send(channel, ("fault", fault.args))
            return
        send(channel, ("ready", group.specs))
        try:
            while True:
                command, argument = receive(channel)
                try:
                    message = "answer", group.answer(command, argument)
                except EnvFaultError as fault:
                    message = "fault", fault.args
                send(channel, message)
        finally:
            group.close()


def _exit_after(parent: int) -> None:
    """Ends this process after its parent, however deep an environment hangs."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):
        main(*map(int, sys.argv[1:]))
