"""Memory that was freed is written to again, without new page faults."""

import platform
import subprocess
import sys

import pytest

# Prints the page faults of writing 32 MB that were written and freed just before.
FAULTS = """
import resource, sys
import numpy as np
from recjax.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
np.ones(2**22).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**22).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    words = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_pages_are_used_again():
    assert faults("given back") > 10 * max(faults("kept"), 1)
