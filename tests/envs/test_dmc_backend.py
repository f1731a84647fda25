import importlib.metadata
import subprocess
import sys
import types

import pytest

from worldmodels_jax.envs import dmc_backend
from worldmodels_jax.envs.dmc_backend import (
    find_fault,
    import_suite,
    open_camera,
    select_backend,
)

RENDERING = "dm_control._render"
BOTH_REMEDIES = (
    r"apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri.*MUJOCO_GL=egl"
    r".*apt-get install libosmesa6.*MUJOCO_GL=osmesa"
)


@pytest.fixture
def fresh_process(monkeypatch):
    """As in a process that has chosen no backend and not imported dm_control."""
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what is set in a test is undone
    monkeypatch.delitem(sys.modules, RENDERING, raising=False)


def _faults(**by_backend):
    tried = []

    def find_fault(backend):
        tried.append(backend)
        return by_backend.get(backend)

    return find_fault, tried


@pytest.mark.usefixtures("fresh_process")
def test_egl_is_preferred_and_told_to_dm_control():
    find_fault, tried = _faults()
    assert select_backend(find_fault) == "egl"
    assert tried == ["egl"]
    # The second call, and every process started from here, takes over the choice.
    assert select_backend(_faults(egl="broken since")[0]) == "egl"


@pytest.mark.usefixtures("fresh_process")
def test_osmesa_is_taken_where_egl_fails():
    find_fault, tried = _faults(egl="Cannot initialize a headless EGL display.")
    assert select_backend(find_fault) == "osmesa"
    assert tried == ["egl", "osmesa"]


@pytest.mark.parametrize("wanted", ["egl", "osmesa", "glfw"])
def test_the_choice_of_the_user_is_honoured_untried(monkeypatch, fresh_process, wanted):
    monkeypatch.setenv("MUJOCO_GL", wanted)
    find_fault, tried = _faults(egl="broken", osmesa="broken")
    assert select_backend(find_fault) == wanted
    assert tried == []


@pytest.mark.usefixtures("fresh_process")
def test_where_nothing_works_both_reasons_and_both_remedies_are_named():
    find_fault, _ = _faults(egl="no display", osmesa="no library")
    with pytest.raises(ImportError, match=f"egl: no display; osmesa: no library.*{BOTH_REMEDIES}"):
        select_backend(find_fault)


@pytest.mark.parametrize("wanted", ["", "osmesa"])
def test_an_imported_dm_control_keeps_its_backend(monkeypatch, fresh_process, wanted):
    monkeypatch.setitem(sys.modules, RENDERING, types.SimpleNamespace(BACKEND="osmesa"))
    monkeypatch.setenv("MUJOCO_GL", wanted)
    find_fault, tried = _faults()
    assert select_backend(find_fault) == "osmesa"
    assert tried == []


def test_an_imported_dm_control_with_another_backend_is_an_error(monkeypatch, fresh_process):
    monkeypatch.setitem(sys.modules, RENDERING, types.SimpleNamespace(BACKEND="osmesa"))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=egl.*already imported.*draws with osmesa"):
        select_backend()


def test_an_imported_dm_control_without_backend_is_an_error(monkeypatch, fresh_process):
    monkeypatch.setitem(sys.modules, RENDERING, types.SimpleNamespace(BACKEND=None))
    with pytest.raises(RuntimeError, match=f"imported before a backend.*{BOTH_REMEDIES}"):
        select_backend()


def test_without_dm_control_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'worldmodels_jax\[dmc\]'"):
        select_backend()


def test_mujoco_4_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0")
    with pytest.raises(ImportError, match=r"mujoco 4\.0\.0.*pip install 'mujoco>=3\.17,<4'"):
        select_backend()


def test_a_backend_that_cannot_be_loaded_says_how_to_get_one(monkeypatch):
    def fail(name):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(dmc_backend.importlib, "import_module", fail)
    with pytest.raises(
        ImportError, match=f"MUJOCO_GL=osmesa .AttributeError.*glGetError.*{BOTH_REMEDIES}"
    ):
        import_suite("osmesa")


def test_a_backend_that_makes_no_context_says_how_to_get_one(monkeypatch):
    def fail(*args):
        raise RuntimeError("Cannot create an EGL context.")

    fake = types.SimpleNamespace(mujoco=types.SimpleNamespace(Camera=fail))
    monkeypatch.setitem(sys.modules, "dm_control", fake)
    vis = types.SimpleNamespace(global_=types.SimpleNamespace())
    physics = types.SimpleNamespace(model=types.SimpleNamespace(vis=vis))
    with pytest.raises(ImportError, match=f"MUJOCO_GL=egl .*an EGL context.*{BOTH_REMEDIES}"):
        open_camera(physics, 0, 64, False, "egl")


def test_a_backend_is_tried_out_in_a_process_of_its_own():
    # dm_control refuses the name while it is imported, which would spoil this process.
    assert "MUJOCO_GL must be one of" in find_fault("no-such-backend")


def test_a_trial_that_hangs_is_a_fault(monkeypatch):
    def hang(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert find_fault("egl") == "no answer within 60 s"
