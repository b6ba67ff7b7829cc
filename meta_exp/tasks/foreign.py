"""Points that are foreign to a test task: what a learner that knows its limits should be unsure about.

For classes they are the query images of a second episode of the same split, drawn with a key of its own, so that task k
has the same ones in every run; an image whose class the task happens to hold too is marked as not foreign. For
functions of x there is nothing to draw: query points outside the range of the support's x are foreign.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from meta_exp.tasks.episode import ClassEpisode, Episode
from meta_exp.tasks.stream import TaskFamily, draw_tasks, evaluation_generator, stack

FOREIGN_RANK = 1  # evaluation tasks are drawn at rank 0


class Foreign(NamedTuple):
    """Inputs ``x`` [M, *features], and which of them are foreign [M]; or with a leading dimension of tasks."""

    x: Tensor
    foreign: Tensor


@runtime_checkable
class ClassFamily(TaskFamily, Protocol):
    """Tasks that show some classes of a split, so that others are foreign to them."""

    def draw_classes(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw the episodes that ``draw`` draws, with their classes."""


def draw_with_foreign(family: TaskFamily, split: str, start: int, stop: int) -> tuple[Episode, Foreign | None]:
    """Draw the evaluation tasks start .. stop-1, and images foreign to each; None for a family that has no classes."""
    if not family.classes or not isinstance(family, ClassFamily):
        return draw_tasks(family, split, start, stop), None
    own, other = (
        [family.draw_classes(split, evaluation_generator(split, k, rank), 1) for k in range(start, stop)]
        for rank in (0, FOREIGN_RANK)
    )
    x = torch.cat([drawn.episode.query.x for drawn in other])
    foreign = [_foreign(a, b) for a, b in zip(own, other, strict=True)]
    return stack([drawn.episode for drawn in own]), Foreign(x, torch.stack(foreign).to(x.device))


def beyond_support(episode: Episode) -> Tensor:
    """Mark the query points [M] of one task of which some coordinate lies outside the support's range."""
    support, query = episode.support.x.flatten(1), episode.query.x.flatten(1)
    return ((query < support.amin(0)) | (query > support.amax(0))).any(-1)


def _foreign(own: ClassEpisode, other: ClassEpisode) -> Tensor:
    """Mark the query images [M] of one other task whose class is none of the task's own."""
    return torch.from_numpy(~np.isin(other.classes[0], own.classes[0]))[other.episode.query.y[0].cpu()]
