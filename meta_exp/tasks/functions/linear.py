"""Linear functions: y = slope x + intercept + noise, where Laplace's approximation of a linear model is exact.

slope ~ U[slope], intercept ~ U[intercept].
"""

from dataclasses import dataclass

import numpy as np
import torch

from meta_exp.tasks.functions.base import Curves, CurveTasks, Range, uniform
from meta_exp.tasks.functions.prior import Prior


@dataclass(frozen=True)
class Linear(CurveTasks):
    """Straight lines of random slope and intercept."""

    slope: Range = (-1.0, 1.0)
    intercept: Range = (-3.0, 3.0)

    def curves(self, rng: np.random.Generator, tasks: int) -> Curves:
        """Draw slope and intercept of each task."""
        slope, intercept = uniform(rng, self.slope, tasks), uniform(rng, self.intercept, tasks)
        return lambda x: slope * x + intercept

    def prior(self) -> Prior:
        """Return the prior; the slope is left to quadrature, so that one coefficient is at work at each x."""
        return Prior((self.slope,), (self.intercept,), lambda x, u: (u[0] * x, torch.ones_like(x)[:, None]))
