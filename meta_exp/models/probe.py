"""What a network does, found by running it once: whether its points depend on each other, and which norms it calls.

Classes and names would tell of known layers only; a layer of one's own, or a function called in a forward pass, shows
in what comes out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from meta_exp.config.checks import require

POINTS, TRIALS = 4, 2
FUSED = ("batch_norm", "layer_norm", "instance_norm")  # in names of PyTorch's operators


@torch.no_grad()
def couples_points(model: nn.Module, input_shape: Sequence[int]) -> bool:
    """Whether an output depends on other points of its batch, as it does through batch statistics.

    One point of a random batch is changed, and the others' outputs are looked at, in float64 and with parameters that
    are moved at random: zeros among them, as initial scales may be, would hide what depends on them.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    model = deepcopy(model)
    for module in model.modules():  # anew, not in place, which no transform of torch.func would allow
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if value.is_floating_point():
                kind = nn.Parameter if isinstance(value, nn.Parameter) else nn.Buffer
                setattr(module, name, kind(value.detach().double()))
    for _ in range(TRIALS):
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(value + 0.1 * noise(value)))
        x = noise(torch.zeros(POINTS, *input_shape, device=next(model.parameters()).device))
        other = torch.cat([noise(x[:1]), x[1:]])
        before, after = (model(points)[1:] for points in (x, other))
        if not torch.allclose(before, after, rtol=1e-9, atol=1e-12 * float(before.abs().max())):
            return True
    return False


def refuse_fused_norms(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Raise ValueError naming the first layer that calls a norm whose higher derivatives PyTorch gets wrong."""
    parameter = next(model.parameters())
    x = torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad(), _names_of_running(model) as running, _Norms(running):
        model(x)


def refuse_repeated_layers(model: nn.Module) -> None:
    """Raise ValueError naming a layer that stands in the network twice: functional_call does not put it back whole.

    Layers that share parameters, but are layers of their own, are put back.
    """
    names: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        first = names.setdefault(id(module), name)
        repeated = first != name and any(True for _ in module.parameters())
        remedy = "give it a layer of its own, which may share the other's parameters"
        require(
            not repeated, f"model layer {name!r}", "a layer that stands there once", f"layer {first!r} again", remedy
        )


class _Norms(TorchDispatchMode):
    """Sees every operator, functional calls included; PyTorch's norms end in one of a telling name."""

    def __init__(self, running: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.running = running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = next((norm for norm in FUSED if norm in func.__name__), None)
        if called:
            name, module = self.running[-1]
            expected, remedy = "a norm with correct higher derivatives", "use meta_exp.models.BatchNorm or GroupNorm"
            require(False, f"model layer {name!r}", expected, f"{called} in {type(module).__name__}", remedy)
        return func(*args, **(kwargs or {}))


@contextmanager
def _names_of_running(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Give the stack of modules whose forward pass runs, with their names."""
    running: list[tuple[str, nn.Module]] = []
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, _inputs: Any, name: str = name) -> None:
            running.append((name, module))

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            running.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
