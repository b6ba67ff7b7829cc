"""Other forms of convolution and norm under weights of each task's own, against the one that is used.

    uv run python benchmarks/forms.py [--compile] [--rounds N] [overrides ...]

A meta-gradient of MAML on Conv4-64, Omniglot 5-way 1-shot. Every form is checked to give the same meta-gradient.

    used        what meta_exp.models.convolution does
    grouped     PyTorch's convolution everywhere, which vmap makes one of as many groups as there are tasks
    unfold      the product with patches by torch.nn.functional.unfold, everywhere
    var-mean    as used, and the norm's variance by PyTorch's var_mean, in place of the mean square of what is centred
    last        as used, with the compiler made to lay channels last everywhere
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
from meta_exp.models.convolution import Conv2d

CASE = ["dataset=omniglot", "dataset.ways=5", "dataset.shots=1", "dataset.queries=1", "algorithm=maml"]
USED, CENTRED = Conv2d.forward, BatchNorm.forward


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
        Conv2d.forward, BatchNorm.forward = convolution, norm
        torch._inductor.config.force_layout_optimization = last
        learner, batch = built([*CASE, *arguments.overrides], arguments.compile)
        # the form is taken up at the first call by the compiler; without it, at each call
        steps[name] = partial(_with_form, convolution, norm, partial(learner.meta_gradient, batch))
        gradient = torch.cat([g.flatten() for g in steps[name]()[1].values()])
        reference = gradient if reference is None else reference
        torch.testing.assert_close(gradient, reference, rtol=1e-2, atol=1e-3)
    times = in_turns(steps, 0.0, "forms", arguments.rounds)
    title = "compiled" if arguments.compile else "eager"
    table = Table("form", "ms", "middle half", "times used", "middle half", title=f"A meta-gradient, {title}")
    for name in steps:
        table.add_row(name, *middle([1e3 * t for t in times[name]], 1), *middle(ratios(times, name, "used"), 2))
    Console(width=110).print(table)
    print(conditions())


def unfold(layer: Conv2d, x: Tensor) -> Tensor:
    """Convolve by patches [N, I, positions]."""
    (size, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
    y = layer.weight.flatten(1) @ F.unfold(x, size, 1, padding, stride) + layer.bias[:, None]
    height = (x.shape[-2] + 2 * padding - size) // stride + 1
    return y.unflatten(-1, (height, -1))


def var_mean(norm: BatchNorm, x: Tensor) -> Tensor:
    """Normalise by PyTorch's own mean and variance."""
    variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0, keepdim=True)
    return norm.affine((x - mean) * torch.rsqrt(variance + norm.eps))


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], bool]] = {
    "used": (USED, CENTRED, False),
    "grouped": (nn.Conv2d.forward, CENTRED, False),
    "unfold": (unfold, CENTRED, False),
    "var-mean": (USED, var_mean, False),
    "last": (USED, CENTRED, True),
}


def _with_form(convolution: Callable[..., Tensor], norm: Callable[..., Tensor], step: Step) -> tuple:
    Conv2d.forward, BatchNorm.forward = convolution, norm
    return step()


if __name__ == "__main__":
    main()
