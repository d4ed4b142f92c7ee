"""How the process gets its memory on CPU, where fresh pages cost more than much arithmetic."""

import ctypes
import platform

# Parameters of glibc's mallopt (mallopt(3)).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _AT_A_TIME = 2**31 - 1, 2**26


def keep_freed_memory() -> bool:
    """Makes glibc keep large blocks that are freed, so that the next step writes to the same pages.

    By default it maps every large block afresh and gives it back at once, and a step's temporaries
    are paid for in page faults. Without them the steps of `experiments/benchmarks/w1_two_tower.py`,
    with and without this call in turn on 2 cores, took 0.75 to 0.9 of the time. The process then
    keeps what it once needed. It acts on the whole process, so commands call it, and no library
    function does.

    Returns:
      Whether this is a glibc that took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all(
        [
            set_option(_M_MMAP_MAX, 0),
            set_option(_M_TRIM_THRESHOLD, _NEVER),
            set_option(_M_TOP_PAD, _AT_A_TIME),
        ]
    )
