"""One honest table over runs: each restored, scored on the same test tasks, grouped, and compared in pairs.

Whether they can be compared is looked at before any is scored, and a run that is damaged, in whatever way, is left out
and named. Writes ``results.csv`` (a row a run), ``summary.csv`` and ``table.tex`` (a row a configuration and
predictive), ``report.html`` and ``pictures/`` into one folder:

    output=FOLDER                    that folder
    one RUN, or one sweep            its folder; with settings of the evaluation changed, one below it, named for them
    several, or one of the package   outputs/comparison/<time>

With ``ensemble=true`` the runs predict together too (``ensemble.py``): all that were given, or, where a sweep's folder
was, those of each configuration; a row of its own beside those of its members.

An earlier ``results.csv`` that holds what the new one does not is kept under another name.
"""

import io
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from meta_exp.comparison import charts, paper, plots, report
from meta_exp.comparison.ensemble import Ensemble, refuse_unlike
from meta_exp.comparison.results import (
    ENSEMBLE,
    SHOWN,
    Configuration,
    Difference,
    Result,
    compared,
    differences,
    differing_keys,
    doubles,
    group,
    heading,
    looked_at,
    own_scores,
    shared_keys,
    shown_scores,
    title,
)
from meta_exp.config.checks import one_line, require
from meta_exp.config.keys import NOT_IN_NAME, flatten, within
from meta_exp.files import make_folder, read_bounded, require_writable, write_rows, write_whole
from meta_exp.installation import typed
from meta_exp.runs import pictures
from meta_exp.runs.calibration import calibrate
from meta_exp.runs.names import override_folder
from meta_exp.runs.protocol import mixed, of_ensemble, protocol_of
from meta_exp.runs.provenance import provenance
from meta_exp.runs.restore import Restored, keeps, open_run, refits
from meta_exp.runs.saved import read_overrides
from meta_exp.runs.shipped import is_shipped
from meta_exp.runs.test_set import describe_failed, score_batches, score_tasks
from meta_exp.scoring.metrics import failed_tasks
from meta_exp.terminal import cell, plain, print_fitted
from meta_exp.training.data import CONFORMAL_TASKS, EvaluationBatches, fresh_batches
from meta_exp.training.learning_curve import read_curve
from meta_exp.training.precision import set_precision

MARKS = ("config.yaml", "train.log", "metrics.json")  # any of them makes a folder a run's
COMPARISONS = Path("outputs", "comparison")  # of several runs or sweeps
EVALUATED = "evaluated"  # in the folder of a run or sweep: results of other settings
REASON = 500  # characters of it: a damaged file may hold anything


def compare(folders: Sequence[Path], overrides: Sequence[str] = (), output: str | None = None) -> int:
    """Evaluate the runs in ``folders``, print the table and write the report; return 1 if a run was left out, else 0.

    ``overrides`` are of the runs' configs, in Hydra's grammar, or ``ensemble``. ``output`` is the folder to write to.
    Of two runs with one config and one seed the later counts, which is said.

    Raises:
        ValueError: there is no run, none can be evaluated with these overrides (the reason of the first is given),
            their numbers of test tasks differ, or they make no ensemble.
        OSError: a result cannot be written.
    """
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    require(bool(runs), "RUN", "at least one run's folder", "none")
    given, settings = overrides, _settings(overrides)
    together, overrides = _take_ensemble(overrides)
    opened, left_out = _open(runs, overrides)
    _require_some(opened, left_out)
    _refuse_other_numbers_of_tasks(opened)
    whole = all(folder in opened or folder in left_out for folder in folders)  # runs, and no folders of runs
    if together and whole:
        refuse_unlike({folder: _keys(run) for folder, run in opened.items()})
    out = _place(folders, settings, output)
    scored = _score(runs, opened, overrides, left_out)
    _require_some(scored, left_out)
    places = doubles([result.keys for result in scored])
    results = [result for place, result in enumerate(scored) if place not in places]
    twice = {
        scored[i].folder: f"the same config and seed as {scored[j].folder}, which counts" for i, j in places.items()
    }
    fitted: dict[Path, dict[str, float]] = {}
    for members in list(_ensembles(results, whole)) if together else []:
        result, factors = _ensemble([opened[member.folder] for member in members])
        fitted[result.folder] = factors
        results.append(result)
    configurations = group(results)
    pairs = list(differences(configurations))
    console = Console()
    print_fitted(table(configurations, settings), len(configurations[0].label) + 1)
    if pairs:
        print_fitted(difference_table(pairs), 2)

    def say(words: str) -> None:
        console.print(plain(words), markup=False, highlight=False, soft_wrap=True)

    for folder, reason in left_out.items():
        say(f"left out: {folder}: {reason}")
    for folder, reason in twice.items():
        say(f"trained twice: {folder}: {reason}")
    for folder, factors in fitted.items():
        words = ", ".join(f"{kind} {factor:.3g}" for kind, factor in factors.items())
        say(f"{folder}: fitted as it is served, on the sigma or temperature of its members: {words or 'nothing'}")
    if words := mixed([result.protocol for result in results]):
        say(words)
    for result in results:
        if failed := failed_tasks(result.scores.each):
            say(f"{result.folder}: {describe_failed(failed, result.summary['test/tasks'])}")
    if out != folders[0]:
        make_folder(out)
    if kept := write_csv(out / "results.csv", results, settings):
        say(f"kept: the earlier results.csv, which held other results, is {kept}")
    paper.write(out, configurations, settings)
    drawn = charts.charts(configurations)
    drawings = _draw(configurations, overrides, out / "pictures")
    printed = plots.draw_charts(drawn, out / "pictures")
    missing = left_out | twice
    report.write(out / "report.html", configurations, pairs, printed, drawings, missing, given, provenance())
    say(f"written into {out}: results.csv, summary.csv, table.tex, report.html, pictures")
    return 1 if left_out else 0


def _place(folders: Sequence[Path], settings: Sequence[str], output: str | None) -> Path:
    """Return the folder to write into; raises ValueError or OSError where that is impossible."""
    remedy = "choose a folder by output=FOLDER"
    if output is not None:
        out = Path(output).expanduser().resolve()
        usable = bool(output) and (out.is_dir() or not out.exists())
        require(usable, f"output={output}", "a folder to write into", "a file" if output else "nothing")
    elif len(folders) > 1 or is_shipped(folders[0]):
        out = COMPARISONS / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    elif settings:
        require_writable(folders[0], remedy)
        make_folder(folders[0] / EVALUATED)
        out = folders[0] / EVALUATED / override_folder(settings)
    else:
        out = folders[0]
    require_writable(out, remedy)
    return out


def _settings(overrides: Sequence[str]) -> list[str]:
    """Return those of ``overrides`` that results depend on; where data lies is none of them."""
    return [words for words in overrides if not within(words.lstrip("+").partition("=")[0], NOT_IN_NAME)]


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield ``folder`` if it is a run's, else the runs below it in order of their names.

    A folder that cannot be read counts as a run: opening it says why. Links are not followed.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    require(folder.is_dir(), str(folder), "a run's folder, or a sweep's", "a file" if folder.exists() else "none")
    unreadable: list[Path] = []
    found = []
    for place, below, files in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        if not {*below, *files}.isdisjoint(MARKS):
            found.append(Path(place))
            below.clear()
        below.sort()
    found += unreadable
    require(
        bool(found),
        str(folder),
        "a run's folder, or a folder of runs",
        "a folder without any",
        f"train one by {typed('train')}",
    )
    yield from found


def _open(runs: Sequence[Path], overrides: Sequence[str]) -> tuple[dict[Path, Restored], dict[Path, str]]:
    """Restore the runs; return those that can be compared, and the reason of each other."""
    opened: dict[Path, Restored] = {}
    left_out: dict[Path, str] = {}
    for folder in runs:
        try:
            opened[folder] = _comparable(open_run(folder, overrides))
        except Exception as error:  # whatever damage does: the others are compared
            left_out[folder] = _why(error)
    return opened, left_out


def _comparable(run: Restored) -> Restored:
    """Return ``run``; raises ValueError where its config lacks what a comparison goes by."""
    tasks, seed, algorithm = run.cfg.test_tasks, run.cfg.seed, run.cfg.choices.get("algorithm")
    remedy = "train it again"
    require(type(tasks) is int and tasks >= 2, "test_tasks", "an integer, at least 2, for an interval", tasks)
    require(type(seed) is int, "seed", "an integer", seed, remedy)
    require(isinstance(algorithm, str), "choices.algorithm", "an algorithm's name", algorithm, remedy)
    return run


def _why(error: Exception) -> str:
    """Return what an error says; of one that nobody expected, its type too."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    words = one_line(error)[:REASON]
    return words if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {words}"


def _require_some(found: object, left_out: Mapping[Path, str]) -> None:
    """Raise ValueError with the first reason if all runs were left out."""
    if not found:
        more = f" (and {len(left_out) - 1} more runs)" if len(left_out) > 1 else ""
        raise ValueError(next(iter(left_out.values())) + more)


def _refuse_other_numbers_of_tasks(opened: Mapping[Path, Restored]) -> None:
    """Raise ValueError if the runs have not one number of test tasks, with that of most and a run that has another."""
    numbers = {folder: run.cfg.test_tasks for folder, run in opened.items()}
    most = Counter(numbers.values()).most_common(1)[0][0]
    other = next((folder for folder, number in numbers.items() if number != most), None)
    got = sorted(set(numbers.values()))
    require(other is None, "test_tasks", "the same number for all runs", got, f"add test_tasks={most}; {other} differs")


def _score(
    runs: Sequence[Path], opened: Mapping[Path, Restored], overrides: Sequence[str], left_out: dict[Path, str]
) -> list[Result]:
    """Score the runs that are ``opened`` and return their results; those that cannot be scored are ``left_out``."""
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tasks, left"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        bar.disable = not console.is_terminal
        for folder, run in opened.items():
            number = f"run {runs.index(folder) + 1} of {len(runs)}"
            if not console.is_terminal:
                console.print(plain(f"{number}: {folder}"), markup=False, highlight=False, soft_wrap=True)
            task = bar.add_task(number, total=run.cfg.test_tasks)
            try:
                result = _result(run, overrides, lambda done, task=task: bar.update(task, completed=done))
                _show_alone(result)
                results.append(result)
            except Exception as error:
                left_out[folder] = _why(error)
            bar.remove_task(task)
    return results


def _show_alone(result: Result) -> None:
    """Make of one run what is made of all: what is wrong with it ends here, and not the comparison of the others."""
    alone = group([result])
    list(differences(alone))
    table(alone)
    paper.latex(alone)
    charts.charts(alone)


def _result(run: Restored, overrides: Sequence[str], advance: Any) -> Result:
    images = len(run.family.input_shape) == 3
    set_precision(run.cfg.get("matmul_precision", "highest"), images)  # the same digits need the same products
    if refits(overrides) and run.cfg.get("calibrate"):
        _fit(run, keep=keeps(overrides))
    scores = score_tasks(run.learner, run.family, run.cfg.test_tasks, _device(run), advance)
    return Result(
        folder=run.folder,
        keys=_keys(run),
        scores=scores,
        served=run.learner.served,
        metric=run.learner.algorithm.likelihood.metric,
        command=_command(run.folder),
        curve=read_curve(run.folder / "curves.csv"),
        made_by={k: v for k, v in run.metrics.items() if k.startswith("version/") or k == "git_commit"},
        protocol=protocol_of(run.learner, run.family, run.cfg.test_tasks),
    )


def _keys(run: Restored) -> dict[str, Any]:
    return flatten(OmegaConf.to_container(run.cfg))


def _take_ensemble(overrides: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether ``overrides`` ask for ensembles, and the others."""
    asked = [words.partition("=")[2].lower() for words in overrides if words.lstrip("+").partition("=")[0] == ENSEMBLE]
    for value in asked:
        require(value in ("true", "false"), ENSEMBLE, "true or false", value)
    others = [words for words in overrides if words.lstrip("+").partition("=")[0] != ENSEMBLE]
    return asked[-1:] == ["true"], others


def _ensembles(results: Sequence[Result], whole: bool) -> Iterator[Sequence[Result]]:
    """Yield those that predict together: all of them as a ``whole``, or those of each configuration."""
    yield from [list(results)] if whole else [configuration.runs for configuration in group(results)]


def _ensemble(members: Sequence[Restored]) -> tuple[Result, dict[str, float]]:
    """Return the result of runs that predict together, and the factors that were fitted to them."""
    first = members[0]
    together = Ensemble([run.learner for run in members])
    for run in members:
        run.learner.to(_device(first)).eval()
    if first.cfg.get("calibrate"):
        together.fit(EvaluationBatches(first.family, "validation", first.cfg.validation_tasks))
    scores = score_batches(together.evaluate, first.family, first.cfg.test_tasks, _device(first))
    keys = shared_keys([_keys(run) for run in members])
    folder = Path(f"{ENSEMBLE} {keys[ENSEMBLE]}: {', '.join(str(run.folder) for run in members)}")
    metric = first.learner.algorithm.likelihood.metric
    protocol = of_ensemble([protocol_of(run.learner, run.family, run.cfg.test_tasks) for run in members])
    return Result(folder, keys, scores, metric, command="", curve={}, made_by={}, protocol=protocol), together.factors


def _fit(run: Restored, keep: bool) -> None:
    """Fit what is served anew: the run's own values are those of another posterior, or it has none.

    What is the run's own from now on is kept in its folder.
    """
    if keep:
        remedy = "load it, save() it into a folder of yours, and evaluate that"
        require(not is_shipped(run.folder), "calibrate=true", "a run of your own", "one of the package", remedy)
        require_writable(run.folder, "calibrate=true keeps there what it fits: evaluate a copy of the run")
    run.learner.to(_device(run)).eval()
    run.family.to(_device(run))
    validation = EvaluationBatches(run.family, "validation", run.cfg.validation_tasks)
    fresh = fresh_batches(run.family, run.cfg.get("conformal_tasks", CONFORMAL_TASKS))
    calibration = calibrate(run.learner, validation, fresh)
    calibration.serve(run.learner)
    if keep:
        calibration.write(run.folder)


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
    return f"{typed('train')} {shlex.join(overrides)}" if overrides else ""


def table(configurations: Sequence[Configuration], settings: Sequence[str] = ()) -> Table:
    """Return a table of a row a configuration, with a line for each predictive; ``settings`` stand above it."""
    first = configurations[0]
    tasks = first.runs[0].summary["test/tasks"]
    scores = shown_scores(configurations)
    words = f"{tasks} test tasks; mean ± half width of the 95 % interval"
    words += cell(f"; evaluated with {' '.join(settings)}") if settings else ""
    out = Table(title=words, title_justify="left", show_lines=True)
    for head in [*(heading(key) for key in first.label), "predictive", *map(title, scores), "± over"]:
        out.add_column(cell(head))
    for c in configurations:
        cells = ["\n".join(str(c.estimate(f"{kind}/{s}") or "") for kind in c.rows) for s in scores]
        labels = [cell(value) for value in c.label.values()]
        over = "\n".join(e.over if (e := c.estimate(f"{kind}/nll")) else "" for kind in c.rows)
        out.add_row(*labels, "\n".join(c.rows), *cells, over)
    return out


def difference_table(pairs: Sequence[Difference]) -> Table:
    """Return a table of the paired differences; above it is said how many, and which are bold."""
    shown = dict.fromkeys([*SHOWN, *(name for pair in pairs for name in own_scores(pair.of.runs[0].keys))])
    scores = [s for s in shown if any(s in pair.scores for pair in pairs)]
    words = f"{compared(pairs)}, paired by seed and test task. {looked_at(pairs, scores)}"
    out = Table(title=words, title_justify="left")
    for head in ["", "", *map(title, scores), "± over"]:
        out.add_column(cell(head))
    for pair in pairs:
        text = [str(pair.scores.get(s) or "") for s in scores]
        text = [f"[bold]{d}[/bold]" if d and pair.stands_out(s) else d for s, d in zip(scores, text, strict=True)]
        over = next(d.over for d in pair.scores.values() if d.over)
        names = f"{pair.of.name} - {pair.to.name}", f"{pair.predictives[0]} - {pair.predictives[1]}"
        out.add_row(*map(cell, names), *text, over)
    return out


def write_csv(file: Path, results: Sequence[Result], settings: Sequence[str] = ()) -> Path | None:
    """Write a row a run: its folder, the ``settings``, its keys that differ, mean and half width of every score.

    Returns the new name of an earlier file if that holds a line that this one does not, else None.
    """
    keys = dict.fromkeys(["seed", *differing_keys([result.keys for result in results])])
    summaries = [result.summary for result in results]
    scores = dict.fromkeys(name for summary in summaries for name in summary)
    rows = [["run", "evaluated_with", *keys, *scores]]
    for result, summary in zip(results, summaries, strict=True):
        own = [result.keys.get(key, "") for key in keys]
        rows.append([str(result.folder), " ".join(settings), *own, *(summary.get(name, "") for name in scores)])
    stream = io.StringIO()
    write_rows(stream, rows)
    kept = None
    if file.is_file() and not file.is_symlink():
        try:
            earlier = set(read_bounded(file, "results").decode(errors="replace").splitlines())
        except ValueError:  # too large to be ours
            earlier = {""}
        if not earlier <= set(stream.getvalue().splitlines()):
            names = (file.with_name(f"{file.stem}_{number}{file.suffix}") for number in count(1))
            kept = next(name for name in names if not os.path.lexists(name))
            file.rename(kept)
    write_whole(file, stream.getvalue())
    return kept


def _draw(configurations: Sequence[Configuration], overrides: Sequence[str], folder: Path) -> dict[str, Path]:
    """Draw new tasks for the first run of each configuration; return the pictures by title.

    A family that has no picture, or one that fails, is left out.
    """
    make_folder(folder)
    drawings: dict[str, Path] = {}
    named: Counter[str] = Counter()
    for configuration in configurations:
        first = configuration.runs[0]
        if ENSEMBLE in first.keys:
            continue
        try:
            run = open_run(first.folder, overrides)
        except (ValueError, OSError):  # it was removed meanwhile
            continue
        run.learner.served = first.served
        title = f"{configuration.name}, seed {first.seed}"
        named[name := charts.file_name(title)] += 1
        place = folder / (f"tasks_{name}" + (f"_{named[name]}" if named[name] > 1 else ""))
        files = pictures.draw_or_warn(run.learner, run.family, title, place, "the comparison goes on")
        for file in files:
            if file.suffix == ".png":
                drawings[title] = file
    return drawings
