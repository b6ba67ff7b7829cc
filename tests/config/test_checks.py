"""Memory that is not enough is known by what PyTorch and Python really say of it."""

import pytest
import torch

from meta_exp.config.checks import is_out_of_memory


def test_memory_that_is_not_enough():
    with pytest.raises(RuntimeError) as of_the_machine:
        torch.empty(10**15)
    with pytest.raises(MemoryError) as of_python:
        bytearray(2**62)
    for error in (of_the_machine.value, of_python.value, torch.OutOfMemoryError("CUDA out of memory. Tried to ...")):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes differ"), ValueError("out of memory, it says"), KeyError("x")):
        assert not is_out_of_memory(error)
