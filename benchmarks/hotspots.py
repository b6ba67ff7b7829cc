"""Where the time of a meta-gradient goes, operator by operator, and what its matrix products alone would take.

    uv run python benchmarks/hotspots.py [CASE ...] [--forms eager compiled] [--top N]

The limit is the time of the matrix products of all layers and of their first and second derivatives, in their number
and sizes, as batched products of dense matrices that lie ready: no patches to gather, no norms, no ReLU.
"""

import argparse
import statistics
from collections.abc import Iterator
from functools import partial

import torch
import torch._inductor.config
from measure import Step, built, conditions, in_turns, middle
from rich.console import Console
from rich.table import Table
from throughput import CASES
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from meta_exp.tasks.episode import Episode
from meta_exp.training.learner import Learner

Size = tuple[int, int, int]  # [rows, inner] times [inner, columns]
CALLS = 3


def main() -> None:
    """Profile the cases named on the command line, and print a table of operators and one of limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=["omniglot_5way_1shot"], help="of throughput.py")
    parser.add_argument("--forms", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--chunk", help="tasks at once, if not as the config says")
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0, help="that the turns of a case go on for")
    arguments = parser.parse_args()
    console, threads = Console(width=110), torch.get_num_threads()
    limits = Table("case", "what", "ms", "middle half", "GFLOP/s", title="The limit: the matrix products alone")
    for case in arguments.cases:
        steps: dict[str, Step] = {}
        chunk = [f"chunk_size={arguments.chunk}"] if arguments.chunk else []
        for form in arguments.forms:
            overrides, compiled = [*CASES[case], "algorithm=maml", *chunk], form == "compiled"
            torch.set_num_threads(1)  # the profiler does not look into the threads that compiled code is shared among
            learner, batch = built(overrides, compiled)
            step = partial(learner.meta_gradient, batch)
            with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):  # else it is all one operator
                console.print(operators(step, f"{case}, {form}, one core", arguments.top))
            torch.set_num_threads(threads)
            learner, batch = built(overrides, compiled)
            steps[form] = partial(learner.meta_gradient, batch)
        tasks, sizes = len(batch.query.y), list(products(learner, batch))
        at_once = learner.gradient.chunk_size if isinstance(learner.gradient.chunk_size, int) else tasks
        steps["products"] = matrix_products(sizes, tasks, at_once)
        flop = 2e-9 * tasks * sum(rows * inner * columns for rows, inner, columns in sizes)
        for name, times in in_turns(steps, arguments.seconds, case).items():
            speed = f"{flop / statistics.median(times):.1f}"
            limits.add_row(case, name, *middle([1e3 * t for t in times], 2), speed)
    console.print(limits)
    print(conditions())


def operators(step: Step, title: str, top: int) -> Table:
    """Return the operators that take the most time themselves."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:  # else PyTorch 2.11 warns
        for _ in range(CALLS):
            step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    table = Table("operator", "calls", "ms", "share", title=f"{title}: a meta-gradient's time, by operator")
    for event in events[:top]:
        time = event.self_cpu_time_total
        table.add_row(event.key[:60], f"{event.count / CALLS:.0f}", f"{time / CALLS / 1e3:.2f}", f"{time / total:.0%}")
    rest = sum(event.self_cpu_time_total for event in events[top:])
    table.add_row("the rest", "", f"{rest / CALLS / 1e3:.2f}", f"{rest / total:.0%}")
    return table


def products(learner: Learner, batch: Episode) -> Iterator[Size]:
    """Yield the products of one task, layer by layer.

    A layer is Y = X W, a convolution with its patches X [positions, 9 C] and weights W [9 C, F]. Its first derivatives
    are the products dW = X^T dY and dX = dY W^T, and the derivative of each of the three by its two factors are two
    products of the other two kinds. So a second-order inner step takes three products of each kind and the query set
    one, except that nothing is differentiated by the inputs: the first layer has no dX.
    """
    weights = [parameter for parameter in learner.model.parameters() if parameter.ndim > 1]
    strided = getattr(learner.model, "average", False)
    for points, steps in ((batch.support.y.shape[1], learner.algorithm.inner_steps), (batch.query.y.shape[1], 0)):
        side = batch.support.x.shape[-1]
        for layer, weight in enumerate(weights):
            side = -(-side // 2) if strided else side
            rows = points * side**2 if weight.ndim == 4 else points
            inner, outputs = weight[0].numel(), weight.shape[0]
            kinds = [(rows, inner, outputs), (inner, rows, outputs), (rows, outputs, inner)][: 3 if layer else 2]
            for kind in kinds:
                yield from [kind] * (steps * len(kinds) or 1)
            side = side if strided else side // 2


def matrix_products(sizes: list[Size], tasks: int, chunk: int) -> Step:
    """Return a function that multiplies matrices of these sizes for all tasks, a chunk of tasks at a time."""
    operands: dict[Size, tuple[Tensor, Tensor, Tensor]] = {}
    for rows, inner, columns in sizes:
        shapes = ((rows, inner), (inner, columns), (rows, columns))
        operands[rows, inner, columns] = tuple(torch.rand(chunk, *shape) for shape in shapes)

    def multiply() -> None:
        for _ in range(0, tasks, chunk):
            for size in sizes:
                left, right, out = operands[size]
                torch.bmm(left, right, out=out)

    return multiply


if __name__ == "__main__":
    main()
