"""The data of a training: meta-batches without end from the trainer's step on, and the fixed validation tasks."""

from collections.abc import Iterator
from itertools import count

from pytorch_lightning import LightningDataModule
from torch.utils._pytree import tree_map

from meta_exp.config.checks import require, require_at_most
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.stream import EVALUATION_BATCH, FRESH, TaskFamily, draw_batch, draw_tasks

CONFORMAL_TASKS = 1000

TASKS = 10**7  # of validation or test
NUMBERS = 2**31  # of all inputs that are drawn at a time


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
        require_at_most(TASKS, "validation_tasks", validation_tasks)
        require(test_tasks >= 2, "test_tasks", "at least 2, for an interval", test_tasks)
        require_at_most(TASKS, "test_tasks", test_tasks)
        require(conformal_tasks >= 1, "conformal_tasks", "at least 1", conformal_tasks)
        require_at_most(TASKS, "conformal_tasks", conformal_tasks)
        require(num_tasks is None or num_tasks >= 1, "num_tasks", "null, for new tasks without end, or >= 1", num_tasks)
        super().__init__()
        self.family = family
        self.seed = seed
        self.num_tasks = num_tasks
        self.conformal_tasks = conformal_tasks
        self._validation = EvaluationBatches(family, "validation", validation_tasks)

    def setup(self, stage: str) -> None:
        """Move the data to the training device; raises ValueError where no memory would hold a meta-batch."""
        assert self.trainer is not None
        one = draw_tasks(self.family, "validation", 0, 1)
        numbers = (one.support.x.numel() + one.query.x.numel()) * max(self.family.meta_batch, EVALUATION_BATCH)
        remedy = "choose fewer tasks, dataset.shots or dataset.queries"
        require(numbers <= NUMBERS, "dataset.meta_batch", f"at most {NUMBERS} numbers in its inputs", numbers, remedy)
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
        rank, ranks = trainer.global_rank, trainer.world_size
        for k in count(first):
            batch = draw_batch(stream.family, stream.seed, "train", k, stream.num_tasks)
            yield batch if ranks == 1 else tree_map(lambda tasks: tasks[rank::ranks], batch)
