"""Kill runs at random moments, continue them, and hold what they leave against runs that nobody killed.

    uv run python benchmarks/kills.py                          # 50 kills over all kinds of runs
    uv run python benchmarks/kills.py csv sweep --kills 10     # 10 over two of them

A kind is a command. It is run to its end once; then again and again, killed with SIGKILL and given anew, until its
share of the kills is used up. Most kills fall into the training, the others anywhere: into imports, a compilation, the
test, the pictures. Every file of both must be the same, but for times. Prints a line a kind, the steps at which it was
killed; what differs makes the exit code 1. Children are forked from one process, so that each start is cheap.
"""

import argparse
import atexit
import gc
import json
import os
import random
import re
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

import meta_exp.runs.train  # noqa: F401 - what children need is imported here, once

TRAIN = Path(__file__).parents[1] / "train.py"
RUN = ["trainer=smoke", "trainer.log_every_n_steps=5", "trainer.val_check_interval=7", "callbacks.last.every_n_steps=1"]
RUN += ["test_tasks=4", "validation_tasks=4", "evaluation_steps=2", "hydra.run.dir=outputs/run/one"]
CURVES = [*RUN, "trainer.max_steps=200", "model.widths=[8]", "dataset.meta_batch=4"]
QUIET = ["logger=none", "calibrate=null"]
IMAGES = ["dataset=omniglot", "algorithm=llama", "curvature=last_layer", "model.filters=8", "dataset.queries=2"]
KINDS = {
    "compile": [*CURVES, *QUIET, "compile=true"],
    "omniglot": [*RUN, *QUIET, *IMAGES, "dataset.meta_batch=2", "chunk_size=1", "trainer.max_steps=60"],
    "accumulate": [*CURVES, *QUIET, "trainer.accumulate_grad_batches=3"],
    "tensorboard": [*CURVES, "calibrate=null", "logger=tensorboard"],
    "csv": [*CURVES, "calibrate=null", "logger=csv"],
    "sweep": ["-m", *CURVES, "algorithm=maml,llama", "lr_schedule=none,cosine", "logger=csv"],
    "calibration": [*CURVES, "logger=none", "validation_tasks=20", "predictives=[map,linearized,sample]"],
}
IN_TRAINING = 0.7  # of the kills
TIMES = re.compile(r"time/|per_second|training_s")  # in names of what may differ
Leaves = dict[str, Any]


def start(arguments: list[str], folder: Path) -> int:
    """Fork a child that runs train.py in ``folder``, and return its number."""
    if pid := os.fork():
        return pid
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = [str(TRAIN), *arguments]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(1 if end.code else 0)
    os._exit(0)


class Pace:
    """Seconds of a kind of runs: to the first checkpoint of a child, as last seen, and from there to the end."""

    first = training = 0.0


def finish(arguments: list[str], folder: Path, pace: Pace) -> None:
    """Run to the end; raises RuntimeError with the last words of a child that fails."""
    began, pid = time.time(), start(arguments, folder)
    if not wait_for_checkpoint(pid, folder, began, pace):
        end(pid, folder)
        pace.training = max(pace.training, time.time() - began - pace.first)


def wait_for_checkpoint(pid: int, folder: Path, began: float, pace: Pace) -> bool:
    """Wait for the first checkpoint of a child, and return whether it has ended before."""
    while not any(file.stat().st_mtime > began for file in checkpoints(folder)):
        time.sleep(0.01)
        if ended(pid, folder):
            return True
    pace.first = time.time() - began
    return False


def ended(pid: int, folder: Path) -> bool:
    """Return whether a child has ended; raises RuntimeError if it failed."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if status:
        raise RuntimeError((folder / "said").read_text()[-3000:])
    return bool(found)


def end(pid: int, folder: Path) -> None:
    """Wait for a child's end."""
    while not ended(pid, folder):
        time.sleep(0.01)


def kill_once(arguments: list[str], folder: Path, chance: random.Random, pace: Pace) -> int | None:
    """Start, kill at a random moment of the time that a run takes, and return the step; None if it had ended."""
    began, pid = time.time(), start(arguments, folder)
    in_training = chance.random() < IN_TRAINING
    if in_training and wait_for_checkpoint(pid, folder, began, pace):
        return None
    time.sleep(chance.uniform(0, 0.5 * pace.training if in_training else pace.first + pace.training))
    if ended(pid, folder):
        return None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    going = [file for file in checkpoints(folder) if not (file.parent / "metrics.json").exists()]
    return max((torch.load(file, weights_only=True)["global_step"] for file in going), default=0)


def checkpoints(folder: Path) -> list[Path]:
    """Return the last.ckpt of each run below ``folder``."""
    return list(folder.glob("outputs/*/*/last.ckpt"))


def leaves(folder: Path) -> Leaves:
    """Return all that the runs below ``folder`` have left, by file and name, but for times and their logs."""
    found: Leaves = {}
    for file in sorted(path for path in (folder / "outputs").rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.name in ("train.log", ".lock") or file.suffix == ".svg":  # an SVG has ids of its own
            found[name] = "is there"
        elif file.suffix == ".ckpt":
            found |= flat(torch.load(file, weights_only=True), name)
        elif file.name == "metrics.json":
            found |= flat(json.loads(file.read_text()), name)
        elif file.name.startswith("events.out"):
            found |= dict(events(file, str(file.parent.relative_to(folder))))
        else:
            found[name] = file.read_bytes().replace(str(folder).encode(), b"FOLDER")
    return {name: value for name, value in found.items() if not TIMES.search(name)}


def flat(value: Any, name: str) -> Leaves:
    """Return nested values by their dotted names."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {name: value}
    return {k: v for key, part in items for k, v in flat(part, f"{name}: {key}").items()}


def events(file: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what a file of TensorBoard's holds, but for when it was written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if not TIMES.search(value.tag):
                yield f"{name}, step {event.step}: {value.tag}", value.SerializeToString()


def differences(calm: Leaves, killed: Leaves) -> list[str]:
    """Return the names of what differs."""
    same = {name for name in calm.keys() & killed.keys() if equal(calm[name], killed[name])}
    return sorted((calm.keys() | killed.keys()) - same)


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b) or (a != a and b != b)


def main() -> int:
    """Kill, compare, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--kills", type=int, default=50, help="shared out among the kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="to run in, which is kept; else a new one")
    options = parser.parse_args()
    kinds = options.kinds or list(KINDS)
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(KINDS)}")
    place = (options.folder or Path(mkdtemp(prefix="kills_"))).absolute()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "compiled")
    torch.set_num_threads(1)
    atexit.register(gc.unfreeze)  # Triton complains of what is left at the interpreter's end
    gc.freeze()  # a child that collects what it inherits copies all of it
    chance, differ = random.Random(options.seed), False
    for number, kind in enumerate(kinds):
        (calm := place / f"{kind}_calm").mkdir(parents=True)
        finish(KINDS[kind], calm, pace := Pace())
        expected = leaves(calm)
        kills = options.kills // len(kinds) + (number < options.kills % len(kinds))
        steps: list[int] = []
        found: list[str] = []
        runs = 0
        while len(steps) < kills or not runs:
            (folder := place / f"{kind}_{runs}").mkdir()
            while len(steps) < kills and (step := kill_once(KINDS[kind], folder, chance, pace)) is not None:
                steps.append(step)
            finish(KINDS[kind], folder, pace)
            found += [f"{folder.name}/{name}" for name in differences(expected, leaves(folder))]
            runs += 1
        state = f"{len(found)} DIFFER: {found[:10]}" if found else "all identical"
        print(f"{kind}: {len(steps)} kills at steps {steps}, {runs} runs, {len(expected)} values: {state}", flush=True)
        differ |= bool(found)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
