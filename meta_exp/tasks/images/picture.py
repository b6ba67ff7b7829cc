"""An episode of image classes: its support images, and query images with the probabilities that a learner gives.

Many classes wrap into rows, and of their probabilities those of the likeliest are drawn, the true class always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from meta_exp.tasks.episode import Episode
from meta_exp.tasks.images.files import Treatment
from meta_exp.tasks.picture import Values, View
from meta_exp.tasks.stream import TaskFamily, draw_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_COLUMNS, MOST_COLUMNS = 5, 10
QUERY_ROWS = 2
MOST_BARS = 10  # of as many ways all are drawn; of more
LIKELIEST = 5
WIDTH = 9.5  # inches, or as wide as the columns need
LETTERS = 26


class TreatedFamily(TaskFamily, Protocol):
    """Tasks about images that were treated before they are seen."""

    @property
    def treatment(self) -> Treatment:
        """How they were treated."""


@dataclass(frozen=True)
class ClassifiedImages:
    """The first test task: one support image of each class, and query images with bars of probability below."""

    family: TreatedFamily

    name = "episode"

    def tasks(self) -> Episode:
        """Draw the first test task."""
        return draw_tasks(self.family, "test", 0, 1)

    def draw(self, views: Sequence[View]) -> Figure:
        """Draw the one task."""
        from matplotlib.figure import Figure

        [view] = views
        labels, truth, probabilities = view.support_y, view.query_y, view.probabilities
        ways = int(labels.max()) + 1
        columns = max(-(-ways // -(-ways // MOST_COLUMNS)), LEAST_COLUMNS)
        of_class = [np.flatnonzero(truth == c) for c in range(ways)]
        shown = [int(rows[i]) for i in range(2) for rows in of_class if i < len(rows)][: QUERY_ROWS * columns]
        support_rows, rows = -(-ways // columns), -(-len(shown) // columns)
        side = max(WIDTH, 1.3 * columns) / columns
        heights = 0.3 + (0.2 + 0.6 * side) * support_rows, 0.3 + (0.5 + 1.2 * side) * rows
        figure = Figure(figsize=(side * columns, sum(heights)), layout="constrained")
        top, bottom = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=heights)))
        top.suptitle("support: one image of each class of the task", x=0.01, ha="left", fontsize=9)
        names = [chr(ord("A") + c) if ways <= LETTERS else str(c) for c in range(ways)]
        for c, ax in enumerate(top.subplots(support_rows, columns, squeeze=False).flat):
            ax.set_axis_off()
            if c < ways:
                self._show_image(ax, view.support_x[labels == c][0])
                ax.set_title(names[c] if ways > MOST_COLUMNS else f"class {names[c]}", fontsize=9)
        of = "each class (the true one in black)"
        of = of if ways <= MOST_BARS else f"{LIKELIEST} classes: the true one, in black, and the likeliest others"
        title = f"query: new images, and the probability of {of}"
        bottom.suptitle(title, x=0.01, ha="left", fontsize=9)
        grid = bottom.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": [1.0, 0.9] * rows})
        for ax in grid.flat:
            ax.set_axis_off()
        for i, q in enumerate(shown):
            image, bars = grid[2 * (i // columns)][i % columns], grid[2 * (i // columns) + 1][i % columns]
            self._show_image(image, view.query_x[q])
            right = int(next(reversed(probabilities.values()))[q].argmax()) == int(truth[q])
            image.set_title(f"{names[int(truth[q])]}: {'right' if right else 'WRONG'}", fontsize=9)
            _draw_bars(bars, {kind: p[q] for kind, p in probabilities.items()}, int(truth[q]), names)
        if len(probabilities) > 1:
            handles, kinds = grid[1][0].get_legend_handles_labels()
            figure.legend(handles, kinds, loc="outside lower center", ncol=len(kinds))
        return figure

    def _show_image(self, ax: Axes, image: NDArray) -> None:
        """Show an image [C, H, W] as it was: strokes, which are high, dark."""
        invert, *moments = self.family.treatment
        mean, std = (np.asarray(values)[:, None, None] for values in moments)
        pixels = np.moveaxis(np.clip(image * std + mean, 0, 1), 0, -1)
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0] if invert is False else 1 - pixels[..., 0]
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)


def _draw_bars(ax: Axes, probabilities: Mapping[str, Values], truth: int, names: Sequence[str]) -> None:
    ax.set_axis_on()
    shown, kinds = _classes(probabilities, truth), len(probabilities)
    width = 0.8 / kinds
    for j, (kind, p) in enumerate(probabilities.items()):
        positions = np.arange(len(shown)) + (j - (kinds - 1) / 2) * width
        ax.bar(positions, p[shown], width, color=f"C{j}", alpha=0.9 if j == 0 else 0.6, label=kind)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 1])
    ax.set_xticks(range(len(shown)), [names[c] for c in shown], fontsize=7, color="gray")
    tick = ax.get_xticklabels()[shown.index(truth)]
    tick.set(color="black", fontweight="bold")


def _classes(probabilities: Mapping[str, Values], truth: int) -> list[int]:
    """Return the classes whose probabilities are drawn, in their order: all, or of many the likeliest and the true."""
    highest = np.max([*probabilities.values()], axis=0)
    if len(highest) <= MOST_BARS:
        return list(range(len(highest)))
    likeliest = [int(c) for c in np.argsort(-highest, kind="stable")]
    return sorted([truth, *[c for c in likeliest if c != truth][: LIKELIEST - 1]])
