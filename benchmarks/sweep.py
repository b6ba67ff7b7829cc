"""How much faster joblib runs a sweep on two cores than one job after another.

    uv run python benchmarks/sweep.py [--seeds N] [--steps N] [--rounds N]

The sweep is the committed experiment=maml_vs_llama: MAML and LLAMA on sinusoids, with each seed. Each time is that of a
real process, from the command to its exit: imports, compilation, validation, test, pictures and offline dashboard are
in it. The launchers take turns, each in a new folder. Both find the compiler's cache filled, by a run of each algorithm
before the first round, as any sweep but a machine's first does.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import track
from rich.table import Table

TRAIN = Path(__file__).parents[1] / "train.py"
CORES, WANTED = 2, 1.7
LAUNCHERS = {  # with the arguments of each
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={CORES}"],
}


def main() -> None:
    """Time the sweep with each launcher and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    with TemporaryDirectory() as folder:
        for name in LAUNCHERS:  # which differ in threads, and so in what is compiled
            sweep(Path(folder), name, 1, arguments.steps)
        for _ in track(range(arguments.rounds), "sweeps", console=Console(stderr=True), transient=True):
            for name in LAUNCHERS:
                times[name].append(sweep(Path(folder), name, arguments.seeds, arguments.steps))
    jobs = 2 * arguments.seeds
    table = Table("launcher", "median, s", "each, s", title=f"{jobs} jobs of {arguments.steps} steps, {CORES} cores")
    for name, seconds in times.items():
        table.add_row(name, f"{statistics.median(seconds):.1f}", ", ".join(f"{value:.1f}" for value in seconds))
    Console().print(table)
    ratio = statistics.median(a / b for a, b in zip(times["basic"], times["joblib"], strict=True))
    print(f"joblib is {ratio:.2f} times as fast as one job after another (wanted: >= {WANTED})")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def sweep(folder: Path, launcher: str, seeds: int, steps: int) -> float:
    """Run the sweep in a new folder below ``folder`` and return its seconds."""
    command = [sys.executable, str(TRAIN), "experiment=maml_vs_llama", f"seed={','.join(map(str, range(seeds)))}"]
    variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    variables.pop("OMP_NUM_THREADS", None)  # each launcher chooses
    with TemporaryDirectory(dir=folder) as place:
        started = time.perf_counter()
        command += [f"trainer.max_steps={steps}", *LAUNCHERS[launcher]]
        subprocess.run(command, cwd=place, env=variables, stdout=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter() - started
        assert len(list(Path(place).glob("outputs/*_sweep/*/metrics.json"))) == 2 * seeds
    return seconds


if __name__ == "__main__":
    main()
