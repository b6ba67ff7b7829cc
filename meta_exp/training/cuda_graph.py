"""A function on a GPU as one CUDA graph: its operations are recorded once and started together at each further call.

To start the operations of a small network one after another takes a processor ten times as long as a GPU takes to
compute them. A graph reads from the places that it was recorded with and writes to the same ones at each call, so that
arguments are copied there, and results from there. What cannot be recorded, as an operation that waits for a value, is
called as it is.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

log = logging.getLogger(__name__)
Groups = list[list[int]]  # the places of tensors that are copied in one operation


class CudaGraph:
    """The same function, of nested tensors on a GPU and of plain values; nothing else may change its results.

    A graph is recorded for each set of shapes and plain values that it is called with.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._recorded: dict[tuple[Any, ...], Callable[[list[Tensor]], Any]] = {}
        self._fails = False

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's results, which a further call leaves alone."""
        leaves, structure = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self._fails or not all(tensor.is_cuda for tensor in tensors):
            return self.function(*arguments)
        key = tuple((leaf.shape, leaf.stride()) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if key in self._recorded:
            return self._recorded[key](tensors)
        results = self.function(*arguments)
        try:
            self._recorded[key] = self._record(leaves, structure)
        except RuntimeError as error:
            self._fails = True
            log.info("no CUDA graph can be recorded of it: %s", str(error).splitlines()[0])
            torch.cuda.synchronize()
        return results

    def _record(self, leaves: list[Any], structure: Any) -> Callable[[list[Tensor]], Any]:
        held = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(held, structure)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set up what they need at their first use, which is not recorded
            self.function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = self.function(*arguments)
        read = [leaf for leaf in held if isinstance(leaf, Tensor)]
        written, shape = tree_flatten(results)
        alike_read, alike_written = _alike(read), _alike(written)

        def replay(tensors: list[Tensor]) -> Any:
            _copy(tensors, read, alike_read)
            graph.replay()
            kept = [torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in written]
            _copy(written, kept, alike_written)
            return tree_unflatten(kept, shape)

        return replay


def _alike(leaves: Sequence[Any]) -> Groups:
    """Return the places of the tensors of each type."""
    types: dict[torch.dtype, list[int]] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            types.setdefault(leaf.dtype, []).append(place)
    return list(types.values())


def _copy(these: Sequence[Any], there: Sequence[Any], alike: Groups) -> None:
    for places in alike:
        torch._foreach_copy_([there[place] for place in places], [these[place] for place in places])
