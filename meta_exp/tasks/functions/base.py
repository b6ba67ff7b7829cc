"""Families of functions of one variable: y = f(x) + noise, with x ~ U[x_range] and noise ~ N(0, noise^2).

A family says how its functions are drawn; the points, the sets and the pictures are the same for all. Every split has
the same distribution and draws of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from meta_exp.config.checks import require, require_at_most, require_within
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.functions.picture import Fan
from meta_exp.tasks.functions.prior import Prior

SMALLEST, LARGEST = 1e-6, 1e6  # of a number of the tasks, whose squares have to fit into float32
POINTS = 10**5  # of a set, or tasks of a meta-batch
Range = tuple[float, float]
Values = NDArray[np.float64]
Curves = Callable[[Values], Values]  # of [tasks, points, 1], one function for each task


@dataclass(frozen=True)
class CurveTasks(ABC):
    """Tasks with ``shots`` support and ``queries`` query points, inputs of shape [1] and one output."""

    shots: int = 10
    queries: int = 10
    meta_batch: int = 25
    x_range: Range = (-5.0, 5.0)
    noise: float = 0.0

    input_shape = (1,)
    outputs = 1
    classes = False

    def __post_init__(self) -> None:
        """Refuse empty tasks, reversed ranges and negative noise."""
        for name in ("shots", "queries", "meta_batch"):
            require(getattr(self, name) >= 1, f"dataset.{name}", "at least 1", getattr(self, name))
            require_at_most(POINTS, f"dataset.{name}", getattr(self, name))
        for name in (field.name for field in fields(self) if field.type is Range):
            low_high = getattr(self, name)
            ordered = len(low_high) == 2 and low_high[0] <= low_high[1]
            require(ordered, f"dataset.{name}", "[low, high] with low <= high", list(low_high))
            require_at_most(LARGEST, f"dataset.{name}", max(map(abs, low_high)))
        require(self.noise >= 0, "dataset.noise", "a standard deviation >= 0", self.noise)
        require_within((SMALLEST, LARGEST), "dataset.noise", self.noise or LARGEST)

    @abstractmethod
    def curves(self, rng: np.random.Generator, tasks: int) -> Curves:
        """Draw the functions of ``tasks`` tasks."""

    def prior(self) -> Prior | None:
        """Return the prior in the form that the exact predictor needs, or None for a family that has not got it."""
        return None

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` tasks; x and y are float32 of shape [tasks, points, 1]."""
        curve = self.curves(rng, tasks)
        x = rng.uniform(*self.x_range, size=(tasks, self.shots + self.queries, 1))
        y = curve(x) + self.noise * rng.standard_normal(x.shape)
        support, query = slice(None, self.shots), slice(self.shots, None)
        return Episode(_examples(x[:, support], y[:, support]), _examples(x[:, query], y[:, query]))

    def draw_curves(self, rng: np.random.Generator, tasks: int, points: int = 200) -> Episode:
        """Draw tasks for a picture: the query set is the true curve, free of noise, on a grid over ``x_range``.

        The support set lies in the left half of the range, so that the right half shows what the learner does not know.
        """
        curve = self.curves(rng, tasks)
        low, high = self.x_range
        x = np.sort(rng.uniform(low, (low + high) / 2, size=(tasks, self.shots, 1)), axis=1)
        y = curve(x) + self.noise * rng.standard_normal(x.shape)
        grid = np.tile(np.linspace(low, high, points)[:, None], (tasks, 1, 1))
        return Episode(_examples(x, y), _examples(grid, curve(grid)))

    @property
    def picture(self) -> Fan:
        """What a learner makes of a few functions, with the support in the left half."""
        return Fan(self)

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Hold nothing on a device: each batch is moved as it is drawn."""


def uniform(rng: np.random.Generator, low_high: Range, tasks: int, terms: int = 1) -> Values:
    """Draw [tasks, 1, terms] from a range; one that is a point takes no random number."""
    low, high = low_high
    return rng.uniform(low, high, size=(tasks, 1, terms)) if low < high else np.full((tasks, 1, terms), low)


def _examples(x: Values, y: Values) -> Examples:
    return Examples(torch.from_numpy(x).float(), torch.from_numpy(y).float())
