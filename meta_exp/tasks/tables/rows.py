"""Episodes of rows: support and query are rows of one table, drawn without repetition.

Rows lie in groups, and groups in pools; an episode draws a pool of its split, in it ``ways`` groups in random order,
and in each group ``shots`` support and ``queries`` query rows. For numbers a task is a pool of one group, and targets
are the rows'. For classes a group is a class, and the label j is the j-th group drawn. Every random number comes from
the given generator on the CPU.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meta_exp.tasks.episode import ClassEpisode, Episode, Examples
from meta_exp.tasks.images.episodes import distinct

Integers = NDArray[np.int64]


class Pools(NamedTuple):
    """The pools of a split: where the groups of each begin and how many there are; of each group the same for rows.

    ``names`` are numbers that tell which groups are of one class.
    """

    starts: Integers
    sizes: Integers
    row_starts: Integers
    row_counts: Integers
    names: Integers


@dataclass
class RowTasks:
    """Episodes of ``ways`` groups with ``shots`` support and ``queries`` query rows of x [rows, F] each.

    ``y`` [rows, d] are the targets; None where they are classes.
    """

    x: Tensor
    y: Tensor | None
    pools: dict[str, Pools]
    ways: int
    shots: int
    queries: int

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw ``tasks`` episodes and their groups: x [tasks, ways * shots, F], y [tasks, ways * shots, d] or classes.

        The query set has ``queries`` in place of ``shots``.
        """
        pools = self.pools[split]
        pool = rng.integers(len(pools.sizes), size=tasks)
        groups = pools.starts[pool][:, None] + distinct(rng, tasks, pools.sizes[pool], self.ways)
        rows = distinct(rng, groups.size, pools.row_counts[groups.ravel()], self.shots + self.queries)
        rows = rows.reshape(tasks, self.ways, -1) + pools.row_starts[groups][..., None]
        support, query = rows[..., : self.shots], rows[..., self.shots :]
        return ClassEpisode(Episode(self._examples(support), self._examples(query)), pools.names[groups])

    def _examples(self, rows: Integers) -> Examples:
        tasks, ways, each = rows.shape
        place = torch.from_numpy(rows.reshape(tasks, -1)).to(self.x.device)
        if self.y is not None:
            return Examples(self.x[place], self.y[place])
        return Examples(self.x[place], torch.arange(ways, device=place.device).repeat_interleave(each).repeat(tasks, 1))

    def to(self, device: torch.device | str) -> None:
        """Move the rows to the device that trains."""
        self.x, self.y = self.x.to(device), None if self.y is None else self.y.to(device)
