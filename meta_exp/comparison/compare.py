"""One honest table over runs: each restored, scored on the same test tasks, grouped, and compared in pairs.

Writes ``results.csv`` (a row a run), ``report.html`` and ``pictures/`` into the one folder given, or else into the
working folder.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from meta_exp.comparison import charts, plots, report
from meta_exp.comparison.results import (
    TITLES,
    Configuration,
    Difference,
    Result,
    differences,
    differing_keys,
    group,
    heading,
)
from meta_exp.config.checks import require
from meta_exp.config.keys import flatten
from meta_exp.files import make_folder, replacing, write_rows
from meta_exp.runs import pictures
from meta_exp.runs.calibration import calibrate
from meta_exp.runs.provenance import provenance
from meta_exp.runs.restore import Restored, open_run, refits
from meta_exp.runs.saved import read_overrides
from meta_exp.runs.test_set import describe_failed, score_tasks
from meta_exp.scoring.metrics import failed_tasks
from meta_exp.terminal import cell, plain
from meta_exp.training.data import EvaluationBatches
from meta_exp.training.learning_curve import read_curve
from meta_exp.training.precision import set_precision

MARKS = ("config.yaml", "train.log", "metrics.json")  # any of them makes a folder a run's
WIDEST = 1000  # characters
SHOWN = ("accuracy", "mse", "nll", "ece", "brier", "crps", "coverage_95", "auroc")  # in a terminal's width


def compare(folders: Sequence[Path], overrides: Sequence[str] = ()) -> int:
    """Evaluate the runs in ``folders``, print the table and write the report; return 1 if a run was left out, else 0.

    Raises:
        ValueError: there is no run, or none can be evaluated with these overrides; the reason of the first is given.
        OSError: a result cannot be written.
    """
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    require(bool(runs), "RUN", "at least one run's folder", "none")
    results, unfinished = _evaluate(runs, overrides)
    if not results:
        more = f" (and {len(unfinished) - 1} more runs)" if len(unfinished) > 1 else ""
        raise ValueError(next(iter(unfinished.values())) + more)
    numbers = sorted({result.keys["test_tasks"] for result in results})
    require(len(numbers) == 1, "test_tasks", "the same number for all runs", numbers, f"add test_tasks={numbers[-1]}")
    configurations = group(results)
    pairs = list(differences(configurations))
    console = Console()
    for shown in [table(configurations), *([difference_table(pairs)] if pairs else [])]:
        # as wide as it is, in a narrow window too: a figure cut in two is worse than a long line
        width = Console(width=WIDEST).measure(shown).maximum
        Console(width=max(console.width, width)).print(shown, crop=False)
    for result in results:
        if failed := failed_tasks(result.scores.each):
            words = f"{result.folder}: {describe_failed(failed, numbers[0])}"
            console.print(plain(words), markup=False, highlight=False, soft_wrap=True)
    for folder, reason in unfinished.items():
        console.print(plain(f"left out: {folder}: {reason}"), markup=False, highlight=False, soft_wrap=True)
    out = folders[0] if len(folders) == 1 else Path()
    write_csv(out / "results.csv", results)
    drawn = charts.charts(configurations)
    drawings = _draw(configurations, overrides, drawn, out / "pictures")
    report.write(out / "report.html", configurations, pairs, drawn, drawings, unfinished, overrides, provenance())
    written = plain(f"written: {out / 'results.csv'}, {out / 'report.html'}, {out / 'pictures'}")
    console.print(written, markup=False, soft_wrap=True)
    return 1 if unfinished else 0


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield ``folder`` if it is a run's, else the runs below it in order of their names.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    require(folder.is_dir(), str(folder), "a run's folder, or a sweep's", "a file" if folder.exists() else "none")
    found = list(_walk(folder))
    require(bool(found), str(folder), "a run's folder, or a folder of runs", "a folder without any", "run train.py")
    yield from found


def _walk(folder: Path) -> Iterator[Path]:
    if any((folder / mark).exists() for mark in MARKS):
        yield folder
        return
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        yield from _walk(below)


def _evaluate(runs: Sequence[Path], overrides: Sequence[str]) -> tuple[list[Result], dict[Path, str]]:
    """Return the results, and the reason of each run that has none."""
    results: list[Result] = []
    unfinished: dict[Path, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tasks, left"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        bar.disable = not console.is_terminal
        for number, folder in enumerate(runs, 1):
            if not console.is_terminal:
                words = plain(f"run {number} of {len(runs)}: {folder}")
                console.print(words, markup=False, highlight=False, soft_wrap=True)
            try:
                run = open_run(folder, overrides)
                task = bar.add_task(f"run {number} of {len(runs)}", total=run.cfg.test_tasks)
                results.append(_result(run, overrides, lambda done, task=task: bar.update(task, completed=done)))
                bar.remove_task(task)
            except (ValueError, OSError) as error:
                unfinished[folder] = str(error)
    return results, unfinished


def _result(run: Restored, overrides: Sequence[str], advance: Any) -> Result:
    tasks = run.cfg.test_tasks
    require(isinstance(tasks, int) and tasks >= 2, "test_tasks", "an integer, at least 2, for an interval", tasks)
    images = len(run.family.input_shape) == 3
    set_precision(run.cfg.get("matmul_precision", "highest"), images)  # the same digits need the same products
    if refits(overrides) and run.cfg.get("calibrate"):
        _fit(run)
    scores = score_tasks(run.learner, run.family, tasks, _device(run), advance)
    return Result(
        folder=run.folder,
        keys=flatten(OmegaConf.to_container(run.cfg)),
        scores=scores,
        served=run.learner.served,
        metric=run.learner.algorithm.likelihood.metric,
        command=_command(run.folder),
        curve=read_curve(run.folder / "curves.csv"),
        made_by={k: v for k, v in run.metrics.items() if k.startswith("version/") or k == "git_commit"},
    )


def _fit(run: Restored) -> None:
    """Fit what is served anew: the run's own values are those of another posterior, or it has none."""
    run.learner.to(_device(run)).eval()
    run.family.to(_device(run))
    validation = EvaluationBatches(run.family, "validation", run.cfg.validation_tasks)
    run.learner.served = calibrate(run.learner, validation).hyper(run.learner)


def _device(run: Restored) -> torch.device:
    """Where the run was tested, if that is here: the same digits need the same device."""
    gpu = torch.cuda.is_available() and run.cfg.trainer.get("accelerator") != "cpu"
    return torch.device("cuda" if gpu else "cpu")


def _command(folder: Path) -> str:
    """Return the command that made the run, from the overrides it kept, or an empty string."""
    try:
        overrides = read_overrides(folder)
    except ValueError:
        return ""
    return shlex.join(["uv", "run", "train.py", *overrides]) if overrides else ""


def table(configurations: Sequence[Configuration]) -> Table:
    """Return a table of a row a configuration, with a line for each predictive."""
    first = configurations[0]
    tasks = first.runs[0].summary["test/tasks"]
    scores = [s for s in SHOWN if any(c.estimate(f"{c.predictives[0]}/{s}") for c in configurations)]
    title = f"{tasks} test tasks; mean ± half width of the 95 % interval"
    out = Table(title=title, title_justify="left", show_lines=True)
    for title in [*(heading(key) for key in first.label), "predictive", *(TITLES[s] for s in scores), "± over"]:
        out.add_column(cell(title))
    for c in configurations:
        cells = ["\n".join(str(c.estimate(f"{kind}/{s}") or "") for kind in c.predictives) for s in scores]
        labels = [cell(value) for value in c.label.values()]
        over = c.estimate("loss")
        out.add_row(*labels, "\n".join(c.predictives), *cells, over.over if over else "")
    return out


def difference_table(pairs: Sequence[Difference]) -> Table:
    """Return a table of the paired differences; those whose interval excludes 0 are bold."""
    scores = [s for s in SHOWN if any(s in pair.scores for pair in pairs)]
    title = "paired differences by seed and test task; bold where the 95 % interval excludes 0"
    out = Table(title=title, title_justify="left")
    for title in ["", "", *(TITLES[s] for s in scores), "± over"]:
        out.add_column(title)
    for pair in pairs:
        cells = [pair.scores.get(s) for s in scores]
        text = [f"[bold]{d}[/bold]" if d and abs(d.mean) > d.half else str(d or "") for d in cells]
        over = next(d.over for d in pair.scores.values() if d.over)
        names = f"{pair.of.name} - {pair.to.name}", f"{pair.predictives[0]} - {pair.predictives[1]}"
        out.add_row(*map(cell, names), *text, over)
    return out


def write_csv(file: Path, results: Sequence[Result]) -> None:
    """Write a row a run: its folder, its keys that differ, and mean and half width of every score."""
    keys = dict.fromkeys(["seed", *differing_keys([result.keys for result in results])])
    summaries = [result.summary for result in results]
    scores = dict.fromkeys(name for summary in summaries for name in summary)
    rows = [["run", *keys, *scores]]
    for result, summary in zip(results, summaries, strict=True):
        own = [result.keys.get(key, "") for key in keys]
        rows.append([str(result.folder), *own, *(summary.get(name, "") for name in scores)])
    with replacing(file) as stream:
        write_rows(stream, rows)


def _draw(
    configurations: Sequence[Configuration], overrides: Sequence[str], drawn: Sequence[charts.Chart], folder: Path
) -> dict[str, Path]:
    """Draw the charts, and new tasks for the first run of each configuration; return those pictures by title.

    A family that has no picture, or one that fails, is left out.
    """
    make_folder(folder)
    plots.draw_charts(drawn, folder)
    drawings: dict[str, Path] = {}
    for number, configuration in enumerate(configurations, 1):
        first = configuration.runs[0]
        run = open_run(first.folder, overrides)
        run.learner.served = first.served
        title = f"{configuration.name}, seed {first.seed}"
        place = folder / f"tasks_{number}"
        files = pictures.draw_or_warn(run.learner, run.family, title, place, "the comparison goes on")
        for file in files:
            if file.suffix == ".png":
                drawings[title] = file
    return drawings
