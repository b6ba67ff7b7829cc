"""Keep the memory that training gives back, for the next tensors, in place of returning it to the system.

The C library of Linux gives large blocks back to the system as soon as they are free, and every page of the next ones
is fetched and cleared anew. A meta-gradient makes and drops thousands of tensors of a few megabytes: on convolutional
networks this took a tenth to a third of the processor's time. The peak of the memory is much the same.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
BLOCK = 2**26  # bytes of a block above which it is given back at once; those of a chunk of tasks are smaller
FREE = 2**30  # bytes that may lie free


def keep_freed_memory() -> None:
    """Tell this process's C library; where it is not that of Linux, nothing is done."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, BLOCK)
        mallopt(M_TRIM_THRESHOLD, FREE)
