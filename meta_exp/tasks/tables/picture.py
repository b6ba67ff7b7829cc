"""Tasks of one number by one: rows of a table, and what a learner makes of a few of them, in the units of the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from meta_exp.tasks.episode import Episode
from meta_exp.tasks.functions.picture import TASKS, add_legend, draw_task
from meta_exp.tasks.picture import Band, Values, View
from meta_exp.tasks.stream import TaskFamily, draw_tasks
from meta_exp.tasks.tables.columns import RunColumns, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tabular(TaskFamily, Protocol):
    """Tasks about the rows of tables."""

    @property
    def columns(self) -> RunColumns:
        """The columns of x and y."""


@dataclass(frozen=True)
class FittedRows:
    """The first test tasks: support, query points, predictions, the band and posterior draws."""

    family: Tabular

    name = "rows"

    def tasks(self) -> Episode:
        """Draw the first test tasks."""
        return draw_tasks(self.family, "test", 0, TASKS)

    def draw(self, views: Sequence[View]) -> Figure:
        """Draw the tasks side by side."""
        from matplotlib.figure import Figure

        [x], [y], x_scale, y_scale = self.family.columns
        assert y_scale is not None
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, len(views), squeeze=False)[0]
        for view, ax in zip(views, axes, strict=True):
            draw_task(ax, _in_units(view, x_scale, y_scale), curve=False)
            ax.set_xlabel(x)
        axes[0].set_ylabel(y)
        add_legend(figure, axes[0])
        return figure


def _in_units(view: View, x: Scale, y: Scale) -> View:
    """Return a view in the units of the files."""
    return View(
        _restored(view.support_x, x),
        _restored(view.support_y, y),
        _restored(view.query_x, x),
        _restored(view.query_y, y),
        path={k: _restored(outputs, y) for k, outputs in view.path.items()},
        band=view.band and Band(*(_restored(values, y) for values in view.band)),
        draws=None if view.draws is None else _restored(view.draws, y),
        probabilities={},
    )


def _restored(values: Values, scale: Scale) -> np.ndarray:
    return scale.restore(torch.from_numpy(values)).numpy()
