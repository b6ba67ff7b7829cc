"""Where a sweep stands: a line at each change while it runs, a table at its end, and exit code 1 if a run failed.

Each job, in whatever process or machine its launcher puts it, says on a board in the sweep's folder how it is; the
command that was typed reads the board. A failed job counts as the worst loss, infinity, so that all others run and a
search goes on; its traceback stands in its run's ``train.log``. Where the command dies, its workers save and end.

Hydra turns what a callback raises into a warning. A failure is therefore taken over from Hydra only once it stands on
the board, and a board that lost a job counts as a failure: whatever happens to the report, exit code 0 means that all
is done.
"""

import atexit
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from math import inf
from multiprocessing.util import Finalize
from pathlib import Path
from textwrap import shorten
from typing import Any

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from meta_exp import cli
from meta_exp.config.checks import one_line
from meta_exp.files import write_json
from meta_exp.runs import names
from meta_exp.terminal import Screen, cell, duration, near, plain, print_fitted

POLL_S = 1.0
LINE_S = 60.0  # at most between two lines while jobs run
REASON = 100  # characters of it in the table; train.log has it all
LOCK = ".lock"  # on a board, held by the command that reads it
FINE = ("done", "skipped")
Job = dict[str, Any]


class SweepReport(Callback):
    """Hydra calls it at the ends of a sweep where that was typed, and at the ends of a job where that runs."""

    def __init__(self) -> None:
        self.board: Path | None = None
        self.keys: Sequence[str] = ()  # in which the jobs differ
        self.process: int | None = None  # of the command
        self._watch: Watch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the thread out, on the way to a worker."""
        return self.__dict__ | {"_watch": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Put up the board and watch it; where that fails, say so, and leave failed jobs to Hydra."""
        self.process = os.getpid()
        name = f".sweep-{time.strftime('%Y%m%d-%H%M%S')}-{self.process}"
        sweep = Path(config.hydra.sweep.dir).absolute()
        try:
            for board in sweep.glob(".sweep-*"):
                _remove_if_left(board)
            board = sweep / name
            self.keys = names.varying_keys(_sweep_overrides(config))
            total = count_jobs(config)
            self._watch = Watch(board, total, self.keys)
            runs = "runs" if total is None else f"{total} run{'s' * (total != 1)}"
            print(plain(f"sweep: {runs}, in {near(sweep)}"), flush=True)
        except Exception as error:
            _say_failed(error)
            return
        self.board = board
        atexit.register(self._watch.close)  # also when the sweep is interrupted
        self._watch.start()

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Say that a job runs; its lines bear its name from now on."""
        Screen.run = names.title(config.hydra.overrides.task, self.keys)
        Screen.alone = self.process in (None, os.getpid())  # None: no sweep
        if self.board is not None and self.board.exists():
            _post(self.board, config, {"state": "running"})
        if os.getppid() == self.process:
            _end_without(self.process)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say how a job ended, and let the others go on."""
        if self.board is None or not self.board.exists():
            return
        if job_return.status is JobStatus.FAILED:
            error = job_return._return_value
            reason = cli.reason(error) if isinstance(error, Exception) else repr(error)
            _post(self.board, config, {"state": "failed", "reason": reason})
            job_return.status, job_return.return_value = JobStatus.COMPLETED, inf
        else:
            result = Path(config.hydra.runtime.output_dir) / "metrics.json"
            began = _place(self.board, config)
            before = result.exists() and began.exists() and result.stat().st_mtime < began.stat().st_mtime
            _post(self.board, config, {"state": "skipped" if before else "done"})

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; exit with 1 if a run failed."""
        if self._watch is not None and not self._watch.close():
            if self._watch.empty:  # not where an error has ended it before: that is said already
                print("sweep: no job was started", file=sys.stderr)
            raise SystemExit(1)


class Watch:
    """Reads the board of a sweep of ``total`` jobs, None where that is unknown, and prints how the sweep stands.

    ``keys`` are those in which the jobs differ.
    """

    def __init__(self, board: Path, total: int | None, keys: Sequence[str] = ()) -> None:
        self.board, self.total, self.keys = board, total, keys
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.fine, self.empty = False, False
        draft = board.with_name(f".new{board.name}")  # under its own name a board without a lock is one that was left
        draft.mkdir(parents=True)
        self.lock = FileLock(draft / LOCK)
        self.lock.acquire()
        draft.rename(board)

    def start(self) -> None:
        """Start to watch."""
        self.thread.start()

    def close(self) -> bool:
        """Print the table, once, and take down the board; return whether jobs were started, and all are done."""
        if self.ended.is_set():
            return self.fine
        self.ended.set()
        try:
            self.thread.join()
            jobs = self._jobs()
            self.fine = bool(jobs) and all(job["state"] in FINE for job in jobs)
            self.lock.release()
            shutil.rmtree(self.board, ignore_errors=True)
            self.empty = not jobs
            if jobs:
                _print_table(jobs, self.keys)
        except Exception as error:
            _say_failed(error)
        return self.fine

    def line(self, jobs: list[Job]) -> str:
        """Return how the sweep stands, with the time left at the speed so far."""
        count = {
            state: sum(job["state"] == state for job in jobs) for state in ("done", "skipped", "running", "failed")
        }
        ended, elapsed = count["done"] + count["failed"], time.monotonic() - self.began
        skipped = f" ({count['skipped']} of them before)" if count["skipped"] else ""
        of = f" of {self.total}" if self.total else ""
        text = f"sweep: {count['done'] + count['skipped']}{of} done{skipped}, {count['running']} running"
        text += f", {count['failed']} failed"
        left = (self.total or 0) - ended - count["skipped"]
        return text + (f", about {duration(elapsed / ended * left)} left" if ended and left > 0 else "")

    def _run(self) -> None:
        said: list[str] = []
        said_at = 0.0
        with suppress(Exception):  # the end is told for sure, how it stands only where that can be written
            while not self.ended.wait(POLL_S):
                jobs = self._jobs()
                states, now = [job["state"] for job in jobs], time.monotonic()
                if jobs and (states != said or now - said_at >= LINE_S):
                    said, said_at = states, now
                    print(self.line(jobs), flush=True)

    def _jobs(self) -> list[Job]:
        """Return all jobs in order; one that stands no more on the board is unknown."""
        numbers = [int(file.stem) for file in self.board.glob("*.json")]
        jobs = [_read(self.board / f"{number}.json") for number in range(max(numbers, default=-1) + 1)]
        return [job if "state" in job else {"folder": f"job {n}", "state": "unknown"} for n, job in enumerate(jobs)]


def count_jobs(config: DictConfig) -> int | None:
    """Return the number of jobs of a sweep: the product of its values, a search's trials, or None if unknown."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return OmegaConf.select(sweeper, "n_trials")
    arguments = _sweep_overrides(config)
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # globs are of its options
    try:
        batches = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
    except HydraException:  # the sweeper says it, as the error that it is
        return None
    return sum(len(batch) for batch in batches)


def _sweep_overrides(config: DictConfig) -> list[str]:
    """Return a sweep's overrides, those of an experiment in front."""
    params = config.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)


def _say_failed(error: Exception) -> None:
    """Say what the report died of, in one line; where that too is impossible, nothing."""
    with suppress(Exception):
        reason = plain(one_line(error))
        print(f"sweep: the report failed ({reason}); the runs' folders have all", file=sys.stderr, flush=True)


def _print_table(jobs: list[Job], keys: Sequence[str]) -> None:
    """Print how the jobs ended: columns by what differs; what all share, and why some failed, in lines of their own."""
    from rich.table import Table

    overrides = [dict(word.partition("=")[::2] for word in job.get("overrides", [])) for job in jobs]
    same = [key for key in overrides[0] if key not in keys and len({words.get(key) for words in overrides}) == 1]
    if same:
        print(plain("all runs: " + " ".join(f"{key}={overrides[0][key]}" for key in same)))
    results = [_read(Path(job["folder"]) / "metrics.json") if job["state"] in FINE else {} for job in jobs]
    score = next((s for s in ("accuracy", "mse") if any(f"test/map/{s}" in found for found in results)), None)
    calibrated = any("validation/served_nll" in found for found in results)
    scores = {"validation NLL": "validation/served_nll"} if calibrated else {"validation score": "validation/score"}
    scores |= {f"test {score}": f"test/map/{score}"} if score else {}
    labels = [names.short(key) for key in keys] or ["run"]
    table = Table(*map(cell, labels), "state", *scores, "training", title_justify="left")
    for job, words, found in zip(jobs, overrides, results, strict=True):
        state = "interrupted" if job["state"] == "running" else job["state"]
        name = [words.get(key, "") for key in keys] or [Path(job["folder"]).name]
        numbers = ["" if (value := found.get(key)) is None else f"{value:.4g}" for key in scores.values()]
        seconds = found.get("time/train_s")
        table.add_row(*map(cell, [*name, state]), *numbers, "" if seconds is None else duration(seconds))
    print_fitted(table, len(labels))
    for job in jobs:
        if reason := job.get("reason"):
            folder = Path(job["folder"])
            reason = shorten(reason.removeprefix(f"{folder}: "), REASON, placeholder=" ...")
            print(plain(f"failed: {names.title(job.get('overrides', []), keys) or folder.name}: {reason}"))


@cache
def _end_without(parent: int) -> None:
    """Have this worker of joblib end when its parent has: it would train on unseen, and then wait for ever.

    And at once, after all else that waits for its end: the parent waits for it.
    """
    Finalize(None, cli.end_at_once, exitpriority=-100)

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        while callable(signal.getsignal(signal.SIGTERM)):  # a training heeds it: it saves and ends
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _remove_if_left(board: Path) -> None:
    """Remove a board whose command was killed; one that is read is locked."""
    with suppress(OSError), FileLock(board / LOCK, timeout=0):
        shutil.rmtree(board)


def _place(board: Path, config: DictConfig) -> Path:
    return board / f"{config.hydra.job.num}.json"


def _post(board: Path, config: DictConfig, job: Job) -> None:
    told = {"folder": str(config.hydra.runtime.output_dir), "overrides": list(config.hydra.overrides.task)}
    write_json(_place(board, config), {**told, **job})


def _read(file: Path) -> Job:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
