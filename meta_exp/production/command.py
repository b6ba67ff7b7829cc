"""A new task on the command line: adapt a run to files, predict at others, and write predictions.csv.

Regression reads CSV files: the support has the columns of x, then those of y, the query those of x, in any order where
both files name their columns; ``production.table`` says how they are read. Images are read from folders: the
support has a sub-folder a class, named for it, the query is a folder of images; ``tasks.images.files`` says how
they are read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from meta_exp.config.checks import require
from meta_exp.files import is_stream, write_rows, writing
from meta_exp.production.predictor import Classification, Predictor, Regression, load
from meta_exp.production.table import read_columns
from meta_exp.tasks.images.files import list_classes, list_images
from meta_exp.terminal import cell

SHOWN = 10  # rows of the table that is printed


class Answers(NamedTuple):
    """What is written: column names and rows; the first ``printed`` columns are shown too."""

    names: list[str]
    rows: list[list[str]]
    printed: int


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
        given = "support" if support else "query" if query else "neither"
        raise ValueError(f"a new task: expected support=... and query=..., got {given} alone")
    learner = load(folders[0], overrides)
    read = answer_images if learner.classifies else answer_table
    answers = read(learner, Path(support).expanduser(), Path(query).expanduser(), kind)
    file = Path(output).expanduser()
    write_csv(file, answers)
    console = Console(stderr=is_stream(file))  # what follows in a pipe gets the rows alone
    show(answers, f"{kind or learner.kinds[-1]} predictions, written to {file}", console)


def answer_table(learner: Predictor, support: Path, query: Path, kind: str | None) -> Answers:
    """Predict the rows of the CSV file ``query`` from those of ``support``."""
    features, outputs = learner.input_shape[0], learner.outputs
    seen = read_columns(support, features, outputs)
    asked = read_columns(query, features, support=seen)
    task = learner.adapt(seen.values[:, :features], seen.values[:, features:])
    found = task.predict(asked.values, kind=kind)
    assert isinstance(found, Regression)
    low, high = found.interval(0.95)
    names = [*seen.names[:features]]
    columns = []
    for d, name in enumerate(seen.names[features:]):
        suffix = f"_{name}" if outputs > 1 else ""
        names += [f"{column}{suffix}" for column in ("mean", "std", "lower_95", "upper_95")]
        columns += [found.mean[:, d], found.std[:, d], low[:, d], high[:, d]]
    figures = np.stack(columns, 1)
    rows = [[*cells, *map(_figure, row)] for cells, row in zip(asked.cells, figures, strict=True)]
    return Answers(names, rows, len(names))


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
    names = ["file", "predicted", "probability", "entropy", *(f"p_{name}" for name in found.classes)]
    figures = np.column_stack([found.probabilities.max(1), found.entropy, found.probabilities])
    rows = [
        [file.name, str(label), *map(_figure, row)]
        for file, label, row in zip(asked, found.labels, figures, strict=True)
    ]
    return Answers(names, rows, 4)


def write_csv(file: Path, answers: Answers) -> None:
    """Write ``answers`` so that ``file`` is whole or as it was; a pipe, a device and ``-`` are written into."""
    with writing(file) as stream:
        write_rows(stream, [answers.names, *answers.rows])


def show(answers: Answers, title: str, console: Console) -> None:
    """Print the first rows."""
    table = Table(title=f"{len(answers.rows)} {cell(title)}")
    for name in answers.names[: answers.printed]:
        table.add_column(cell(name), justify="right")
    for row in answers.rows[:SHOWN]:
        table.add_row(*map(cell, row[: answers.printed]))
    if len(answers.rows) > SHOWN:
        table.add_row(*["..."] * answers.printed)
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:.7g}"
