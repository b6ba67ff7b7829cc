"""Meta-batches as a pure function of a key: batch k of a split depends on (seed, split, k) and nothing else.

Whatever the devices, the chunking or the moment at which a run was stopped and continued, batch k holds the same tasks:
of W processes that train together, the one of rank r takes the tasks r, r + W, r + 2 W, ... of the one batch.
Validation and test tasks take a seed of their own, and each task a key of its own, so that every run, algorithm and
meta-batch size is scored on the same ones. With ``num_tasks`` the training tasks are as many as that, images and points
included: task i is a function of (seed, i), and batch k draws its tasks from them by its own key.
"""

from typing import Protocol

import numpy as np
import torch
from torch.utils._pytree import tree_map

from meta_exp.tasks.episode import Episode

SPLITS = ("train", "validation", "test")
FIXED = len(SPLITS)  # stands for the split in the keys of a finite number of training tasks
EVALUATION_SEED = 0
FRESH = 2  # rank of tasks by which nothing was chosen; 0 is that of the tasks themselves, 1 of points foreign to them
EVALUATION_BATCH = 10  # tasks at once in validation and test; bounds the memory of predictive draws


class TaskFamily(Protocol):
    """What a data set offers: its shapes, and episodes drawn with a given generator."""

    @property
    def meta_batch(self) -> int:
        """Tasks in a training meta-batch."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    def outputs(self) -> int:
        """Outputs that the network needs: classes, or dimensions of y."""

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw a meta-batch of ``tasks`` episodes of a split."""

    def to(self, device: torch.device) -> None:
        """Move resident data to the device that trains."""


def draw_batch(family: TaskFamily, seed: int, split: str, k: int, num_tasks: int | None = None) -> Episode:
    """Draw meta-batch k of a split, with ``family.meta_batch`` tasks.

    They are new ones, or else some of ``num_tasks``, each equally likely, and none twice in a batch, unless there are
    fewer than it holds.
    """
    rng = _generator(seed, SPLITS.index(split), k)
    if num_tasks is None:
        return family.draw(split, rng, family.meta_batch)
    chosen = rng.choice(num_tasks, family.meta_batch, replace=num_tasks < family.meta_batch)
    return stack([family.draw(split, _generator(seed, FIXED, int(i)), 1) for i in chosen])


def draw_tasks(family: TaskFamily, split: str, start: int, stop: int, rank: int = 0) -> Episode:
    """Draw the evaluation tasks start .. stop-1 of a split, the same for every run; at another rank, other ones."""
    return stack([family.draw(split, evaluation_generator(split, k, rank), 1) for k in range(start, stop)])


def evaluation_generator(split: str, k: int, rank: int = 0) -> np.random.Generator:
    """Return the generator of evaluation task k; at another rank, of what else is drawn for it."""
    return _generator(EVALUATION_SEED, SPLITS.index(split), k, rank)


def stack(tasks: list[Episode]) -> Episode:
    """Make one meta-batch of several."""
    return tree_map(lambda *fields: torch.cat(fields), *tasks)


def _generator(seed: int, split: int, k: int, rank: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, split, k, rank))  # without the rank's zero all tasks would be other ones
