"""Checkpoints with orbax: asynchronous, atomic, the newest N kept.

A checkpoint has three items: ``train`` (all that gradient steps change; enough to act, evaluate
and dream), ``loop`` (replay, environments, keys, counters: the rest of what a resumed run needs)
and ``extra`` (JSON: the state of host environments). The state of any loop is a NamedTuple whose
field ``train`` is the first of them.
"""

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from worldmodels_jax.types import PyTree

_BYTES_PER_ARRAY = 2048  # its name, shape and placement, which orbax writes several times


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, of another run, or that cannot be written."""


class Checkpoints(NamedTuple):
    """An open checkpoint directory; see ``open_checkpoints``."""

    manager: Any

    def steps(self) -> list[int]:
        """Agent steps of the finished checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Start saving; returns once the device buffers may be overwritten.

        Args:
          step: agent steps; must be new.
          state: the loop's state.
          extra: JSON-safe.

        Raises:
          CheckpointError: if there is no room for it, or it or the one before cannot be written.
            What was saved before stays.
        """
        self._wait()
        # A full disk is found out beforehand where that is possible: what orbax's threads leave
        # behind when a write fails fills the terminal with lines that nobody can catch.
        free = shutil.disk_usage(self.manager.directory).free
        needed = _room_needed(state, free) + len(json.dumps(extra))
        if needed > free:
            raise self._unwritten(step, f"it takes up to {_size(needed)}")
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    train=ocp.args.StandardSave(state.train),
                    loop=ocp.args.StandardSave(state._replace(train=())),
                    extra=ocp.args.JsonSave(extra),
                ),
            )
        except Exception as error:
            raise self._unwritten(step, _system_reason(error)) from error

    def check(self) -> None:
        """Raise what went wrong in the last save, if that is over; wait for nothing.

        Raises:
          CheckpointError: if it could not be written.
        """
        if not self.manager.is_saving_in_progress():
            self._wait()

    def _wait(self) -> None:
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # of a dozen kinds, as when reading
            raise self._unwritten(None, _system_reason(error)) from error

    def _unwritten(self, step: int | None, reason: str) -> CheckpointError:
        """Remove what there is of a checkpoint, and say what is left."""
        directory = Path(self.manager.directory)
        for partial in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(partial, ignore_errors=True)
        free = _size(shutil.disk_usage(directory).free)
        self.manager.reload()  # it has forgotten those that the failed one would have replaced
        whole = self.steps()
        remedy = (
            f"The checkpoint at step {whole[-1]} is whole: the same command goes on from it"
            if whole
            else "There is no earlier one: the same command starts anew"
        )
        which = "a checkpoint" if step is None else f"the checkpoint at step {step}"
        return CheckpointError(
            f"cannot write {which} to {directory} ({reason}; {free} are free there). {remedy}, "
            "once there is room."
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Everything a run needs to go on.

        Args:
          step: one of ``steps()``.
          like: a state of the same structure; arrays or ``jax.ShapeDtypeStruct``.

        Raises:
          CheckpointError: if the checkpoint is damaged or of another structure.
        """
        items = self._restore(
            step,
            train=ocp.args.StandardRestore(like.train),
            loop=ocp.args.StandardRestore(like._replace(train=())),
            extra=ocp.args.JsonRestore(),
        )
        return items["loop"]._replace(train=items["train"]), items["extra"]

    def restore_train(self, step: int, like: PyTree) -> Any:
        """Only what is learned, without the replay.

        Args:
          step: one of ``steps()``.
          like: a state of the same structure; arrays or ``jax.ShapeDtypeStruct``.

        Raises:
          CheckpointError: if the checkpoint is damaged or of another structure.
        """
        return self._restore(step, train=ocp.args.StandardRestore(like))["train"]

    def _restore(self, step: int, **items: Any) -> Any:
        path = Path(self.manager.directory) / str(step)
        try:
            for item, args in items.items():
                if item != "extra":
                    _check_arrays(path / item, args.item)
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise a dozen kinds for damaged files
            older = [other for other in self.steps() if other < step]
            remedy = (
                f"move that directory away to go on from the checkpoint at step {older[-1]}"
                if older
                else "there is no older one: start a new run with another --run directory"
            )
            raise CheckpointError(
                f"cannot read the checkpoint {path}: it is damaged or was written by another "
                f"version of this library ({_reason(error)}). Nothing was changed; {remedy}."
            ) from error

    def close(self) -> None:
        """Wait for the save in flight and release the directory.

        Raises:
          CheckpointError: if it could not be written.
        """
        try:
            self._wait()
        finally:
            try:
                self.manager.close()
            except Exception as error:
                raise self._unwritten(None, _system_reason(error)) from error


def open_checkpoints(directory: Path, *, keep: int = 2, read_only: bool = False) -> Checkpoints:
    """Open a directory of checkpoints.

    Args:
      directory: made if missing, unless ``read_only``.
      keep: how many of the newest are kept.
      read_only: neither create nor delete anything.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
    )
    return Checkpoints(
        ocp.CheckpointManager(
            directory.absolute(),
            options=options,
            item_handlers={
                "train": ocp.StandardCheckpointHandler(),
                "loop": ocp.StandardCheckpointHandler(),
                "extra": ocp.JsonCheckpointHandler(),
            },
        )
    )


def abstract(tree: PyTree) -> PyTree:
    """Shapes, types and placement of a tree, for ``restore``.

    Args:
      tree: of arrays, or of ``jax.ShapeDtypeStruct``. Those without a placement get this process's
        first device, as the checkpoint's own may not exist here.
    """
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(x: Any) -> Any:
        x = ocp.utils.to_shape_dtype_struct(x)
        return x if x.sharding is not None else x.update(sharding=here)

    return jax.tree.map(leaf, tree)


def _reason(error: BaseException) -> str:
    """The first line of an error, which may be long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _system_reason(error: BaseException) -> str:
    """What the operating system said, which tensorstore puts at the end of a long line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _reason(error)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _room_needed(state: PyTree, free: int) -> int:
    """Bytes that a checkpoint may take; compressed as orbax does if it would not fit as it is."""
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    names = _BYTES_PER_ARRAY * len(leaves)
    plain = names + sum(x.nbytes for x in leaves)
    if plain <= free or not all(x.is_fully_addressable for x in leaves):
        return plain
    return names + sum(len(zlib.compress(np.asarray(x).tobytes(), 1)) for x in leaves)


def _check_arrays(item: Path, like: PyTree) -> None:
    """Raise whatever would go wrong in reading one item, reading its arrays one at a time.

    orbax reads all arrays at once. Where one fails it leaves the reads of the others behind, whose
    errors then fill the terminal with thousands of lines that nobody can catch.
    """
    for path in (item / "_METADATA", *item.glob("_sharding"), *item.glob("array_metadatas/*")):
        json.loads(path.read_text())
    if not (item / "manifest.ocdbt").exists():
        raise FileNotFoundError(f"{item} has no manifest.ocdbt")
    store = {"driver": "ocdbt", "base": f"file://{item}/"}
    found = {}
    for key in tensorstore.KvStore.open(store).result().list().result():
        name, _, kind = key.decode().rpartition("/")
        if kind == ".zarray":
            spec = {"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}
            array = tensorstore.open(spec, read=True).result()
            array.read().result()
            found[name] = tuple(array.shape)
    wanted = {name: _stored_shape(x) for name, x in ocp.tree.to_flat_dict(like, sep=".").items()}
    differing = sorted(
        name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
    )
    if differing:
        name = differing[0]
        raise ValueError(
            f"{len(differing)} arrays differ; {name} is {found.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here"
        )


def _stored_shape(x: Any) -> tuple[int, ...]:
    """The shape under which an array is written: PRNG keys are written as their data."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, x).shape
    return tuple(x.shape)
