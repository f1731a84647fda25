"""How per-device functions are mapped over devices and hosts: the one place that knows.

Data parallelism: environments, replay, batches and dreams are split over a mesh axis, parameters
are replicated, and what per-device code reduces it reduces over the axis' name. A state outside of
a mapped function is global: its leaves have all E environments, whatever the number of devices, so
that a checkpoint of one machine goes on on another.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from worldmodels_jax.data.replay import Replay
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.online import LoopState
from worldmodels_jax.types import PyTree

AXIS = "device"
How = Literal["shard_map", "pmap"]

# Which axis of a leaf, or of all leaves below, counts environments; None: the same on all devices.
EACH_ENV = LoopState(
    train=None,  # type: ignore[arg-type]
    replay=Replay(storage=0, written=None, draws=0),  # type: ignore[arg-type]
    env_state=0,
    time_step=0,  # type: ignore[arg-type]
    memory=0,  # type: ignore[arg-type]
    episode_return=0,  # type: ignore[arg-type]
    episode_length=0,  # type: ignore[arg-type]
    key=None,  # type: ignore[arg-type]
    iteration=None,  # type: ignore[arg-type]
)


class DeviceMapping(NamedTuple):
    """A way to run per-device functions.

    Attributes:
      num_devices: over which environments and batches are split, those of all hosts.
      axis_name: what per-device code reduces over; None on a single device.
      compile: ``(function, in_layouts, out_layouts, donate) -> function`` of global arguments. A
        layout is a prefix of an argument's (or the result's) tree with, at each leaf, the axis
        that is split over devices, or None. ``donate`` says whether the first argument's memory
        may be reused.
      place: ``(tree, layout) -> tree`` of global arrays, from this host's part of them.
      fetch: ``(array split along axis 0) -> np.ndarray``, this host's part of it.
    """

    num_devices: int
    axis_name: str | None
    compile: Callable[..., Callable[..., Any]]
    place: Callable[[PyTree, PyTree], PyTree]
    fetch: Callable[[jax.Array], np.ndarray]


def with_seeds(layout: PyTree) -> PyTree:
    """The layout of a state with a leading seed axis, where ``SEED_AXES`` gives it one."""
    return jax.tree.map(lambda axis: None if axis is None else axis + 1, layout, is_leaf=_is_none)


def compiler_options(small_products: bool) -> dict[str, Any]:
    """What to tell XLA, as ``jax.jit`` and ``Lowered.compile`` take it.

    Args:
      small_products: on a CPU every product by one thread, in code of XLA's own (no YNNPACK),
        for models whose products take less time than the threads to meet or the library to be
        called; ``docs/performance.md`` has the figures. Other devices need nothing.
    """
    if not small_products or jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_multi_thread_eigen": False, "xla_cpu_experimental_ynn_fusion_type": ""}


def make_mapping(
    num_devices: int | None = None, how: How = "shard_map", *, small_products: bool = False
) -> DeviceMapping:
    """A mapping over devices.

    Args:
      num_devices: the first so many; None takes one, or with several hosts all of theirs.
      how: ``shard_map`` under ``jit``, or ``pmap`` (one host only).
      small_products: see ``compiler_options``; ``pmap`` takes none.

    Raises:
      ValueError: for more devices than there are, or a part of those of several hosts.
    """
    several_hosts = jax.process_count() > 1
    available = jax.device_count()
    if num_devices is None:
        num_devices = available if several_hosts else 1
    if not 1 <= num_devices <= available or (several_hosts and num_devices != available):
        exactly = f"all {available}" if several_hosts else f"1 to {available}"
        raise ValueError(
            f"--devices={num_devices} cannot be had: JAX sees {available} "
            f"{jax.default_backend()} devices on {jax.process_count()} hosts; give {exactly}."
        )
    if how == "pmap":
        if several_hosts:
            raise ValueError(
                f"--parallel=pmap runs on one host, not on {jax.process_count()}: leave it out."
            )
        return _pmap(num_devices)
    options = compiler_options(small_products)
    return _single(options) if num_devices == 1 else _shard_map(num_devices, options)


def per_device_config(config: Config, num_devices: int) -> Config:
    """The config whose batches are those of one device.

    Raises:
      ValueError: naming the field that cannot be split evenly.
    """
    for name, value, unit in (
        ("env.num_envs", config.env.num_envs, 1),
        ("training.batch_size", config.training.batch_size, 1),
        ("training.dream_batch", config.training.dream_batch, config.training.dream_starts),
    ):
        if value % (num_devices * unit):
            next_one = -(-value // (num_devices * unit)) * num_devices * unit
            each = f", {unit} (training.dream_starts) at a time" if unit > 1 else ""
            raise ValueError(
                f"{name}={value} cannot be split evenly over {num_devices} devices{each}: make it "
                f"a multiple of {num_devices * unit}, e.g. --config.{name}={next_one}."
            )
    training = dataclasses.replace(
        config.training,
        batch_size=config.training.batch_size // num_devices,
        dream_batch=config.training.dream_batch // num_devices,
    )
    return dataclasses.replace(config, training=training)


def join_hosts(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    *,
    heartbeat_timeout: int = 30,
) -> None:
    """Make the processes of several hosts one program; call it before anything else of JAX.

    Without arguments only where the surroundings say that there are several: a Slurm job of many
    tasks, or a TPU pod slice; else nothing happens.

    Args:
      coordinator: ``host:port`` of the first process.
      process_id: of this process, from 0.
      num_processes: how many there are.
      heartbeat_timeout: seconds without a sign of life after which a process counts as lost; all
        others are then ended.

    Raises:
      ValueError: if only some of the first three are given.
    """
    given = {"coordinator": coordinator, "process_id": process_id, "num_processes": num_processes}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"--{' and --'.join(missing)} missing: several hosts need --coordinator, --process_id "
            "and --num_processes together, or none of them on a TPU pod or under Slurm."
        )
    if missing and not _surrounded():
        return
    jax.distributed.initialize(
        coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_timeout
    )


def _surrounded() -> bool:
    """Whether Slurm or a TPU pod started several processes."""
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return slurm or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def is_main_process() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def num_hosts() -> int:
    """How many processes run this program together."""
    return jax.process_count()


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any host; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def barrier(name: str) -> None:
    """Wait for all hosts."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _single(options: dict[str, Any]) -> DeviceMapping:
    here = SingleDeviceSharding(jax.devices()[0])

    def compile_(
        function: Callable[..., Any], in_layouts: Any, out_layouts: Any, donate: bool = False
    ) -> Callable[..., Any]:
        del in_layouts, out_layouts
        return jax.jit(
            function,
            # Said outright: a state from a checkpoint is tied to its device, a first one is not,
            # and XLA would get another program to compile for it.
            in_shardings=here,
            out_shardings=here,
            donate_argnums=0 if donate else (),
            compiler_options=options,
        )

    def place(tree: PyTree, layout: PyTree) -> PyTree:
        del layout
        return jax.tree.map(jax.numpy.asarray, tree)

    return DeviceMapping(1, None, compile_, place, np.asarray)


def _shard_map(num_devices: int, options: dict[str, Any]) -> DeviceMapping:
    devices = jax.devices()[:num_devices]
    mesh = jax.make_mesh((num_devices,), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))

    def compile_(
        function: Callable[..., Any], in_layouts: Any, out_layouts: Any, donate: bool = False
    ) -> Callable[..., Any]:
        mapped = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=_specs(in_layouts),
            out_specs=_specs(out_layouts),
            # With the check, gradients of replicated parameters are summed over the axis before
            # per-device code averages them: too large by the number of devices, silently.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0 if donate else (), compiler_options=options)

    def place(tree: PyTree, layout: PyTree) -> PyTree:
        def put(axis: int | None, part: PyTree) -> PyTree:
            sharding = NamedSharding(mesh, _spec(axis))
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), part
            )

        return jax.tree.map(put, layout, tree, is_leaf=_is_none)

    return DeviceMapping(num_devices, AXIS, compile_, place, _local_part)


def _local_part(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _pmap(num_devices: int) -> DeviceMapping:
    """Global arrays are cut for, and put together after, every call."""
    devices = jax.devices()[:num_devices]

    def compile_(
        function: Callable[..., Any], in_layouts: Any, out_layouts: Any, donate: bool = False
    ) -> Callable[..., Any]:
        def numbered(number: jax.Array, *args: Any) -> Any:
            del number  # pmap wants at least one argument that differs between devices
            return function(*args)

        mapped = jax.pmap(
            numbered,
            axis_name=AXIS,
            in_axes=(0, *in_layouts),
            out_axes=out_layouts,
            devices=devices,
            donate_argnums=1 if donate else (),
        )

        def cut(axis: int | None, part: PyTree) -> PyTree:
            if axis is None:
                return part
            return jax.tree.map(lambda x: _split_axis(x, axis, num_devices), part)

        def join(axis: int | None, part: PyTree) -> PyTree:
            if axis is None:
                return part
            return jax.tree.map(lambda x: _merge_axis(x, axis), part)

        def call(*args: Any) -> Any:
            cut_args = jax.tree.map(cut, in_layouts, args, is_leaf=_is_none)
            out = mapped(np.arange(num_devices), *cut_args)
            return jax.tree.map(join, out_layouts, out, is_leaf=_is_none)

        return call

    return DeviceMapping(num_devices, AXIS, compile_, _single({}).place, np.asarray)


def _split_axis(x: jax.Array, axis: int, parts: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])


def _merge_axis(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _spec(axis: int | None) -> P:
    return P() if axis is None else P(*[None] * axis, AXIS)


def _specs(layout: PyTree) -> PyTree:
    return jax.tree.map(_spec, layout, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None
