"""Memory that was freed is written to again; large arrays lie in huge pages."""

import pathlib
import platform
import subprocess
import sys

import jax.numpy as jnp
import pytest

from recjax.allocator import prefer_huge_pages

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's"
)
# Prints the page faults of writing 32 MB for the first time, and of writing as much once more
# after they were freed.
FAULTS = """
import ctypes, resource, sys
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


count()
count()
"""
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def faults(*how):
    words = [sys.executable, "-c", FAULTS, *how]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [int(line) for line in out.split()]


def test_freed_pages_are_used_again():
    assert faults()[1] > 10 * max(faults("kept")[1], 1)


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="no huge pages here")
def test_a_large_array_is_to_lie_in_huge_pages():
    array = jnp.ones(2**23)
    assert "hg" not in flags_at(array.unsafe_buffer_pointer() + 2**22)
    prefer_huge_pages({"small": jnp.ones(3), "large": array})
    assert "hg" in flags_at(array.unsafe_buffer_pointer() + 2**22)


def flags_at(address):
    """What the kernel knows of the mapping around an address."""
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= address < end
        elif inside and name == "VmFlags:":
            return words
    raise AssertionError("mapped nowhere")
