"""How the C library hands out memory to compiled programs on a CPU."""

import ctypes
import os
import platform

# The settings, by their parameter of glibc's mallopt (malloc.h; -1 stands for no limit) and as
# the environment of a process that is yet to start.
_MALLOPT = {-8: 1, -4: 0, -1: -1, -2: 1 << 26}
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 62),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def keep_memory() -> bool:
    """Keep what a compiled program has freed for its next call.

    XLA takes the temporaries of a call, 2.2 GB for a full-size update, from malloc, and glibc maps
    blocks of that size anew for every call: the kernel then clears each of their pages again, a
    quarter to a half of the update's time where measured (docs/performance.md). With one arena, no
    maps of their own for large blocks and no trimming, a process keeps what it once used.

    To be called before threads are started. Settings of the user (``GLIBC_TUNABLES``,
    ``MALLOC_...``) stay as they are.

    Returns:
      Whether it was done: not with another C library, nor where the user has chosen.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(*setting) == 1 for setting in _MALLOPT.items()]
    return all(done)
