"""Step functions: y = left where x < edge, else right, plus noise.

left, right ~ U[level] and edge ~ U[edge]: what happens beyond the edge cannot be known from one side of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meta_exp.tasks.functions.base import Curves, CurveTasks, Range, uniform
from meta_exp.tasks.functions.prior import Prior


@dataclass(frozen=True)
class Step(CurveTasks):
    """Functions of two levels with one jump."""

    level: Range = (-3.0, 3.0)
    edge: Range = (-2.5, 2.5)

    def curves(self, rng: np.random.Generator, tasks: int) -> Curves:
        """Draw both levels and the edge of each task."""
        left, right, edge = (uniform(rng, r, tasks) for r in (self.level, self.level, self.edge))
        return lambda x: np.where(x < edge, left, right)

    def prior(self) -> Prior:
        """Return the prior; given the edge, each level is a coefficient of its own side."""

        def parts(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(x), torch.stack([x < u, x >= u], -1).to(x)

        return Prior((self.edge,), (self.level, self.level), parts, jumps=True)
