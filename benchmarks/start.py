"""How soon the commands answer: train.py --help, and the first training step on sinusoids, as real processes.

    uv run python benchmarks/start.py [--rounds N]

The first round warms the file cache and does not count. The step's moment is taken by a callback that the command adds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from rich.table import Table

REPO = Path(__file__).parents[1]
MARK = "first step at "
FIRST_STEP = [
    "compile=false",
    "trainer.max_steps=1",
    "validation_tasks=1",
    "test_tasks=2",
    "+callbacks.first._target_=start.FirstStep",
]
COMMANDS = {  # arguments of train.py; the seconds that are wanted
    "train.py --help": (["--help"], 2.0),
    "first step, LLAMA (the default)": (FIRST_STEP, 8.0),
    "first step, MAML": ([*FIRST_STEP, "algorithm=maml"], 8.0),
}


class FirstStep(Callback):
    """Print when the first training step ended."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the time."""
        print(f"{MARK}{time.time()}", flush=True)


def main() -> None:
    """Run the commands in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in track(range(rounds + 1), console=Console(stderr=True), transient=True):
        for name, (arguments, _) in COMMANDS.items():
            times[name].append(seconds(arguments))
    table = Table("command", "seconds, median", "least", "most", "wanted", title=f"{rounds} rounds, warm file cache")
    for name, (_, wanted) in COMMANDS.items():
        counted = times[name][1:]
        values = (f"{value:.2f}" for value in (statistics.median(counted), min(counted), max(counted)))
        table.add_row(name, *values, f"<= {wanted:g}")
    Console(width=110).print(table)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def seconds(arguments: list[str]) -> float:
    """Return the seconds from the command to its first step, or to its end if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPO), str(REPO / "benchmarks")))}
        started = time.time()
        command = [sys.executable, str(REPO / "train.py"), *arguments]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        ended = time.time()
    marks = [line for line in result.stdout.splitlines() if line.startswith(MARK)]
    return (float(marks[0].removeprefix(MARK)) if marks else ended) - started


if __name__ == "__main__":
    main()
