"""Worker processes end when they should and leave nothing behind."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from toy_host_env import HANG, MakeWalk, gone, process_ids, until

from worldmodels_jax.envs.host_vector import make_host_vector


def _held() -> tuple[int, list[str]]:
    """The number of open files, and the mapped memory that is shared."""
    gc.collect()
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return len(os.listdir("/proc/self/fd")), [line for line in mapped if "/dev/shm/" in line]


def test_closing_closes_the_environments_and_leaves_nothing_behind(tmp_path):
    before = _held()
    log = tmp_path / "log"
    vector = make_host_vector(
        MakeWalk(shows_pid=True, close_log=str(log)), num_envs=3, seed=0, workers=2
    )
    pids = process_ids(vector.reset())
    shared = set(_held()[1]) - set(before[1])
    assert len(shared) == 2
    assert all(line.endswith("(deleted)") for line in shared)  # no name that could stay behind
    vector.close()
    assert all(gone(pid) for pid in pids)
    assert log.read_text() == "closed\n" * 3
    assert _held() == before
    vector.close()
    for call in (vector.reset, vector.save_state, lambda: vector.step(np.zeros(3, int))):
        with pytest.raises(ValueError, match="toy/Walk was closed"):
            call()


def test_workers_end_with_a_vector_that_is_forgotten_and_not_by_signals_to_the_parent():
    before = _held()
    vector = make_host_vector(MakeWalk(shows_pid=True), num_envs=1, seed=0, workers=1)
    (pid,) = process_ids(vector.reset())
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert process_ids(vector.step(np.array([0]))) == [pid]
    assert vector.losses == []
    del vector
    assert until(lambda: gone(pid))
    assert _held() == before


def test_an_interrupted_step_closes_the_vector():
    """Some environments may have taken it: to go on would tear the time steps apart."""
    made = make_host_vector(MakeWalk(), num_envs=2, seed=0, workers=2)
    with contextlib.closing(made) as vector:
        vector.reset()
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            vector.step(np.array([0, HANG]))
        with pytest.raises(ValueError, match="toy/Walk was closed"):
            vector.save_state()


def test_workers_end_with_a_parent_that_is_killed():
    """One waits for its next command, one hangs in its environment."""
    code = (
        "import numpy as np\n"
        "from toy_host_env import HANG, MakeWalk\n"
        "from worldmodels_jax.envs.host_vector import make_host_vector\n"
        "vector = make_host_vector(MakeWalk(shows_pid=True), num_envs=2, seed=0, workers=2)\n"
        "print(*vector.reset().observation[:, 3].astype(int), flush=True)\n"
        "vector.step(np.array([0, HANG]))\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(set(pids)) == 2
        assert not any(gone(pid) for pid in pids)
        time.sleep(0.2)
        parent.kill()
    assert until(lambda: all(gone(pid) for pid in pids))
