"""Checkpoints with orbax: asynchronous, atomic, the newest N kept.

A checkpoint has three items: ``train`` (all that gradient steps change; enough to act, evaluate
and dream), ``loop`` (replay, environments, keys, counters: the rest of what a resumed run needs)
and ``extra`` (JSON: the state of host environments).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import tensorstore

from worldmodels_jax.training.learner import TrainState
from worldmodels_jax.training.online import LoopState
from worldmodels_jax.types import PyTree


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another run."""


class Checkpoints(NamedTuple):
    """An open checkpoint directory; see ``open_checkpoints``."""

    manager: Any

    def steps(self) -> list[int]:
        """Agent steps of the finished checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: LoopState, extra: dict[str, Any]) -> None:
        """Start saving; returns once the device buffers may be overwritten.

        Args:
          step: agent steps; must be new.
          state: the loop's state.
          extra: JSON-safe.
        """
        self.manager.save(
            step,
            args=ocp.args.Composite(
                train=ocp.args.StandardSave(state.train),
                loop=ocp.args.StandardSave(state._replace(train=())),  # type: ignore[arg-type]
                extra=ocp.args.JsonSave(extra),
            ),
        )

    def restore(self, step: int, like: LoopState) -> tuple[LoopState, dict[str, Any]]:
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
            loop=ocp.args.StandardRestore(like._replace(train=())),  # type: ignore[arg-type]
            extra=ocp.args.JsonRestore(),
        )
        return items["loop"]._replace(train=items["train"]), items["extra"]

    def restore_train(self, step: int, like: TrainState) -> TrainState:
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
            for item in items.keys() - {"extra"}:
                _check_arrays(path / item)
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise a dozen kinds for damaged files
            older = [other for other in self.steps() if other < step]
            remedy = (
                f"move that directory away to go on from the checkpoint at step {older[-1]}"
                if older
                else "there is no older one: start a new run with another --run directory"
            )
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"cannot read the checkpoint {path}: it is damaged or was written by another "
                f"version of this library ({reason[0][:200]}). Nothing was changed; {remedy}."
            ) from error

    def close(self) -> None:
        """Wait for the save in flight and release the directory."""
        self.manager.wait_until_finished()
        self.manager.close()


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


def _check_arrays(item: Path) -> None:
    """Read all arrays of one item, one at a time; whatever is raised means that it is damaged.

    orbax reads all arrays at once. Where one fails it leaves the reads of the others behind, whose
    errors then fill the terminal with thousands of lines that nobody can catch.
    """
    for path in (item / "_METADATA", *item.glob("_sharding"), *item.glob("array_metadatas/*")):
        json.loads(path.read_text())
    if not (item / "manifest.ocdbt").exists():
        raise FileNotFoundError(f"{item} has no manifest.ocdbt")
    store = {"driver": "ocdbt", "base": f"file://{item}/"}
    for key in tensorstore.KvStore.open(store).result().list().result():
        name, _, kind = key.decode().rpartition("/")
        if kind == ".zarray":
            spec = {"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}
            tensorstore.open(spec, read=True).result().read().result()
