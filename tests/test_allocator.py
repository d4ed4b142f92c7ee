"""Memory that was freed is written to again; large arrays lie in huge pages."""

import os
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
# Prints whether the kernel is to use huge pages for a large array, before and after.
ADVISED = """
import jax.numpy as jnp
from recjax.allocator import prefer_huge_pages


def is_advised(address):
    inside = False
    for line in open("/proc/self/smaps"):
        name, *words = line.split()
        if not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= address < end
        elif inside and name == "VmFlags:":
            return "hg" in words


tree = {"small": jnp.ones(3), "large": jnp.ones(2**23)}
middle = tree["large"].unsafe_buffer_pointer() + 2**24
print(is_advised(middle))
prefer_huge_pages(tree)
print(is_advised(middle))
"""
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def output(program, *words):
    environment = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    words = [sys.executable, "-c", program, *words]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def faults(*how):
    return [int(line) for line in output(FAULTS, *how).split()]


def test_freed_pages_are_used_again():
    assert faults()[1] > 10 * max(faults("kept")[1], 1)


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="no huge pages here")
def test_large_arrays_are_to_lie_in_huge_pages():
    assert output(ADVISED).split() == ["False", "True"]
