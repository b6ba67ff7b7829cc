"""The cost of Omniglot's episodes: drawing a meta-batch, opening the store, and the memory that processes share.

    taskset -c 0 uv run python benchmarks/draw.py [ROOT] [--rounds N]

A meta-batch has 32 tasks of 5 ways and 1 shot; as in training, one batch lives while the next is drawn. The cases take
turns. Wall time is what a training waits, and holds what other jobs take of the cores; CPU time is the draw's own.
Memory is the proportional set size, in which each page counts by its share, summed over two processes: what it grows by
when the first opens the store, and when the second does.
"""

import argparse
import os
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from meta_exp.tasks import Omniglot
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.stream import draw_batch

CASES = [(rotations, queries) for rotations in (True, False) for queries in (1, 15)]
SMAPS = Path("/proc/self/smaps_rollup")


def main() -> None:
    """Measure all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", default=os.environ.get("META_EXP_DATA") or "data")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    Omniglot(arguments.root).store  # noqa: B018, made where there is none, so that the openings below find it
    openings = sorted(opening(arguments.root) for _ in range(10))
    shared = memory(arguments.root) if SMAPS.exists() else None
    table = Table(
        "rotations", "queries", "median, ms", "best, ms", "CPU, ms", title=f"{torch.get_num_threads()} threads"
    )
    for (rotations, queries), times in measure(arguments.root, arguments.rounds).items():
        wall, cpu = zip(*times, strict=True)
        figures = (statistics.median(wall), min(wall), statistics.median(cpu))
        table.add_row("yes" if rotations else "no", f"{queries}", *(f"{1e3 * seconds:.2f}" for seconds in figures))
    Console(width=110).print(table)
    print(f"opening the store: median {statistics.median(openings):.3f} s, best {openings[0]:.3f} s")
    if shared:
        print("memory: {:.1f} MB with one process, {:.1f} MB with two".format(*shared))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def opening(root: str) -> float:
    """Return the seconds that it takes to open the store, its check included."""
    started = time.perf_counter()
    Omniglot(root).store  # noqa: B018
    return time.perf_counter() - started


def measure(root: str, rounds: int) -> dict[tuple[bool, int], list[tuple[float, float]]]:
    """Return the seconds, by the wall and of CPU, that each draw of a case takes, after two rounds to warm up."""
    families = {case: Omniglot(root, rotations=case[0], queries=case[1]) for case in CASES}
    batches: dict[tuple[bool, int], Episode] = {}
    times: dict[tuple[bool, int], list[tuple[float, float]]] = {case: [] for case in CASES}
    for k in track(range(rounds + 2), "draw", console=Console(stderr=True), transient=True):
        for case, family in families.items():
            wall, cpu = time.perf_counter(), time.process_time()
            batches[case] = draw_batch(family, 0, "train", k)
            times[case].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {case: seconds[2:] for case, seconds in times.items()}


def memory(root: str) -> tuple[float, float]:
    """Return the megabytes that two processes grow by when one opens the store, and when both do."""
    context = get_context("spawn")
    pipes, ends = zip(*(context.Pipe() for _ in range(2)), strict=True)
    readers = [context.Process(target=reader, args=(root, end)) for end in ends]
    for process in readers:
        process.start()

    def total(opener: Connection | None = None) -> float:
        """Let ``opener`` open the store, and ask both processes what they take."""
        for pipe in pipes:
            pipe.send(pipe is opener)
            pipe.recv()
        for pipe in pipes:  # once more, now that the other has opened it
            pipe.send(False)
        return sum(pipe.recv() for pipe in pipes) / 1e6

    before, one, two = total(), *map(total, pipes)
    for pipe, process in zip(pipes, readers, strict=True):
        pipe.send(None)
        process.join()
    return one - before, two - before


def reader(root: str, pipe: Connection) -> None:
    """Answer each message with the bytes that this process takes, and open the store first where it says so."""
    family = Omniglot(root)
    for opens in iter(pipe.recv, None):
        if opens:
            family.store  # noqa: B018
        [line] = [line for line in SMAPS.read_text().splitlines() if line.startswith("Pss:")]
        pipe.send(1024 * int(line.split()[1]))


if __name__ == "__main__":
    main()
