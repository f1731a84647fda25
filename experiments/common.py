"""What the entry points share: flags, presets, the compilation cache, errors without tracebacks."""

import contextlib
import faulthandler
import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import app

from experiments.allocator import keep_memory
from experiments.configs import OFFLINE_PRESETS, PRESETS
from worldmodels_jax.config import ConfigError, apply_overrides, describe, split_flags
from worldmodels_jax.training.checkpoint import CheckpointError
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.fit_config import FitConfig
from worldmodels_jax.training.metrics import NonFiniteLossError
from worldmodels_jax.training.parallel import is_main_process, num_hosts

AnyConfig = TypeVar("AnyConfig")

# What a scheduler sends to end a job is for the process that is watched. That one waits in its dump
# for this program to read on, and so cannot be gone, and in a container all else with it, before
# the note is out: the list of extension modules, a dump's end, is longer than the pipe.
_WITNESS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
dump, end = b"", b"\\nExtension modules:"
while end not in dump and (part := os.read(0, 512)):
    dump += part
dump = dump.partition(end)[0].decode(errors="replace")
note = sys.argv[1] if "Fatal Python error: Aborted" in dump else ""
sys.stderr.write(dump + note)
"""


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, where the user has not chosen a place already."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "worldmodels_jax" / "jax"))


def make_config(preset: str, overrides: dict[str, str]) -> Config:
    """A preset of ``experiments.train`` with ``--config.path=value`` applied.

    Raises:
      ValueError: for an unknown preset, or an unknown or ill-typed field.
    """
    return choose(PRESETS, OFFLINE_PRESETS, "fit", preset, overrides)


def make_fit_config(preset: str, overrides: dict[str, str]) -> FitConfig:
    """A preset of ``experiments.fit`` with ``--config.path=value`` applied.

    Raises:
      ValueError: for an unknown preset, or an unknown or ill-typed field.
    """
    return choose(OFFLINE_PRESETS, PRESETS, "train", preset, overrides)


def choose(
    presets: Mapping[str, Callable[[], AnyConfig]],
    others: Collection[str],
    other_program: str,
    preset: str,
    overrides: dict[str, str],
) -> AnyConfig:
    """One of a program's presets, with its fields overridden.

    Raises:
      ValueError: if it is not one of them; told apart where it is another program's.
    """
    if preset in others:
        raise ValueError(
            f"--config={preset} is a preset of experiments.{other_program}: run python -m "
            f"experiments.{other_program} --config={preset}."
        )
    if preset not in presets:
        raise ValueError(
            f"unknown preset --config={preset}: choose one of {', '.join(sorted(presets))}."
        )
    return apply_overrides(presets[preset](), overrides)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, and a first Ctrl-C, into a request to stop, which the value tells.

    A scheduler that ends a job sends SIGTERM some seconds before it kills. A second Ctrl-C
    interrupts at once.
    """
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        del frame
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)
        # Not print: a signal may come in the middle of one, which cannot be entered twice.
        note = f"\n{signal.Signals(number).name}: saving a checkpoint, then stopping\n"
        with contextlib.suppress(OSError):
            os.write(2, note.encode())

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lost_host_note(directory: Path) -> Iterator[None]:
    """Where another host is lost, end with a paragraph on stderr that says so.

    JAX aborts a process whose peers are lost: none of its own code runs after that. So what Python
    dumps while it is aborted goes to a little program beside it, which adds the paragraph. If the
    block raises, that one stays to the end: JAX may abort as late as when it signs off.

    Args:
      directory: of the run, to name.
    """
    if num_hosts() == 1:
        yield
        return
    lost = "another host" if is_main_process() else "process 0, the coordinator, or another host"
    note = (
        f"\nerror: JAX ended process {jax.process_index()} of {num_hosts()}, most likely because "
        f"{lost} was lost; what JAX says of it is above. The run in {directory} ends on all hosts. "
        "The same commands go on from its last checkpoint, also on another number of hosts or "
        "devices.\n"
    )
    witness = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WITNESS, note],
        stdin=subprocess.PIPE,
        pipesize=4096,
        start_new_session=True,  # a Ctrl-C of the terminal is for the process that is watched
    )
    assert witness.stdin is not None
    faulthandler.enable(witness.stdin)
    yield
    faulthandler.enable()
    witness.stdin.close()
    witness.wait()


@contextlib.contextmanager
def quiet_saves() -> Iterator[None]:
    """Leave to exceptions what orbax has to say of its saves.

    It logs every step of every save; where one fails, on a full disk, the reads and writes that its
    threads leave behind fill the terminal with errors that nobody can catch.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, report = [logger.level for logger in loggers], sys.unraisablehook

    def report_others(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = report_others
    try:
        yield
    finally:
        gc.collect()  # what was left behind reports when it is collected
        sys.unraisablehook = report
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run_app(
    main: Callable[..., None],
    *,
    fields: bool = False,
    positional: bool = False,
    presets: Mapping[str, Callable[[], Any]] = PRESETS,
    default: Callable[[], Any] = Config,
) -> None:
    """Parse flags and run an entry point.

    Args:
      main: takes the overrides given as ``--config.path=value`` and, with ``positional``, the list
        of the other arguments.
      fields: whether the program takes such overrides; ``--help`` then lists them.
      positional: whether it takes arguments that are no flags.
      presets: those it knows, for ``--help``.
      default: makes the config whose fields ``--help`` lists.
    """
    module = sys.modules["__main__"]
    if fields:
        known = "\n".join(
            f"  {name}: {(make.__doc__ or '').strip().splitlines()[0]}"
            for name, make in sorted(presets.items())
        )
        module.__doc__ = (
            f"{module.__doc__}\n\nPresets (--config=NAME):\n{known}\n\n"
            f"Fields (--config.path=value), with the values of {default.__name__}:\n"
            f"{describe(default())}"
        )
    overrides: dict[str, str] = {}

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest, found = split_flags(argv) if fields else (list(argv), {})
        except ConfigError as error:
            sys.exit(f"error: {error}")
        overrides.update(found)
        return app.parse_flags_with_usage(rest)

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 and not positional:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        keep_memory()
        use_compilation_cache()
        # Which backends it looked for and did not find, and where it caches, is of no interest.
        logging.getLogger("jax").setLevel(logging.WARNING)
        message = None
        with quiet_saves():
            try:
                main(overrides, *([list(argv[1:])] if positional else []))
            except (ValueError, CheckpointError, NonFiniteLossError, ImportError, OSError) as error:
                message = f"error: {error}"
            except KeyboardInterrupt:
                message = "interrupted"
        if message:
            sys.exit(message)

    app.run(guarded, flags_parser=parse)
