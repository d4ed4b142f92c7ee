"""How the process gets its memory on CPU, where fresh pages cost more than much arithmetic."""

import ctypes
import platform
from typing import Any

import jax

# Parameters of glibc's mallopt (mallopt(3)), and advice of madvise(2).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _AT_A_TIME = -1, 2**26
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2**21


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


def prefer_huge_pages(tree: Any) -> None:
    """Asks Linux to put large arrays of a tree of JAX arrays on huge pages where they lie on CPU.

    With pages of 4 KB nearly every row that a batch reads of a large table costs a walk through the
    page table. What is still to be written comes in huge pages at once, the rest when the kernel
    finds the time. Elsewhere than on Linux nothing happens.
    """
    if platform.system() != "Linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            if shard.device.platform == "cpu":
                start = shard.data.unsafe_buffer_pointer()
                first, last = -(-start // _HUGE_PAGE), (start + shard.data.nbytes) // _HUGE_PAGE
                if first < last:
                    advise(first * _HUGE_PAGE, (last - first) * _HUGE_PAGE, _MADV_HUGEPAGE)
