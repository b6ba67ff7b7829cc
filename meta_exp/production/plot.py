"""Pictures of one task: a curve with its band and the examples, or the images of each class with what joins them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from meta_exp.production.answers import Classification, Regression
from meta_exp.runs.pictures import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 200  # of a curve
BEYOND = 0.25  # of the examples' range, on each side
SUPPORT, QUERY = 5, 10  # images of a class that are shown, at most
GAP = 2  # pixels between two images
Values = NDArray[Any]


def new_axes() -> Axes:
    """Return the axes of a new figure, which a notebook shows by itself."""
    import matplotlib.pyplot as plt
    import matplotlib.style

    with matplotlib.style.context(STYLE):
        return plt.subplots(layout="constrained")[1]


def grid_over(x: Values) -> Values:
    """Return points [n, 1] over the range of ``x`` [N, 1] and beyond."""
    low, high = float(x.min()), float(x.max())
    beyond = BEYOND * (high - low) or 1.0
    return np.linspace(low - beyond, high + beyond, POINTS)[:, None]


def draw_curve(ax: Axes, grid: Values, found: Regression, x: Values, y: Values, level: float) -> None:
    """Draw the mean and the interval of each output over ``grid`` [n, 1], and the examples."""
    low, high = found.interval(level)
    mean, low, high, y = (np.asarray(values).reshape(len(values), -1) for values in (found.mean, low, high, y))
    for d in range(mean.shape[1]):
        of = f" of y[{d}]" if mean.shape[1] > 1 else ""
        ax.fill_between(
            grid[:, 0], low[:, d], high[:, d], color=f"C{d}", alpha=0.18, lw=0, label=f"{level:.0%} band{of}"
        )
        ax.plot(grid[:, 0], mean[:, d], color=f"C{d}", lw=1.4, label=f"mean{of}")
    ax.plot(np.repeat(x, y.shape[1], 1), y, "o", color="C3", ms=5, zorder=5)
    ax.lines[-1].set_label("examples")
    ax.legend()


def draw_probabilities(ax: Axes, grid: Values, found: Classification, x: Values, y: Values) -> None:
    """Draw the probability of each class over ``grid`` [n, 1], and the examples of the class at the top."""
    for c, name in enumerate(found.classes):
        ax.plot(grid[:, 0], found.probabilities[:, c], color=f"C{c}", lw=1.4, label=str(name))
        own = x[y == name, 0]
        ax.plot(own, np.ones(len(own)), "o", color=f"C{c}", ms=5)
    ax.set_ylabel("probability")
    ax.legend()


def draw_images(ax: Axes, images: Values, y: Values, asked: Values | None, found: Classification | None) -> None:
    """Show a row for each class: its examples and, behind a gap, the images that are taken for it, with a probability.

    Args:
        ax: where to draw.
        images: the examples, [N, H, W] or [N, H, W, 3] in [0, 1].
        y: their classes [N].
        asked: further images, if any.
        found: their predictions.
    """
    classes = np.unique(y)
    height, width = images.shape[1] + GAP, images.shape[2] + GAP
    shown = [np.flatnonzero(y == name)[:SUPPORT] for name in classes]
    columns = max(map(len, shown))
    none = np.zeros(0, np.int64)
    taken = [np.flatnonzero(np.asarray(found.labels) == name)[:QUERY] if found else none for name in classes]
    start = columns * width + 2 * GAP
    sheet = np.ones((len(classes) * height - GAP, start + max(map(len, taken)) * width, *images.shape[3:]))
    for row, (own, others) in enumerate(zip(shown, taken, strict=True)):
        placed = [(images[i], k * width, "") for k, i in enumerate(own)]
        if asked is not None and found is not None:
            sure = np.asarray(found.probabilities).max(1)
            placed += [(asked[i], start + k * width, f"{sure[i]:.0%}") for k, i in enumerate(others)]
        for image, left, words in placed:
            sheet[row * height : row * height + height - GAP, left : left + width - GAP] = image
            ax.text(left + 1, (row + 1) * height - GAP - 1, words, fontsize=7, color="C3", va="bottom")
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1)
    ax.set_yticks([(row + 0.5) * height for row in range(len(classes))], [str(name) for name in classes])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if found is not None:
        ax.axvline(start - 1.5 * GAP, color="0.6", lw=0.8)
        ax.set_title("examples | taken for the class, with its probability", fontsize=9)
