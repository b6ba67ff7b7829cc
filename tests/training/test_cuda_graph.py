"""A CUDA graph computes what its function does and leaves earlier results alone; off a GPU the function is called."""

import pytest
import torch

from meta_exp.training.cuda_graph import CudaGraph

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def of(number, device="cuda"):
    generator = torch.Generator().manual_seed(number)
    return {"a": torch.randn(3, 4, generator=generator).to(device), "b": torch.full((), number, device=device)}


def function(values, factor):
    return [values["a"].exp() * factor, values["a"].double().sum(), values["b"] + 1, factor]


def test_what_is_not_on_a_gpu_is_called():
    values = of(1, "cpu")
    torch.testing.assert_close(CudaGraph(function)(values, 2.0), function(values, 2.0), rtol=0, atol=0)


@GPU
def test_results_stay_and_are_the_functions():
    graph, calls = CudaGraph(counted := Counted()), [(of(n), 2.0) for n in range(4)]
    results = [graph(*call) for call in calls]
    for result, call in zip(results, calls, strict=True):
        torch.testing.assert_close(result, function(*call), rtol=0, atol=0)
    assert counted.calls == 3  # for the first results, and twice to record it


@GPU
def test_a_graph_for_each_shape_and_plain_value():
    graph = CudaGraph(function)
    small = {"a": torch.ones(2, 2, device="cuda"), "b": torch.zeros((), device="cuda")}
    for values in (of(1), small, of(2)):
        for factor in (2.0, 3.0):
            torch.testing.assert_close(graph(values, factor), function(values, factor), rtol=0, atol=0)


@GPU
def test_what_cannot_be_recorded_is_called(caplog):
    """Here its results depend on a value, and it has to wait for that."""
    caplog.set_level("INFO")
    graph = CudaGraph(lambda x: x + 1 if x.sum() > 0 else x - 1)
    for sign in (1, -1, 1):
        x = torch.full((3,), float(sign), device="cuda")
        torch.testing.assert_close(graph(x), x + sign, rtol=0, atol=0)
    assert caplog.text.count("no CUDA graph") == 1


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        return function(*arguments)
