r"""What a network does, found by running it: whether its points depend on each other, and what of it cannot adapt.

Classes and names would tell of known layers only; a layer of one's own, or a function called in a forward pass, shows
in what comes out.

What a network of one's own has to be, and ``refuse_unfit`` finds out at the start:

- a ``torch.nn.Module`` whose constructor takes ``input_shape``, that of one input, and ``outputs``, a number, beside
  keys of its own; its forward pass takes [N, *input_shape] to [N, outputs], for any N;
- a function of its parameters and inputs alone: nothing random, no buffer that it changes, the same in training and in
  evaluation, so batch statistics are those of the batch at hand;
- of operations that torch.func differentiates twice under vmap: no norm that is fused, no ``.item()`` and no branch on
  what is computed. Parameters with ``requires_grad=False`` stay as they are; the others have no gaps in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from meta_exp.config.checks import one_line, require

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
    with torch.no_grad(), _names_of_running(model) as running, _Norms(running):
        model(_example(model, input_shape))


def refuse_unfit(model: nn.Module, input_shape: Sequence[int], outputs: int) -> None:
    """Raise ValueError naming what of a network cannot adapt, and the layer where it does not."""
    name = f"model={type(model).__name__}"
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    require(bool(trained), name, "parameters that require gradients", "none")
    x = _example(model, input_shape)
    expected = f"a forward pass from {list(x.shape)} to {[len(x), outputs]}"
    with torch.no_grad(), _told(model, name, expected):
        y = model(x)
    got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
    require(got == [len(x), outputs], name, expected, got)
    require(bool(y.isfinite().all()), name, "finite outputs of normal inputs", "NaN or infinity")
    # fused optimisers would write into the gaps, or several times into one place
    loose = [key for key, value in trained.items() if torch.empty_like(value).stride() != value.stride()]
    remedy = "make each of a tensor that is .contiguous()"
    require(not loose, name, "parameters without gaps or repetitions in memory", ", ".join(loose), remedy)
    refuse_fused_norms(model, input_shape)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    with torch.no_grad(), _names_of_running(model) as running, _Randomness(running):
        model(x)
    changed = [key for key, value in model.named_buffers() if not torch.equal(value, buffers[key])]
    remedy = "compute it anew in each pass, of the batch at hand"
    require(not changed, name, "buffers that stay as they are", f"{', '.join(changed)} changed", remedy)
    with torch.no_grad():
        same = torch.equal(model.eval()(x), model.train()(x))
    require(same, name, "the same outputs in training and in evaluation", "others")

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).square().mean()

    def objective(params: dict[str, Tensor], x: Tensor) -> Tensor:
        gradient = grad(loss)(params, x)
        return loss({key: value - 0.01 * gradient[key] for key, value in params.items()}, x)

    params = {key: value.detach() for key, value in trained.items()}
    with _told(model, name, "operations that torch.func differentiates twice under vmap"):
        vmap(grad(objective), (None, 0))(params, torch.stack([x, -x]))


@contextmanager
def _told(model: nn.Module, name: str, expected: str) -> Iterator[None]:
    """Tell of any error in one line, with the layer that ran."""
    with _names_of_running(model) as running:
        try:
            yield
        except Exception as error:  # the network's own code, which may fail in any way
            layer = f" in layer {running[-1][0]!r}" if running and running[-1][0] else ""
            got = f"{type(error).__name__}{layer}: {one_line(error)}"
            raise ValueError(f"{name}: expected {expected}, got {got}") from error


def _example(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return two points of no meaning, [2, *input_shape]."""
    parameter = next(model.parameters())
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    return x.to(parameter)


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


class _Watch(TorchDispatchMode):
    """Sees every operator, functional calls included, and refuses some by the layer that calls them."""

    expected: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(self, running: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.running = running

    def refused(self, func: Any) -> str | None:
        """Return the name of an operator that is refused."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if called := self.refused(func):
            name, module = self.running[-1]
            require(False, f"model layer {name!r}", self.expected, f"{called} in {type(module).__name__}", self.remedy)
        return func(*args, **(kwargs or {}))


class _Norms(_Watch):
    """PyTorch's norms end in operators of telling names."""

    expected = "a norm with correct higher derivatives"
    remedy = "use meta_exp.models.BatchNorm or GroupNorm"

    def refused(self, func: Any) -> str | None:
        return next((norm for norm in FUSED if norm in func.__name__), None)


class _Randomness(_Watch):
    """PyTorch marks the operators that draw random numbers."""

    expected = "nothing random, which would make a task's objective another at each look"
    remedy = "leave dropout out (p=0)"

    def refused(self, func: Any) -> str | None:
        return str(func.__name__) if torch.Tag.nondeterministic_seeded in func.tags else None


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
