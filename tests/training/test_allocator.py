"""Memory that is given back is taken again without the system's help."""

import resource
import sys

import commands
import pytest

SCRIPT = """
import resource, sys, torch
from meta_exp.training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for k in range(25):
    torch.ones(12 * 2**20)
    if k == 19:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is told")
def test_pages_are_not_fetched_anew():
    """Of five tensors of 48 MB after twenty others, of which the heap takes some to settle."""

    def faults(way):
        command = [sys.executable, "-c", SCRIPT, way]
        done = commands.finished(command)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    pages = 5 * 48 * 2**20 // max(resource.getpagesize(), 2**21)  # were they huge ones
    assert faults("kept") < pages / 2
    assert faults("default") >= pages
