"""Other forms of convolution and norm under weights of each task's own, against the one that is used.

    uv run python benchmarks/forms.py [--compile] [--rounds N] [overrides ...]

A meta-gradient of MAML on Conv4-64, Omniglot 5-way 1-shot. Every form is checked to give the same meta-gradient.

    grouped     PyTorch's convolution, which vmap makes one of as many groups as there are tasks: the one used
    unfold      patches by torch.nn.functional.unfold, times the weights as a matrix
    patches     patches with the channels last, by nine slices, times the weights as a matrix
    mixed       patches for one channel and for images of 4 x 4, else grouped
    two-pass    grouped, and the norm's variance as the mean square of what is centred, in place of var_mean
    last        grouped, with the compiler made to lay channels last everywhere
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from measure import Step, built, conditions, in_turns, middle, ratios
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from meta_exp.models import BatchNorm

CASE = ["dataset=omniglot", "dataset.ways=5", "dataset.shots=1", "dataset.queries=1", "algorithm=maml"]
SMALL = 4
GROUPED, VAR_MEAN = nn.Conv2d.forward, BatchNorm.forward


def main() -> None:
    """Measure the forms in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the case, such as chunk_size=4")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    steps: dict[str, Step] = {}
    reference = None
    for name, (convolution, norm, last) in FORMS.items():
        if last and not arguments.compile:
            continue
        nn.Conv2d.forward, BatchNorm.forward = convolution, norm
        torch._inductor.config.force_layout_optimization = last
        learner, batch = built([*CASE, *arguments.overrides], arguments.compile)
        # the form is taken up at the first call by the compiler; without it, at each call
        steps[name] = partial(_with_form, convolution, norm, partial(learner.meta_gradient, batch))
        gradient = torch.cat([g.flatten() for g in steps[name]()[1].values()])
        reference = gradient if reference is None else reference
        torch.testing.assert_close(gradient, reference, rtol=1e-2, atol=1e-3)
    times = in_turns(steps, 0.0, "forms", arguments.rounds)
    title = "compiled" if arguments.compile else "eager"
    table = Table("form", "ms", "middle half", "times grouped", "middle half", title=f"A meta-gradient, {title}")
    for name in steps:
        table.add_row(name, *middle([1e3 * t for t in times[name]], 1), *middle(ratios(times, name, "grouped"), 2))
    Console(width=110).print(table)
    print(conditions())


def unfold(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve by patches [N, I, positions]."""
    (size, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
    y = layer.weight.flatten(1) @ F.unfold(x, size, 1, padding, stride) + layer.bias[:, None]
    return y.unflatten(-1, (_positions(layer, x.shape[-2]), -1))


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve by patches [N positions, I] whose channels are last."""
    (size, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
    high, wide = (_positions(layer, side) for side in x.shape[-2:])
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    starts = [(i, j) for i in range(size) for j in range(size)]
    ends = (stride * (high - 1) + 1, stride * (wide - 1) + 1)
    parts = [x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i, j in starts]
    matrix = torch.cat(parts, -1).flatten(0, 2)
    y = matrix @ layer.weight.permute(0, 2, 3, 1).flatten(1).T + layer.bias
    return y.view(len(x), high, wide, -1).permute(0, 3, 1, 2)


def mixed(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve by patches where a group has little to do: one channel, or few positions."""
    return patches(layer, x) if x.shape[1] == 1 or x.shape[-1] <= SMALL else GROUPED(layer, x)


def two_pass(norm: BatchNorm, x: Tensor) -> Tensor:
    """Normalise by the mean square of what is centred."""
    dims = [0, *range(2, x.ndim)]
    centred = x - x.mean(dims, keepdim=True)
    return norm.affine(centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + norm.eps))


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], bool]] = {
    "grouped": (GROUPED, VAR_MEAN, False),
    "unfold": (unfold, VAR_MEAN, False),
    "patches": (patches, VAR_MEAN, False),
    "mixed": (mixed, VAR_MEAN, False),
    "two-pass": (GROUPED, two_pass, False),
    "last": (GROUPED, VAR_MEAN, True),
}


def _positions(layer: nn.Conv2d, side: int) -> int:
    return (side + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1


def _with_form(convolution: Callable[..., Tensor], norm: Callable[..., Tensor], step: Step) -> tuple:
    nn.Conv2d.forward, BatchNorm.forward = convolution, norm
    return step()


if __name__ == "__main__":
    main()
