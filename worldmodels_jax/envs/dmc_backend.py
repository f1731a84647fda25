"""Headless OpenGL for MuJoCo: with which backend dm_control draws, and what the camera sees.

dm_control reads ``MUJOCO_GL`` once, when it is first imported, and PyOpenGL cannot be given another
backend in the same process. So the backend is settled before that import, and is tried out in a
process of its own.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_VARIABLE = "MUJOCO_GL"
_HEADLESS = ("egl", "osmesa")  # EGL first: it also draws on a GPU
_NAMED_ALIKE = (*_HEADLESS, "glfw")
_RENDERING_MODULE = "dm_control._render"
_REMEDY = (
    "Install EGL by `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` and set MUJOCO_GL=egl, "
    "or OSMesa by `apt-get install libosmesa6` and set MUJOCO_GL=osmesa; then start a new process."
)
_TRIAL = """
from dm_control import _render
context = _render.Renderer(64, 64)
with context.make_current():
    pass
context.free()
"""
_TRIAL_SECONDS = 60.0


def find_fault(backend: str) -> str | None:
    """Tries, in a process of its own, to make an OpenGL context.

    Args:
      backend: a value of ``MUJOCO_GL``.

    Returns:
      Why none can be made, or None if one can.
    """
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env={**os.environ, _VARIABLE: backend},
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_TRIAL_SECONDS:g} s"
    if trial.returncode == 0:
        return None
    return (trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"])[-1]


def select_backend(find_fault: Callable[[str], str | None] = find_fault) -> str:
    """Settles with which OpenGL backend dm_control draws in this process and in those it starts.

    What ``MUJOCO_GL`` says is honoured, without trying it out. Where it is unset or empty, it is
    set: to ``egl`` (a GPU's, or Mesa's on the CPU) if that works here, else to ``osmesa``. This
    does not import dm_control.

    Args:
      find_fault: tells why a backend does not work, or None if it does.

    Returns:
      The backend.

    Raises:
      ModuleNotFoundError: if dm_control is not installed.
      ImportError: if no backend works, or MuJoCo is a version that dm_control does not work with.
      RuntimeError: if dm_control was already imported with another backend, or without any.
    """
    _check_installed()
    wanted = os.environ.get(_VARIABLE)
    if _RENDERING_MODULE in sys.modules:
        return _check_bound(sys.modules[_RENDERING_MODULE].BACKEND, wanted)
    if wanted:
        return wanted
    faults = []
    for backend in _HEADLESS:
        fault = find_fault(backend)
        if fault is None:
            os.environ[_VARIABLE] = backend
            return backend
        faults.append(f"{backend}: {fault}")
    raise ImportError(
        f"MuJoCo can draw with neither EGL nor OSMesa here ({'; '.join(faults)}). {_REMEDY}"
    )


def import_suite(backend: str) -> ModuleType:
    """Imports dm_control, once its backend is settled.

    Args:
      backend: what `select_backend` returned.

    Returns:
      ``dm_control.suite``.

    Raises:
      ImportError: if the backend cannot be loaded.
    """
    # OSMesa would draw in a thread of its own, which Python ends before dm_control tidies up.
    os.environ.setdefault("DISABLE_RENDER_THREAD_OFFLOADING", "1")
    with _explained(backend):
        importlib.import_module(_RENDERING_MODULE)
    return importlib.import_module("dm_control.suite")


def open_camera(physics: Any, camera: int, size: int, fast: bool, backend: str) -> Any:
    """Makes the rendering context of a simulator and looks through one of its cameras.

    Args:
      physics: a ``dm_control.mujoco.Physics`` that was not drawn yet.
      camera: its number in the model.
      size: of the image, height and width.
      fast: whether to leave out multisampling, shadows and reflections.
      backend: what `select_backend` returned.

    Returns:
      The ``dm_control.mujoco.Camera``. Its ``render()`` returns a view of one and the same buffer,
      (size, size, 3) uint8.

    Raises:
      ImportError: if the backend makes no context.
    """
    from dm_control import mujoco

    # The model's own buffer of 640x480 takes 35 MB more, and its corner has the same pixels.
    physics.model.vis.global_.offwidth = physics.model.vis.global_.offheight = size
    if fast:
        physics.model.vis.quality.offsamples = 0  # read once, when the context is made
    with _explained(backend):
        opened = mujoco.Camera(physics, size, size, camera)
    if fast:
        opened.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        opened.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return opened


@contextlib.contextmanager
def _explained(backend: str) -> Iterator[None]:
    """Says how to get a backend, whatever is raised where this one fails.

    PyOpenGL raises AttributeError where a library is missing, and a GLError where a driver fails.
    """
    try:
        yield
    except Exception as error:
        raise ImportError(
            f"MuJoCo cannot draw with MUJOCO_GL={backend} ({type(error).__name__}: {error}). "
            f"Unset MUJOCO_GL to have a backend chosen that works, if there is one. {_REMEDY}"
        ) from error


def _check_installed() -> None:
    if importlib.util.find_spec("dm_control") is None:
        raise ModuleNotFoundError(
            "The DeepMind Control Suite needs dm_control, which is not installed: run "
            "`pip install 'worldmodels_jax[dmc]'`."
        )
    version = importlib.metadata.version("mujoco")
    if int(version.split(".")[0]) >= 4:
        raise ImportError(
            f"mujoco {version} is installed, and dm_control 1.0.50 fails with mujoco 4 when it "
            "loads a task: run `pip install 'mujoco>=3.17,<4'`."
        )


def _check_bound(bound: str | None, wanted: str | None) -> str:
    if bound is None:
        raise RuntimeError(
            "dm_control was imported before a backend was chosen, and found none that works. Call "
            f"`worldmodels_jax.envs.dmc_backend.select_backend()` before that import. {_REMEDY}"
        )
    if wanted in _NAMED_ALIKE and wanted != bound:
        raise RuntimeError(
            f"MUJOCO_GL={wanted}, but dm_control was already imported in this process and draws "
            f"with {bound}: set MUJOCO_GL before dm_control is first imported, or to {bound}."
        )
    return bound
