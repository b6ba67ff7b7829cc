"""The columns of a table that a run goes by, and the scale on which it sees them: z = (value - mean) / std.

A network sees x and y standardised; whoever uses it reads and writes the units of the files.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Scale(NamedTuple):
    """Mean and deviation of each column, in the units of the files."""

    mean: Sequence[float]
    std: Sequence[float]

    def standardize(self, values: Tensor) -> Tensor:
        """Return ``values`` [..., columns] as a network sees them, in float64: means may be large."""
        return (values.double() - self._on(values, self.mean)) / self._on(values, self.std)

    def restore(self, values: Tensor) -> Tensor:
        """Return standardised ``values`` [..., columns] in the units of the files, in float64."""
        return values.double() * self._on(values, self.std) + self._on(values, self.mean)

    def restore_variance(self, values: Tensor) -> Tensor:
        """Return standardised variances [..., columns] in the squared units of the files, in float64."""
        return values.double() * self._on(values, self.std) ** 2

    @staticmethod
    def _on(values: Tensor, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=values.device)


class RunColumns(NamedTuple):
    """The columns x, and y: numbers, or one column of labels; ``y_scale`` is None for labels."""

    x: list[str]
    y: list[str]
    x_scale: Scale
    y_scale: Scale | None


def measure_scale(values: NDArray[np.float64]) -> Scale:
    """Return the scale of ``values`` [rows, columns]; a constant column keeps its unit, and becomes 0."""
    mean, std = values.mean(0), values.std(0)
    constant = std <= 1e-9 * np.abs(mean)  # as far as float64 tells
    return Scale(_rounded(mean), _rounded(np.where(constant, 1.0, std)))


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.9g}") for value in values]
