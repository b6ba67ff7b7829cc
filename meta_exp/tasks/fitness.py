"""What a task family of one's own has to be, found out by drawing a few tasks before anything is trained.

It offers what ``TaskFamily`` lists. ``draw`` takes a split, a NumPy generator and a number of tasks, and is a function
of these alone: the same generator gives the same tasks, in every process, whatever was drawn before. What is drawn is
an ``Episode`` of float tensors x [tasks, points, *input_shape], and y [tasks, points, outputs], or classes
0 .. outputs - 1, integers [tasks, points].
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from meta_exp.config.checks import one_line, require
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.stream import SPLITS, TaskFamily

TASKS = 2
OFFERED = ("meta_batch", "input_shape", "outputs", "classes", "draw", "to")


def refuse_unfit(family: TaskFamily) -> None:
    """Raise ValueError naming what of a family does not fit; what it raises itself of data that it lacks goes on."""
    name = f"dataset={type(family).__name__}"
    missing = [key for key in OFFERED if not hasattr(family, key)]
    require(not missing, name, f"the attributes {', '.join(OFFERED)}", f"no {', '.join(missing)}")
    for split in SPLITS:
        first, again = (_draw(family, split, name) for _ in range(2))
        if not isinstance(first, Episode) or not all(isinstance(part, Examples) for part in first):
            require(False, name, "draw to return an Episode of Examples", type(first).__name__)
        for part, of in zip(first, Episode._fields, strict=True):
            _check(part, f"{name}, {of} of {split}", family)
        leaves = zip(tree_leaves(first), tree_leaves(again), strict=True)
        same = all(torch.equal(one, other) for one, other in leaves)
        require(same, name, "the same tasks of the same generator", f"others at the second look, of {split}")


def _draw(family: TaskFamily, split: str, name: str) -> Episode:
    try:
        return family.draw(split, np.random.default_rng(0), TASKS)
    except (ValueError, OSError):
        raise
    except Exception as error:  # the family's own code, which may fail in any way
        got = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{name}: expected an Episode from draw({split!r}, generator, {TASKS}), got {got}") from error


def _check(part: Examples, where: str, family: TaskFamily) -> None:
    """Raise ValueError where x or y is not what it has to be."""
    x, y = part
    require(isinstance(x, Tensor) and isinstance(y, Tensor), where, "tensors x and y", f"{type(x)} and {type(y)}")
    shape = tuple(family.input_shape)
    fits = x.is_floating_point() and (x.shape[0], *x.shape[2:]) == (TASKS, *shape) and x.ndim == 2 + len(shape)
    expected = f"x [{TASKS}, points, {', '.join(map(str, shape))}] of floats"
    require(fits, where, expected, f"{list(x.shape)} of {x.dtype}")
    if family.classes:
        fits = y.dtype == torch.int64 and y.shape == x.shape[:2]
        require(fits, where, f"y {list(x.shape[:2])} of int64", f"{list(y.shape)} of {y.dtype}")
        low, high = int(y.min()), int(y.max())
        require(0 <= low <= high < family.outputs, where, f"classes 0 .. {family.outputs - 1}", f"{low} .. {high}")
    else:
        fits = y.is_floating_point() and y.shape == (*x.shape[:2], family.outputs)
        require(fits, where, f"y {[*x.shape[:2], family.outputs]} of floats", f"{list(y.shape)} of {y.dtype}")
