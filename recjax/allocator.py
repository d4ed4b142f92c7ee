"""How the process gets its memory on CPU, where fresh pages cost more than much arithmetic."""

import ctypes
import functools
import os
import platform

# Parameters of glibc's mallopt (mallopt(3)), and advice of madvise(2).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER, _AT_A_TIME = -1, 2**26
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2**21


@functools.cache
def keep_freed_memory() -> bool:
    """Makes glibc keep large blocks that are freed, so that the next step writes to the same pages.

    By default it maps every large block afresh and gives it back at once, and a step's temporaries
    are paid for in page faults. Without them the steps of `experiments/benchmarks/w1_two_tower.py`,
    with and without this call in turn on 2 cores, took 0.75 to 0.9 of the time. The process then
    keeps what it once needed. Linux gives it huge pages where it can, without which nearly every
    row of a large table costs a walk through the page table. It acts on the whole process, so
    commands call it, and no library function does.

    Returns:
      Whether this is a glibc that took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    taken = all(
        [
            libc.mallopt(_M_MMAP_MAX, 0),
            libc.mallopt(
                _M_ARENA_MAX, 1
            ),  # else what XLA's threads allocate is mapped all the same
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER),
            libc.mallopt(_M_TOP_PAD, _AT_A_TIME),
        ]
    )
    if taken and platform.system() == "Linux":
        _prefer_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return taken


def _prefer_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Grows the heap by so many bytes of address space, to be filled with huge pages when used."""
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(size)
    if start is None:  # a limit on address space: no huge pages then
        return
    libc.free(start)  # which keeps it, as told above
    first, last = -(-start // _HUGE_PAGE), (start + size) // _HUGE_PAGE
    libc.madvise(first * _HUGE_PAGE, (last - first) * _HUGE_PAGE, _MADV_HUGEPAGE)
