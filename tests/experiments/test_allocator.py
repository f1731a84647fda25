"""Memory that a process keeps between calls, counted in pages that the kernel hands out."""

import os
import platform
import subprocess
import sys

import pytest

from experiments.allocator import ENVIRONMENT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")

# As XLA does: a large block from another thread than the first, written and given back.
_PROGRAM = """
import ctypes, resource, sys, threading
from experiments.allocator import keep_memory
kept = keep_memory() if sys.argv[1] == "kept" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def use():
    block = libc.malloc(1 << 28)
    libc.memset(block, 1, 1 << 28)
    libc.free(block)
def call():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
call()
print(kept, call())
"""


def second_call(how: str, **env: str) -> tuple[str, int]:
    """What ``keep_memory`` said, and how many pages a second call was handed."""
    inherited = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    inherited.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how],
        env={**inherited, **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_a_second_call_is_handed_no_pages_again() -> None:
    # 256 MiB are 65,536 pages, or 128 huge ones.
    assert second_call("as it comes")[1] > 100
    kept, faults = second_call("kept")
    assert kept == "True"
    assert faults < 50
    assert second_call("as it comes", **ENVIRONMENT)[1] < 50


@pytest.mark.parametrize(
    "chosen", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}]
)
def test_what_the_user_has_set_stays(chosen: dict[str, str]) -> None:
    assert second_call("kept", **chosen)[0] == "False"
