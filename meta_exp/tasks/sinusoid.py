"""The sinusoid family of Finn, Abbeel and Levine (2017): y = A sin(x - phase) + noise.

A ~ U[amplitude], phase ~ U[phase], x ~ U[x_range], noise ~ N(0, noise^2); every split has the same distribution
and draws of its own.
"""

from dataclasses import dataclass
from math import pi

import numpy as np
import torch

from meta_exp.checks import require
from meta_exp.tasks.episode import Episode, Examples

Range = tuple[float, float]


@dataclass(frozen=True)
class Sinusoid:
    """Tasks with ``shots`` support and ``queries`` query points, inputs of shape [1] and one output."""

    shots: int = 10
    queries: int = 10
    meta_batch: int = 25
    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, pi)
    x_range: Range = (-5.0, 5.0)
    noise: float = 0.0

    input_shape = (1,)
    outputs = 1
    classes = False

    def __post_init__(self) -> None:
        """Refuse empty tasks, reversed ranges and negative noise."""
        for name in ("shots", "queries", "meta_batch"):
            require(getattr(self, name) >= 1, f"dataset.{name}", "at least 1", getattr(self, name))
        for name in ("amplitude", "phase", "x_range"):
            low_high = getattr(self, name)
            ordered = len(low_high) == 2 and low_high[0] <= low_high[1]
            require(ordered, f"dataset.{name}", "[low, high] with low <= high", list(low_high))
        require(self.noise >= 0, "dataset.noise", "a standard deviation >= 0", self.noise)

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw a meta-batch of ``tasks`` tasks; x and y are float32 of shape [tasks, points, 1]."""
        points = self.shots + self.queries
        amplitude = rng.uniform(*self.amplitude, size=(tasks, 1, 1))
        phase = rng.uniform(*self.phase, size=(tasks, 1, 1))
        x = rng.uniform(*self.x_range, size=(tasks, points, 1))
        y = amplitude * np.sin(x - phase) + self.noise * rng.standard_normal(x.shape)
        return split_points(torch.from_numpy(x).float(), torch.from_numpy(y).float(), self.shots)


def split_points(x: torch.Tensor, y: torch.Tensor, shots: int) -> Episode:
    """Make an episode of points [tasks, shots + queries, ...]: the first ``shots`` are the support."""
    return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))
