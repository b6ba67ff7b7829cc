"""Meta-batches as a pure function of a key: batch k of a split depends on (seed, split, k) and nothing else.

Whatever the devices, the chunking or the moment at which a run was stopped and continued, batch k holds the same tasks:
of W processes that train together, the one of rank r takes the tasks r, r + W, r + 2 W, ... of the one batch.
Validation and test tasks take a seed of their own, and each task a key of its own, so that every run, algorithm and
meta-batch size is scored on the same ones. With ``num_tasks`` the training tasks are as many as that, images and points
included: task i is a function of (seed, i), and batch k draws its tasks from them by its own key.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils._pytree import tree_map

from meta_exp.checks import require
from meta_exp.tasks.episode import Episode

SPLITS = ("train", "validation", "test")
FIXED = len(SPLITS)  # stands for the split in the keys of a finite number of training tasks
EVALUATION_SEED = 0
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


@runtime_checkable
class CurveFamily(TaskFamily, Protocol):
    """Functions of one variable, which can be drawn as curves."""

    def draw_curves(self, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw tasks whose query set is the true curve on a grid."""


def draw_batch(family: TaskFamily, seed: int, split: str, k: int, num_tasks: int | None = None) -> Episode:
    """Draw meta-batch k of a split, with ``family.meta_batch`` tasks.

    They are new ones, or else some of ``num_tasks``, each equally likely, and none twice in a batch, unless there are
    fewer than it holds.
    """
    rng = _generator(seed, SPLITS.index(split), k)
    if num_tasks is None:
        return family.draw(split, rng, family.meta_batch)
    chosen = rng.choice(num_tasks, family.meta_batch, replace=num_tasks < family.meta_batch)
    return _stack([family.draw(split, _generator(seed, FIXED, int(i)), 1) for i in chosen])


def draw_tasks(family: TaskFamily, split: str, start: int, stop: int) -> Episode:
    """Draw the evaluation tasks start .. stop-1 of a split, the same for every run."""
    keys = range(start, stop)
    return _stack([family.draw(split, _generator(EVALUATION_SEED, SPLITS.index(split), k), 1) for k in keys])


class TaskStream(LightningDataModule):
    """Training meta-batches from the trainer's step on, and fixed validation tasks; ``scores`` draws the test tasks."""

    def __init__(
        self, family: TaskFamily, seed: int, validation_tasks: int, test_tasks: int, num_tasks: int | None = None
    ) -> None:
        require(seed >= 0, "seed", "an integer >= 0", seed)
        require(validation_tasks >= 1, "validation_tasks", "at least 1", validation_tasks)
        require(test_tasks >= 2, "test_tasks", "at least 2, for an interval", test_tasks)
        require(num_tasks is None or num_tasks >= 1, "num_tasks", "null, for new tasks without end, or >= 1", num_tasks)
        super().__init__()
        self.family = family
        self.seed = seed
        self.num_tasks = num_tasks
        self._validation = EvaluationBatches(family, "validation", validation_tasks)

    def setup(self, stage: str) -> None:
        """Move the data to the training device; raises ValueError where a process would be left without a task."""
        assert self.trainer is not None
        ranks, tasks = self.trainer.world_size, self.family.meta_batch
        require(ranks <= tasks, "trainer.devices", f"at most dataset.meta_batch = {tasks} processes", ranks)
        self.family.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> "TrainingBatches":
        """Return meta-batches without end, beginning where the trainer stands."""
        return TrainingBatches(self)

    def val_dataloader(self) -> "EvaluationBatches":
        """Return the validation tasks in batches."""
        return self._validation


class EvaluationBatches:
    """The fixed tasks of a split in batches, drawn once, when first asked for."""

    def __init__(self, family: TaskFamily, split: str, tasks: int) -> None:
        self.family, self.split, self.tasks = family, split, tasks
        self._drawn: list[Episode] = []

    def __len__(self) -> int:
        return -(-self.tasks // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Episode]:
        if not self._drawn:
            ranges = (
                (start, min(start + EVALUATION_BATCH, self.tasks)) for start in range(0, self.tasks, EVALUATION_BATCH)
            )
            self._drawn = [draw_tasks(self.family, self.split, start, stop) for start, stop in ranges]
        return iter(self._drawn)


class TrainingBatches:
    """An endless iterable over training meta-batches that starts at the trainer's current step."""

    def __init__(self, stream: TaskStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Episode]:
        stream, trainer = self.stream, self.stream.trainer
        assert trainer is not None
        first = trainer.global_step * trainer.accumulate_grad_batches
        share = partial(_share, rank=trainer.global_rank, ranks=trainer.world_size)
        for k in count(first):
            yield tree_map(share, draw_batch(stream.family, stream.seed, "train", k, stream.num_tasks))


def _generator(seed: int, split: int, k: int) -> np.random.Generator:
    return np.random.default_rng((seed, split, k, 0))  # without the zero all tasks would be other ones


def _share(tasks: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return tasks if ranks == 1 else tasks[rank::ranks]


def _stack(tasks: list[Episode]) -> Episode:
    return tree_map(lambda *fields: torch.cat(fields), *tasks)
