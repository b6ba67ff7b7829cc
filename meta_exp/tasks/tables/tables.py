"""Where the tables of one's own tasks stand: a CSV file a task, or a file whose column ``task`` tells them apart.

    root/a.csv, b.csv, ...                     a task each, or several in a file that has the column
    root/train/a.csv, root/val/..., root/test/...
    root.csv                                   one file

Files end in .csv or .tsv, and their first row names the columns; others are let be. A task bears the name of its file,
or what its column says.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from meta_exp.config.checks import require
from meta_exp.tasks.splits import require_once, split_folders
from meta_exp.tasks.tables.table import Row, Table, read_table

SUFFIXES = (".csv", ".tsv")
UNSPLIT = "all"  # the split of a task that no folder gives to one


class TaskTable(NamedTuple):
    """The rows of one task, and the split whose folder it stands in."""

    name: str
    split: str
    table: Table


def read_tables(root: Path, task: str) -> list[TaskTable]:
    """Read the tasks at ``root``, file after file in order of their names; ``task`` is the name of the column.

    Raises ValueError where there is none, or where one name is that of two tasks.
    """
    tables = [found for split, file in _files(root) for found in _tasks(split, read_table(file), task)]
    splits: dict[str, str] = {}
    files: dict[str, str] = {}
    for name, split, table in tables:
        require_once(splits, name, split, "task")
        known = files.setdefault(name, str(table.file))
        require(known == str(table.file), f"task {name}", "one file", f"{known} and {table.file}", "rename one of them")
    return tables


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    remedy = "name it by dataset.root=FOLDER"
    require(root.exists(), "dataset.root", "a folder of CSV files, or one", f"nothing at {root}", remedy)
    if root.is_file():
        yield UNSPLIT, root
        return
    for split, folder in (split_folders(root) or {UNSPLIT: root}).items():
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        files = [file for file in files if not file.name.startswith(".")]
        require(bool(files), str(folder), f"files that end in {' or '.join(SUFFIXES)}", "none", remedy)
        for file in files:
            yield split, file


def _tasks(split: str, table: Table, task: str) -> Iterator[TaskTable]:
    """Yield the tasks of a file, in the order in which their first rows stand."""
    if task not in table.names:
        yield TaskTable(table.file.stem, split, table)
        return
    rows: dict[str, list[Row]] = {}
    for name, row in zip(table.words(task), table.rows, strict=True):
        rows.setdefault(name, []).append(row)
    for name, own in rows.items():
        yield TaskTable(name, split, table._replace(rows=own))
