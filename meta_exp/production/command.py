"""A new task on the command line: adapt a run to files, predict at others, and write predictions.csv.

Numbers are read from CSV files, as ``tasks.tables.table`` says. A run on curves takes the columns of x, then those of
y, and in the query those of x, in any order where both files name their columns; a run on tables takes its own columns
by their names, and leaves others alone. Images are read from folders: the support has a sub-folder a class, named for
it, the query is a folder of images; ``tasks.images.files`` says how they are read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from meta_exp.config.checks import require
from meta_exp.files import is_stream, write_rows, writing
from meta_exp.production.answers import Classification, Regression
from meta_exp.production.predictor import Predictor, load
from meta_exp.tasks.images.files import list_classes, list_images
from meta_exp.tasks.tables.table import read_columns, read_table
from meta_exp.terminal import cell

SHOWN = 10  # rows of the table that is printed
WIDEST = 6  # columns of x that are printed beside what is predicted


class Answers(NamedTuple):
    """What is written: column names and rows; the columns ``printed`` are shown too."""

    names: list[str]
    rows: list[list[str]]
    printed: slice


def answer(
    folders: Sequence[Path],
    overrides: Sequence[str],
    *,
    support: str | None = None,
    query: str | None = None,
    kind: str | None = None,
    output: str = "predictions.csv",
) -> None:
    """Adapt the run to ``support``, predict at ``query`` and write ``output``, whole or not at all; ``-`` is stdout.

    Raises:
        ValueError: the run, a file or a setting does not fit.
        OSError: a file cannot be read or written.
    """
    require(len(folders) == 1, "a new task", "one run's folder", len(folders))
    for key, value in (("support", support), ("query", query), ("output", output)):
        require(value != "", key, "the name of a file or a folder", "nothing")
    if support is None or query is None:
        given = "support" if support else "query" if query else f"kind={kind}"
        raise ValueError(f"a new task: expected support=... and query=..., got {given} alone")
    file = Path(output).expanduser()
    require(not file.is_dir(), "output", "the name of a file", f"a folder, {output}")
    require(is_stream(file) or file.parent.is_dir(), "output", "a file in a folder that is there", output)
    learner = load(folders[0], overrides)
    files = Path(support).expanduser(), Path(query).expanduser()
    if len(learner.input_shape) == 3:
        answers = answer_images(learner, *files, kind)
    elif learner.classifies:
        answers = answer_labels(learner, *files, kind)
    else:
        answers = answer_numbers(learner, *files, kind)
    write_csv(file, answers)
    console = Console(stderr=is_stream(file))  # what follows in a pipe gets the rows alone
    show(answers, f"{kind or learner.kinds[-1]} predictions, written to {file}", console)


class Numbers(NamedTuple):
    """The values of a new task, and the query's cells as they stand."""

    names: Sequence[str]  # of x, then of y
    x: np.ndarray
    y: np.ndarray
    asked: np.ndarray
    cells: list[list[str]]


def read_numbers(learner: Predictor, support: Path, query: Path) -> Numbers:
    """Read a task of numbers: by the names of the run's columns where it has some, else by the order of columns."""
    if columns := learner.columns:
        seen, asked = read_table(support), read_table(query)
        x, y = seen.numbers(columns.x), seen.numbers(columns.y)
        return Numbers([*columns.x, *columns.y], x, y, asked.numbers(columns.x), asked.cells(columns.x))
    features = learner.input_shape[0]
    by_place = read_columns(support, features, learner.outputs)
    wanted = read_columns(query, features, support=by_place)
    x, y = by_place.values[:, :features], by_place.values[:, features:]
    return Numbers(by_place.names, x, y, wanted.values, wanted.cells)


def answer_numbers(learner: Predictor, support: Path, query: Path, kind: str | None) -> Answers:
    """Predict the numbers of the rows of the CSV file ``query`` from those of ``support``."""
    features, outputs = learner.input_shape[0], learner.outputs
    task_names, x, y, asked, cells_of = read_numbers(learner, support, query)
    task = learner.adapt(x, y)
    found = task.predict(asked, kind=kind)
    assert isinstance(found, Regression)
    low, high = found.interval(0.95)
    names = [*task_names[:features]]
    columns = []
    for d, name in enumerate(task_names[features:]):
        suffix = f"_{name}" if outputs > 1 else ""
        names += [f"{column}{suffix}" for column in ("mean", "std", "lower_95", "upper_95")]
        columns += [found.mean[:, d], found.std[:, d], low[:, d], high[:, d]]
    figures = np.stack(columns, 1)
    rows = [[*cells, *map(_figure, row)] for cells, row in zip(cells_of, figures, strict=True)]
    return Answers(names, rows, slice(features if features > WIDEST else 0, None))


def answer_labels(learner: Predictor, support: Path, query: Path, kind: str | None) -> Answers:
    """Predict the labels of the rows of the CSV file ``query`` from those of ``support``."""
    columns = learner.columns
    assert columns is not None
    seen, asked = read_table(support), read_table(query)
    task = learner.adapt(seen.numbers(columns.x), np.array(seen.words(columns.y[0])))
    found = task.predict(asked.numbers(columns.x), kind=kind)
    assert isinstance(found, Classification)
    names, figures = _about_classes(found)
    rows = [
        [*cells, str(label), *map(_figure, row)]
        for cells, label, row in zip(asked.cells(columns.x), found.labels, figures, strict=True)
    ]
    features = len(columns.x)
    return Answers([*columns.x, *names], rows, slice(features if features > WIDEST else 0, features + 3))


def answer_images(learner: Predictor, support: Path, query: Path, kind: str | None) -> Answers:
    """Predict the classes of the images in ``query`` from those in the sub-folders of ``support``."""
    for key, folder in (("support", support), ("query", query)):
        expected = "a folder of images" if key == "query" else "a folder with a sub-folder a class"
        require(folder.is_dir(), f"{key}={folder}", expected, "a file" if folder.exists() else "nothing there")
    shown = [(file, folder.name) for folder in list_classes(support) for file in list_images(folder)]
    asked = list_images(query)
    task = learner.adapt(learner.read([file for file, _ in shown]), np.array([name for _, name in shown]))
    found = task.predict(learner.read(asked), kind=kind)
    assert isinstance(found, Classification)
    names, figures = _about_classes(found)
    rows = [
        [file.name, str(label), *map(_figure, row)]
        for file, label, row in zip(asked, found.labels, figures, strict=True)
    ]
    return Answers(["file", *names], rows, slice(4))


def _about_classes(found: Classification) -> tuple[list[str], np.ndarray]:
    """Return the names of the columns about classes, and the figures of all but the first."""
    names = ["predicted", "probability", "entropy", *(f"p_{name}" for name in found.classes)]
    return names, np.column_stack([found.probabilities.max(1), found.entropy, found.probabilities])


def write_csv(file: Path, answers: Answers) -> None:
    """Write ``answers`` so that ``file`` is whole or as it was; a pipe, a device and ``-`` are written into."""
    with writing(file) as stream:
        write_rows(stream, [answers.names, *answers.rows])


def show(answers: Answers, title: str, console: Console) -> None:
    """Print the first rows."""
    table = Table(title=f"{len(answers.rows)} {cell(title)}")
    for name in answers.names[answers.printed]:
        table.add_column(cell(name), justify="right")
    for row in answers.rows[:SHOWN]:
        table.add_row(*map(cell, row[answers.printed]))
    if len(answers.rows) > SHOWN:
        table.add_row(*["..."] * len(answers.names[answers.printed]))
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:.7g}"
