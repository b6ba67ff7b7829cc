"""Tasks that were given in Python: what a folder keeps of them, which is their shapes and not the tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from meta_exp.config.checks import require
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.images.files import Treatment
from meta_exp.tasks.stream import TaskFamily, draw_tasks

PLAIN = (bool, int, float, str, list, type(None))


@dataclass(frozen=True)
class Given:
    """A family that can be asked for what its tasks are like, and draws none.

    Args:
        input_shape: of one input.
        outputs: classes, or dimensions of y.
        targets: what they are.
        shots: support points of a task, or of each of its classes.
        ways: classes of a task; 1 where targets are numbers.
        invert: how images were treated, and so are mean and std.
        mean: of each channel.
        std: of each channel.
    """

    input_shape: tuple[int, ...]
    outputs: int
    targets: Literal["numbers", "counts", "classes"] = "numbers"
    shots: int = 1
    ways: int = 1
    invert: bool | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    meta_batch = 1

    @classmethod
    def of(cls, family: TaskFamily) -> Self:
        """Return what is to be known of ``family``; its first validation task tells the size of a support set."""
        ways = family.outputs if family.classes else 1
        shots = draw_tasks(family, "validation", 0, 1).support.y.shape[1] // ways
        targets: Any = getattr(family, "targets", "classes" if family.classes else "numbers")
        invert, mean, std = getattr(family, "treatment", Treatment())
        return cls(tuple(family.input_shape), family.outputs, targets, shots, ways, invert, tuple(mean), tuple(std))

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.targets == "classes"

    @property
    def treatment(self) -> Treatment:
        """How images were treated."""
        return Treatment(self.invert, self.mean, self.std)

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Refuse: there are none."""
        got, remedy = "a folder that was saved without them", "train on a data set that a config can name"
        require(False, "dataset", "tasks to draw", got, remedy)
        raise AssertionError

    def to(self, device: torch.device) -> None:
        """Nothing stands on a device."""


def describe(family: TaskFamily) -> dict[str, Any]:
    """Return a family as a config has it: one of ours by its settings, any other by what its tasks are like."""
    kind = type(family)
    if kind.__module__.startswith("meta_exp.tasks.") and is_dataclass(family):
        settings = {field.name: _plain(getattr(family, field.name)) for field in fields(family) if field.init}
        if all(isinstance(value, PLAIN) for value in settings.values()):
            return {"_target_": f"meta_exp.tasks.{kind.__name__}", **settings}
    given = Given.of(family)
    settings = {field.name: _plain(getattr(given, field.name)) for field in fields(given)}
    return {"_target_": "meta_exp.tasks.Given", **settings}


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return str(value) if isinstance(value, Path) else value
