"""Tables of one's own: CSV files of tasks, of any number of rows each, with numbers or labels to be predicted.

``tables`` says which files are known, ``rows`` how episodes are drawn from them, and ``columns`` on which scale a
network sees them. Columns and scale are settled once by the training tasks and kept in the run's config.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from meta_exp.config.checks import require
from meta_exp.tasks.episode import ClassEpisode, Episode
from meta_exp.tasks.images.episodes import check_sizes
from meta_exp.tasks.images.source import shorten
from meta_exp.tasks.splits import Shares, check_shares, shuffled
from meta_exp.tasks.stream import SPLITS
from meta_exp.tasks.tables.columns import RunColumns, Scale, measure_scale
from meta_exp.tasks.tables.picture import FittedRows
from meta_exp.tasks.tables.rows import Integers, Pools, RowTasks
from meta_exp.tasks.tables.tables import UNSPLIT, TaskTable, read_tables

Values = NDArray[np.float64]

log = logging.getLogger(__name__)


class Groups(NamedTuple):
    """The rows of all tables, put into ``order``: groups of ``counts``, of one task, and of one label if y is labels.

    ``tasks`` and ``labels`` are those of each group, and ``split_by`` whichever of them is split.
    """

    order: Integers
    tasks: Integers
    labels: Integers
    counts: Integers
    split_by: Integers


@dataclass(frozen=True)
class CsvTasks:
    """Tasks whose examples are rows of CSV files: regression, or classes where y is the name of a column of labels.

    Regression draws ``shots`` support and ``queries`` query rows of a task. Of labels an episode draws ``ways`` classes
    of a task, with ``shots`` and ``queries`` rows of each; where all rows are one task, its classes are what is split,
    as images' are. Tasks and classes with fewer rows are left out, which one line of the log tells.

    Args:
        root: the folder, or one file.
        x: the columns of inputs; None for all but those of y and of tasks.
        y: the columns of targets, numbers, in a list; or one name, of labels. None for the last column, of numbers.
        task: the column that tells tasks apart, in files that have it.
        ways: classes of an episode, where y is labels.
        shares: of the tasks in train, validation and test, where no folders tell.
        split_seed: of the shuffle before that.
        x_mean, x_std, y_mean, y_std: of each column over the rows of the training tasks; None where they are to be
            measured.

    Raises ValueError for settings out of range and for tables that are not what they should be.
    """

    root: str
    x: list[str] | None = None
    y: list[str] | str | None = None
    task: str = "task"
    ways: int = 2
    shots: int = 10
    queries: int = 10
    meta_batch: int = 25
    shares: Shares = (0.64, 0.16, 0.2)
    split_seed: int = 0
    x_mean: list[float] | None = None
    x_std: list[float] | None = None
    y_mean: list[float] | None = None
    y_std: list[float] | None = None

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_sizes(self.ways, self.shots, self.queries, self.meta_batch)
        check_shares(self.shares, self.split_seed)
        named = [*(self.x or []), *([self.y] if isinstance(self.y, str) else self.y or [])]
        twice = next((name for name in named if named.count(name) > 1 or name == self.task), None)
        require(twice is None, "dataset.x and dataset.y", "each column once, and none of tasks", twice)
        for key, names in (("dataset.x", self.x), ("dataset.y", self.y)):
            require(names is None or len(names) > 0, key, "null or the names of columns", names)
        for key, scale, names in (("x", (self.x_mean, self.x_std), self.x), ("y", (self.y_mean, self.y_std), self.y)):
            given = [values for values in scale if values is not None]
            fits = not given or (len(given) == 2 and isinstance(names, list) and {*map(len, given)} == {len(names)})
            positive = len(given) < 2 or min(given[1]) > 0
            expected = f"null, or a mean and a deviation > 0 for each column that dataset.{key} lists"
            require(fits and positive, f"dataset.{key}_mean, dataset.{key}_std", expected, given)

    @property
    def classes(self) -> bool:
        """Whether y is labels."""
        return isinstance(self.y, str)

    @property
    def input_shape(self) -> tuple[int]:
        """Of one row's inputs."""
        return (len(self.columns.x),)

    @property
    def outputs(self) -> int:
        """One output for each class of an episode, or for each column of y."""
        return self.ways if self.classes else len(self.columns.y)

    @cached_property
    def tables(self) -> list[TaskTable]:
        """The tasks, read when first asked for."""
        return read_tables(Path(self.root).expanduser(), self.task)

    @cached_property
    def columns(self) -> RunColumns:
        """The columns and their scales: as the settings say, and else as the files do."""
        x, y = self._names
        x_scale = Scale(self.x_mean, self.x_std) if self.x_mean and self.x_std else self._measured(self._x)
        if self.classes:
            return RunColumns(x, y, x_scale, None)
        y_scale = Scale(self.y_mean, self.y_std) if self.y_mean and self.y_std else self._measured(self._y)
        return RunColumns(x, y, x_scale, y_scale)

    @property
    def _names(self) -> tuple[list[str], list[str]]:
        """The columns of x and of y; those that are not set are as in the first file."""
        x, y = self.x, [self.y] if isinstance(self.y, str) else self.y
        if x and y:
            return x, y
        table = self.tables[0].table
        names = [name for name in table.names if name != self.task]
        y = y or [name for name in names if name not in (x or [])][-1:]
        x = x or [name for name in names if name not in y]
        remedy = "name them by dataset.x=[...] dataset.y=[...]"
        require(bool(x and y), str(table.file), "columns of x and of y", ", ".join(table.names), remedy)
        return x, y

    def _measured(self, values: Values) -> Scale:
        """Measure the rows of the training split, those of small tasks too: shots do not matter."""
        groups = self._groups
        train = np.isin(groups.split_by, self.splits["train"])
        return measure_scale(values[np.repeat(train, groups.counts)])

    @cached_property
    def splits(self) -> dict[str, Integers]:
        """What is in each split: tasks, as places in ``tables``, or where there is one task its ``labels``."""
        of = np.array([table.split for table in self.tables])
        if (of == UNSPLIT).all():
            count, what = (len(self.labels), "classes") if self._split_by_class else (len(self.tables), "tasks")
            splits = shuffled(count, self.shares, self.split_seed)
            got = ", ".join(f"{len(places)} in {split}" for split, places in splits.items())
            remedy = f"add {what}, or set dataset.shares"
            require(all(map(len, splits.values())), str(self.root), f"{what} for each split", got, remedy)
            return splits
        return {split: np.flatnonzero(of == split) for split in SPLITS}

    @property
    def _split_by_class(self) -> bool:
        return self.classes and len(self.tables) == 1

    @cached_property
    def labels(self) -> list[str]:
        """The labels of all tasks, sorted."""
        return sorted(set(self._label_of_row)) if self.classes else [""]

    @cached_property
    def _label_of_row(self) -> list[str]:
        return [label for table in self.tables for label in table.table.words(str(self.y))]

    @cached_property
    def _groups(self) -> Groups:
        """The rows of each class of each task, or of each task."""
        task = np.repeat(np.arange(len(self.tables)), [len(table.table.rows) for table in self.tables])
        label = np.zeros_like(task)
        if self.classes:
            places = {name: place for place, name in enumerate(self.labels)}
            label = np.array([places[name] for name in self._label_of_row])
        order = np.lexsort([label, task])
        [tasks, labels], counts = np.unique(np.stack([task, label]), axis=1, return_counts=True)
        return Groups(order, tasks, labels, counts, labels if self._split_by_class else tasks)

    @cached_property
    def _x(self) -> Values:
        return self._numbers(self._names[0])

    @cached_property
    def _y(self) -> Values:
        return self._numbers(self._names[1])

    def _numbers(self, names: Sequence[str]) -> Values:
        """Return columns of all rows, group after group."""
        return np.concatenate([table.table.numbers(names) for table in self.tables])[self._groups.order]

    def _pools(self, split: str) -> tuple[Pools, list[str]]:
        """Return what episodes of a split are drawn from, and what is too small for that.

        Raises ValueError where nothing is left.
        """
        groups, ways, least = self._groups, self.ways if self.classes else 1, self.shots + self.queries
        inside = np.isin(groups.split_by, self.splits[split])
        large = inside & (groups.counts >= least)
        pool_of = np.zeros_like(groups.tasks) if self._split_by_class else groups.tasks
        pools, sizes = np.unique(pool_of[large], return_counts=True)
        kept = large & np.isin(pool_of, pools[sizes >= ways])
        few = [f"{self._name(group)} ({groups.counts[group]})" for group in np.flatnonzero(inside & ~kept).tolist()]
        sizes = sizes[sizes >= ways]
        rows = f"{least} rows (dataset.shots + dataset.queries)"
        classes = f"{ways} classes (dataset.ways) of {rows} each"
        expected = f"a task with {classes if self.classes else rows}"
        got = f"{shorten(few)} alone" if few else "none"
        require(len(sizes) > 0, f"split {split} of {self.root}", classes if self._split_by_class else expected, got)
        starts = np.cumsum(groups.counts) - groups.counts
        return Pools(np.cumsum(sizes) - sizes, sizes, starts[kept], groups.counts[kept], groups.labels[kept]), few

    def _name(self, group: int) -> str:
        task, label = self.tables[self._groups.tasks[group]].name, self.labels[self._groups.labels[group]]
        return label if self._split_by_class else f"{task}/{label}" if self.classes else task

    @cached_property
    def sampler(self) -> RowTasks:
        """How episodes are drawn from the rows of each split; what is too small is named in the log."""
        found = {split: self._pools(split) for split in SPLITS}
        if few := [name for _, names in found.values() for name in names]:
            what = "classes" if self.classes else "tasks"
            needed = f"dataset.shots + dataset.queries = {self.shots + self.queries} rows"
            needed += f", or in tasks of fewer than {self.ways} such," if self.classes else ""
            log.warning("%s with fewer than %s are left out: %s", what, needed, shorten(few))
        pools = {split: pools for split, (pools, _) in found.items()}
        x = self.columns.x_scale.standardize(torch.from_numpy(self._x)).float()
        y = None
        if self.columns.y_scale:
            y = self.columns.y_scale.standardize(torch.from_numpy(self._y)).float()
        return RowTasks(x, y, pools, self.ways if self.classes else 1, self.shots, self.queries)

    @property
    def picture(self) -> FittedRows | None:
        """What a learner makes of test tasks where x and y are one number each; None otherwise."""
        one = not self.classes and self.input_shape == (1,) and self.outputs == 1
        return FittedRows(self) if one else None

    def measure(self) -> dict[str, Any]:
        """Return the columns and their scales; raises ValueError where a split cannot fill an episode."""
        for split in SPLITS:  # refused before anything is trained or written
            self._pools(split)
        x, y, x_scale, y_scale = self.columns
        found: dict[str, Any] = {"x": x, "y": self.y if self.classes else y}
        found |= {"x_mean": x_scale.mean, "x_std": x_scale.std}
        return found | ({"y_mean": y_scale.mean, "y_std": y_scale.std} if y_scale else {})

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes of a split: x [tasks, points, F] and y [tasks, points, d], or classes."""
        return self.sampler.draw(split, rng, tasks).episode

    def draw_classes(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw the same episodes of labels, with their classes; a label is one class in all tasks."""
        return self.sampler.draw(split, rng, tasks)

    def to(self, device: torch.device | str) -> None:
        """Move the rows to the device that trains."""
        self.sampler.to(device)
