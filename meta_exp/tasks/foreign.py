"""Points that are foreign to a test task: what a learner that knows its limits should be unsure about.

For classes they are the query images of a second episode of the same split, drawn with a key of its own, so that task k
has the same ones in every run; an image whose class the task happens to hold too is marked as not foreign. For
functions of x there is nothing to draw: query points outside the range of the support's x are foreign.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from meta_exp.tasks.episode import Episode
from meta_exp.tasks.images.episodes import ImageTasks
from meta_exp.tasks.stream import EVALUATION_SEED, SPLITS, TaskFamily

FOREIGN_RANK = 1  # evaluation tasks are drawn at rank 0


class Foreign(NamedTuple):
    """Inputs ``x`` [M, *features], and which of them are foreign [M]; or with a leading dimension of tasks."""

    x: Tensor
    foreign: Tensor


@runtime_checkable
class ClassFamily(TaskFamily, Protocol):
    """Tasks that show some classes of a split, so that others are foreign to them."""

    @property
    def sampler(self) -> ImageTasks:
        """Draws episodes; its choices name their classes."""


def draw_foreign(family: TaskFamily, split: str, start: int, stop: int) -> Foreign | None:
    """Draw the foreign images of evaluation tasks start .. stop-1, or None for a family that has no classes."""
    if not isinstance(family, ClassFamily):
        return None
    images, foreign = zip(*(_draw(family, split, k) for k in range(start, stop)), strict=True)
    return Foreign(torch.cat(images), torch.stack(foreign).to(images[0].device))


def beyond_support(episode: Episode) -> Tensor:
    """Mark the query points [M] of one task of which some coordinate lies outside the support's range."""
    support, query = episode.support.x.flatten(1), episode.query.x.flatten(1)
    return ((query < support.amin(0)) | (query > support.amax(0))).any(-1)


def _draw(family: ClassFamily, split: str, k: int) -> tuple[Tensor, Tensor]:
    def rng(rank: int) -> np.random.Generator:
        return np.random.default_rng((EVALUATION_SEED, SPLITS.index(split), k, rank))

    own, other = (_classes(family, split, rng(rank)) for rank in (0, FOREIGN_RANK))
    query = family.draw(split, rng(FOREIGN_RANK), 1).query
    return query.x, torch.from_numpy(~np.isin(other, own))[query.y[0].cpu()]


def _classes(family: ClassFamily, split: str, rng: np.random.Generator) -> np.ndarray:
    choice = family.sampler.choose(split, rng, 1)
    return (4 * choice.classes + choice.turns)[0]
