"""Memory that was freed is written to again, and lies in huge pages where there are any."""

import pathlib
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's"
)
# Prints the page faults of writing 32 MB for the first time, and of writing as much once more
# after they were freed.
FAULTS = """
import ctypes, resource, sys, threading
from recjax.allocator import keep_freed_memory

if "kept" in sys.argv:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**25)))
    ctypes.memset(block, 1, 2**25)
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def twice():
    count()
    count()


if "thread" in sys.argv:
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
else:
    twice()
"""
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def faults(*how):
    words = [sys.executable, "-c", FAULTS, *how]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [int(line) for line in out.split()]


@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_pages_are_used_again(where):
    assert faults(where)[1] > 10 * max(faults("kept", where)[1], 1)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here"
)
def test_fresh_memory_comes_in_huge_pages():
    assert faults()[0] > 10 * max(faults("kept")[0], 1)
