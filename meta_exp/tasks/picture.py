"""The picture of a task family: which tasks it wants to see, and how it draws what a learner makes of them.

A family that has one says so by ``picture``; any other has none. All that a picture is given are plain arrays, so that
families know nothing of learners, and nothing here draws before it is asked to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from meta_exp.tasks.episode import Episode
from meta_exp.tasks.stream import TaskFamily

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.float64]


class Band(NamedTuple):
    """The predictive of y: its ``mean``, and the ends ``low`` and ``high`` of its 95 % interval, [M, d] each."""

    mean: Values
    low: Values
    high: Values


class View(NamedTuple):
    """What a learner makes of one task with the support set x, y and M query points.

    Args:
        support_x: inputs [N, *features].
        support_y: targets [N, d], or classes [N].
        query_x: inputs [M, *features].
        query_y: targets [M, d], or classes [M].
        path: outputs of the network [M, C] by the number of inner steps: before, after the first and after the last.
        band: of a regression, linearised where there is a posterior, else of the network as adapted, with noise alone.
        draws: of a regression with a posterior, outputs [S, M, C] of networks drawn from it.
        probabilities: of classes [M, C], by the name of the predictive.
    """

    support_x: Values
    support_y: NDArray
    query_x: Values
    query_y: NDArray
    path: dict[int, Values]
    band: Band | None
    draws: Values | None
    probabilities: dict[str, Values]


class Picture(Protocol):
    """What a family shows of a learner."""

    name: str  # of its files

    def tasks(self) -> Episode:
        """Draw the tasks that it wants to see, the same for every learner, with a leading dimension of tasks."""

    def draw(self, views: Sequence[View]) -> Figure:
        """Draw what a learner makes of these tasks."""


@runtime_checkable
class Pictured(TaskFamily, Protocol):
    """A family with a picture."""

    @property
    def picture(self) -> Picture | None:
        """The picture of this family's tasks, or None where they have none as they are set."""
