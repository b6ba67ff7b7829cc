"""How fast meta-training is, against learn2learn on the same work in the same process, turn by turn.

    uv run python benchmarks/throughput.py [CASE ...]     the meta-gradient alone, on random numbers
    uv run python benchmarks/throughput.py --end-to-end   with data, optimizer and logging, as train.py runs it
    uv run python benchmarks/throughput.py --memory       peak memory by meta-batch and chunk size

Both sides have the same network and weights, learn2learn's in PyTorch's own layers, and before anything is timed their
meta-gradients are compared in float64.
"""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial

from measure import DEVICE, Step, built, conditions, in_turns, middle, ratios
from peer import Peer, check, difference
from rich.console import Console
from rich.table import Table

# fixed at sigma^2 = 1/2, where -log p is the sum of squares, as learn2learn's users write it
SINUSOID = ["dataset=sinusoid", "likelihood.learned=false", "likelihood.sigma_noise=0.7071067811865476"]
OMNIGLOT = ["dataset=omniglot", "dataset.meta_batch=32"]
A_TASK_A_CORE = ["chunk_size=2"] if DEVICE.type == "cpu" else []  # of two
CASES = {  # overrides
    "sinusoid": SINUSOID,
    "sinusoid_5_steps": [*SINUSOID, "algorithm.inner_steps=5"],
    "omniglot_5way_1shot": [*OMNIGLOT, "dataset.queries=1"],
    "omniglot_5way_5shot": [*OMNIGLOT, "dataset.shots=5", "dataset.queries=5"],
    "omniglot_20way_1shot": [
        "dataset=omniglot",
        "dataset.ways=20",
        "dataset.queries=1",
        "dataset.meta_batch=16",
        "algorithm.inner_steps=5",
        "algorithm.inner_lr=0.1",
        *A_TASK_A_CORE,
    ],
    "mini_imagenet_5way_1shot": ["dataset=mini_imagenet", *A_TASK_A_CORE],
}
ROWS = {"maml": ["algorithm=maml"], "first_order": ["algorithm=maml", "algorithm.first_order=true"]}
DEAR = ("ggn", "diagonal")  # with batch statistics
ITERATIONS = {  # of a block, ours and learn2learn's; ours are as many as lie between two steps that log
    "sinusoid": (50, 50),
    "sinusoid_5_steps": (50, 20),
    "omniglot_5way_1shot": (50, 10),
    "omniglot_5way_5shot": (50, 5),
    "omniglot_20way_1shot": (50, 5),
}
CURVATURES = ("last_layer", "kfac", *DEAR)


def main() -> None:
    """Measure the cases named on the command line, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--end-to-end", action="store_true")
    mode.add_argument("--memory", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "llama"], help="end to end maml alone unless named")
    parser.add_argument("--forms", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--chunks", nargs="+", default=(), metavar="N", help="of maml, beside the config's; or null")
    parser.add_argument("--curvatures", nargs="+", choices=CURVATURES, help="of llama; the dear ones only if named")
    parser.add_argument("--seconds", type=float, default=60.0, help="that the turns of a case go on for")
    parser.add_argument("--rounds", type=int, default=5, help="of turns, at least; end to end, exactly")
    arguments = parser.parse_args()
    console = Console(width=150)
    if arguments.memory:
        console.print(memory_table())
    elif arguments.end_to_end:
        cases = arguments.cases or [case for case in CASES if case in ITERATIONS]
        console.print(end_to_end_table(cases, arguments))
    else:
        console.print(gradient_table(arguments.cases or CASES, arguments))
    print(conditions())


def gradient_table(cases: Iterable[str], arguments: argparse.Namespace) -> Table:
    """Measure the meta-gradient alone."""
    arguments.rows = arguments.rows or [*ROWS, "llama"]
    caption = (
        "Times faster: than learn2learn's MAML, or its first-order MAML, the median of a round's ratio. Both sides' "
        "meta-gradients are the same in float64 (1e-9); 'differs by' is how much they are not in float32, where one "
        "input of a ReLU that rounding puts on the other side of zero changes the gradient of its task."
    )
    columns = ("case", "algorithm", "form", "chunk", "ms", "middle half", "times faster", "middle half", "differs by")
    table = Table(*columns, title="One meta-gradient", caption=caption)
    for case in cases:
        gradients(table, case, arguments)
        table.add_section()
    return table


def end_to_end_table(cases: Iterable[str], arguments: argparse.Namespace) -> Table:
    """Measure training runs."""
    from end_to_end import train

    caption = "Times faster: the median of a block's ratio. Start-up, compilation, validation and test do not count."
    columns = ("case", "algorithm", "form", "learn2learn, ms", "ours, ms", "middle half", "times faster", "middle half")
    table = Table(*columns, title="One iteration of training, end to end", caption=caption)
    arguments.rows = arguments.rows or ["maml"]
    for case in cases:
        for what, row, overrides in variants(case, arguments):
            check([*CASES[case], *ROWS[row]])
            for form in arguments.forms:
                settings = [*CASES[case], *overrides, f"compile={str(form == 'compiled').lower()}"]
                times = train(settings, arguments.rounds, *ITERATIONS[case])
                theirs, ours = (middle([1e3 * t for t in times[side]], 2) for side in ("learn2learn", "ours"))
                table.add_row(case, what, form, theirs[0], *ours, *middle(ratios(times, "learn2learn", "ours"), 2))
        table.add_section()
    return table


def memory_table() -> Table:
    """Measure peak memory in processes of their own."""
    from memory import peaks

    base = [*OMNIGLOT, "algorithm=maml"]
    five, checkpointed = ["dataset.shots=5", "algorithm.inner_steps=5"], "checkpoint_steps=true"
    kinds: list[tuple[str, int, str, list[str]]] = [
        ("ours", 8, "null", []),
        ("ours", 128, "8", []),
        ("ours", 128, "1", []),
        ("ours", 8, "null", five),
        ("ours", 8, "null", [*five, checkpointed]),
        ("learn2learn", 8, "1", []),
        ("learn2learn", 128, "1", []),
        ("learn2learn", 8, "1", five),
    ]
    cases = [
        (side, [*base, f"dataset.meta_batch={tasks}", f"chunk_size={chunk}", *more])
        for side, tasks, chunk, more in kinds
    ]
    title = "Peak memory of one meta-gradient: Omniglot, conv4-64, 5-way, 1 shot and 15 query images a class"
    caption = "Added: by the meta-gradient and its batch, to a process that has taken a tiny one; medians of three."
    columns = ("whose", "meta-batch", "tasks at once", "and", "added, MiB", "of the process, MiB", "over the first")
    table = Table(*columns, title=title, caption=caption)
    results = peaks(cases, repeats=3)
    for (side, tasks, chunk, more), (added, total) in zip(kinds, results, strict=True):
        at_once, over = str(tasks) if chunk == "null" else chunk, f"{added / results[0][0]:.2f}"
        table.add_row(side, str(tasks), at_once, " ".join(more), f"{added:.0f}", f"{total:.0f}", over)
    return table


def gradients(table: Table, case: str, arguments: argparse.Namespace) -> None:
    """Add the rows of a case, learn2learn's first."""
    steps: dict[str, Step] = {}
    peers: dict[str, Peer] = {}
    for row in [row for row in ROWS if row == "maml" or row in arguments.rows]:
        check([*CASES[case], *ROWS[row]])
        learner, batch = built([*CASES[case], *ROWS[row]])
        peers[row] = Peer(learner)
        steps[f"learn2learn {row}"] = partial(peers[row].meta_gradient, batch)
    cells = {f"learn2learn {row}": (row, "learn2learn", "", "") for row in peers}
    against = {name: name for name in steps}
    for what, row, overrides in variants(case, arguments):
        for form in arguments.forms:
            name = " ".join((form, *overrides))
            learner, batch = built([*CASES[case], *overrides], form == "compiled")
            steps[name] = partial(learner.meta_gradient, batch)
            against[name] = f"learn2learn {row}"
            differs = "" if "llama" in what else f"{difference(learner, peers[row], batch):.0e}"
            cells[name] = (what, form, str(learner.gradient.chunk_size or "all"), differs)
    times = in_turns(steps, arguments.seconds, case, arguments.rounds)
    for name, (what, form, chunk, differs) in cells.items():
        faster = ("", "") if name == against[name] else middle(ratios(times, against[name], name), 2)
        table.add_row(case, what, form, chunk, *middle([1e3 * t for t in times[name]], 2), *faster, differs)


def variants(case: str, arguments: argparse.Namespace) -> Iterator[tuple[str, str, list[str]]]:
    """Yield what to measure of ours: its name, the row of learn2learn to measure it against, and overrides."""
    for row in [row for row in ROWS if row in arguments.rows]:
        yield row, row, ROWS[row]
    if "maml" in arguments.rows:
        yield from (("maml", "maml", [*ROWS["maml"], f"chunk_size={size}"]) for size in arguments.chunks)
    if "llama" in arguments.rows:
        default = [name for name in CURVATURES if name not in DEAR or case.startswith("sinusoid")]
        for curvature in arguments.curvatures or default:
            yield f"llama {curvature}", "maml", ["algorithm=llama", f"curvature={curvature}"]


if __name__ == "__main__":
    main()
