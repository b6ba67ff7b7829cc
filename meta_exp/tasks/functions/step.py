"""Step functions: y = left where x < edge, else right, plus noise.

left, right ~ U[level] and edge ~ U[edge]: what happens beyond the edge cannot be known from one side of it.
"""

from dataclasses import dataclass

import numpy as np

from meta_exp.tasks.functions.base import Curves, CurveTasks, Range, uniform


@dataclass(frozen=True)
class Step(CurveTasks):
    """Functions of two levels with one jump."""

    level: Range = (-3.0, 3.0)
    edge: Range = (-2.5, 2.5)

    def curves(self, rng: np.random.Generator, tasks: int) -> Curves:
        """Draw both levels and the edge of each task."""
        left, right, edge = (uniform(rng, r, tasks) for r in (self.level, self.level, self.edge))
        return lambda x: np.where(x < edge, left, right)
