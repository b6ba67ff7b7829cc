"""The data of a training: meta-batches without end from the trainer's step on, and the fixed validation tasks."""

from collections.abc import Iterator
from functools import partial
from itertools import count

import torch
from pytorch_lightning import LightningDataModule
from torch.utils._pytree import tree_map

from meta_exp.config.checks import require
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.stream import EVALUATION_BATCH, FRESH, TaskFamily, draw_batch, draw_tasks

CONFORMAL_TASKS = 1000


class TaskStream(LightningDataModule):
    """Training meta-batches from the trainer's step on, and fixed validation tasks; ``scores`` draws the test tasks."""

    def __init__(
        self,
        family: TaskFamily,
        seed: int,
        validation_tasks: int,
        test_tasks: int,
        num_tasks: int | None = None,
        conformal_tasks: int = CONFORMAL_TASKS,
    ) -> None:
        require(seed >= 0, "seed", "an integer >= 0", seed)
        require(validation_tasks >= 1, "validation_tasks", "at least 1", validation_tasks)
        require(test_tasks >= 2, "test_tasks", "at least 2, for an interval", test_tasks)
        require(conformal_tasks >= 1, "conformal_tasks", "at least 1", conformal_tasks)
        require(num_tasks is None or num_tasks >= 1, "num_tasks", "null, for new tasks without end, or >= 1", num_tasks)
        super().__init__()
        self.family = family
        self.seed = seed
        self.num_tasks = num_tasks
        self.conformal_tasks = conformal_tasks
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
            self._drawn = [draw_tasks(self.family, self.split, *places) for places in _ranges(self.tasks)]
        return iter(self._drawn)


def fresh_batches(family: TaskFamily, tasks: int) -> Iterator[Episode]:
    """Draw tasks of the validation split by which nothing was chosen, batch by batch: they are many, and asked once."""
    for start, stop in _ranges(tasks, 10 * EVALUATION_BATCH):
        yield draw_tasks(family, "validation", start, stop, FRESH)


def _ranges(tasks: int, batch: int = EVALUATION_BATCH) -> Iterator[tuple[int, int]]:
    return ((start, min(start + batch, tasks)) for start in range(0, tasks, batch))


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


def _share(tasks: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return tasks if ranks == 1 else tasks[rank::ranks]
