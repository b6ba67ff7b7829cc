"""The fan: functions of one variable whose support lies in the left half. Does a learner know what it does not know?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from meta_exp.tasks.episode import Episode
from meta_exp.tasks.picture import View
from meta_exp.tasks.stream import EVALUATION_SEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = 3
DRAWS = 8  # of the posterior


class Curves(Protocol):
    """Functions of one variable, which can be drawn as curves."""

    def draw_curves(self, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw tasks whose query set is the true curve on a grid."""


@dataclass(frozen=True)
class Fan:
    """Truth, support, predictions before and after adaptation, the band around the last, and posterior draws."""

    family: Curves

    name = "fan"

    def tasks(self) -> Episode:
        """Draw a few functions of the family."""
        return self.family.draw_curves(np.random.default_rng(EVALUATION_SEED), TASKS)

    def draw(self, views: Sequence[View]) -> Figure:
        """Draw the tasks side by side."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, len(views), sharey=True, squeeze=False)[0]
        for view, ax in zip(views, axes, strict=True):
            draw_task(ax, view)
            ax.set_xlabel("x")
        axes[0].set_ylabel("y")
        add_legend(figure, axes[0])
        return figure


def add_legend(figure: Figure, ax: Axes) -> None:
    """Say below the figure what is drawn in ``ax``."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=len(labels))


def draw_task(ax: Axes, view: View, *, curve: bool = True) -> None:
    """Draw one task, whose query points, in any order, are a ``curve`` or else data; draws do not stretch the axes."""
    assert view.band is not None
    order = np.argsort(view.query_x[:, 0], kind="stable")
    mean, low, high = (values[order, 0] for values in view.band)
    grid, truth, steps = view.query_x[order, 0], view.query_y[order, 0], max(view.path)
    label = "95 % band" + (" (noise only)" if view.draws is None else "")
    ax.fill_between(grid, low, high, color="C0", alpha=0.18, lw=0, label=label)
    if curve:
        ax.plot(grid, truth, color="black", lw=1.2, label="true curve")
    else:
        ax.plot(grid, truth, ".", color="black", ms=4, label="query points")
    for k, style in ({0: ":", 1: "--", steps: "-"} if steps else {0: ":"}).items():
        name = {0: "before adaptation", 1: "after 1 step"}.get(k, f"after {k} steps")
        ax.plot(grid, view.path[k][order, 0], style, color="C0" if k else "gray", lw=1.4, label=name)
    if not steps:  # adaptation is a solve, whose result is the band's middle
        ax.plot(grid, mean, "-", color="C0", lw=1.4, label="adapted")
    ax.plot(view.support_x[:, 0], view.support_y[:, 0], "o", color="C3", ms=5, label="support points", zorder=5)
    if view.draws is not None:
        drawn = view.draws[:DRAWS, order, 0].T
        lines = ax.plot(grid, drawn, color="0.45", lw=0.5, alpha=0.7, zorder=1)
        lines[0].set_label("posterior draws")
        for line in lines:
            line.remove()  # and put back without its part in the limits
            ax.add_artist(line)
    error = float(((mean - truth) ** 2).mean())
    over = f"the curve {error:.2f}" if curve else f"the query points {error:.3g}"
    ax.set_title(f"{len(view.support_x)} support points, MSE over {over}")
