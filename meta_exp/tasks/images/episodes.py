"""Class-indexed image episodes: N-way K-shot sampling from one uint8 tensor [images, H, W, C], class after class.

An episode draws ``ways`` distinct classes of a split in random order (label j is the j-th drawn) and, within each,
distinct images: ``shots`` for the support set, then ``queries`` for the query set. A split in ``rotated`` has four
classes for each of its own: class index 4 c + r is class c turned counterclockwise by r quarter turns. Every random
number comes from the given generator on the CPU, so that an episode is the same on any device; the images are gathered
where they live, and finished on the device that trains.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meta_exp.config.checks import require, require_at_most
from meta_exp.tasks.episode import ClassEpisode, Episode, Examples
from meta_exp.tasks.images.augmentation import augment

LARGEST = 10**4  # number of anything in a meta-batch
Integers = NDArray[np.int64]


class Choice(NamedTuple):
    """What tasks show: ``classes`` and quarter ``turns`` [tasks, ways], ``images`` [tasks, ways, shots + queries]."""

    classes: Integers
    turns: Integers
    images: Integers


@dataclass
class ImageTasks:
    """N-way K-shot episodes over the ``images`` [images, H, W, C] of a store, uint8, class after class.

    Args:
        images: the pixels; they are used where they are, and never copied unless ``to`` moves them.
        counts: images of each class.
        classes: the classes of each split, as places in ``counts``.
        ways: classes of an episode.
        shots: support images a class.
        queries: query images a class.
        rotated: splits whose quarter turns are classes too.
        augmented: splits whose images are cropped, flipped and jittered.
        inverted: whether an image is shown as its negative.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel, divided by.

    Raises ValueError if a split has too few classes for ``ways``, or too few images a class for ``shots + queries``.
    """

    images: Tensor
    counts: Sequence[int]
    classes: dict[str, Integers]
    ways: int
    shots: int
    queries: int
    rotated: Collection[str] = ()
    augmented: Collection[str] = ()
    inverted: bool = False
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse episodes that a split cannot fill."""
        check_sizes(self.ways, self.shots, self.queries)
        self.device = self.images.device
        self._counts = np.asarray(self.counts)
        self._starts = np.cumsum(self._counts) - self._counts
        height, width = self.images.shape[1:3]
        for split in self.classes:
            classes = self._class_count(split)
            require(self.ways <= classes, "dataset.ways", f"at most {classes}, the classes of split {split}", self.ways)
        each = min(int(self._counts[classes].min()) for classes in self.classes.values())
        expected = f"at most {each}, the images of a class"
        needed = self.shots + self.queries
        require(needed <= each, "dataset.shots + dataset.queries", expected, needed)
        require(not self.rotated or height == width, "rotations", "square images", f"{height} x {width}")

    def choose(self, split: str, rng: np.random.Generator, tasks: int) -> Choice:
        """Draw the classes and images of ``tasks`` episodes, each ordered choice without repetition equally likely."""
        require(split in self.classes, "split", f"one of {', '.join(self.classes)}", split)
        index = distinct(rng, tasks, self._class_count(split), self.ways)
        place, turns = divmod(index, 4) if split in self.rotated else (index, np.zeros_like(index))
        classes = self.classes[split][place]
        images = distinct(rng, index.size, self._counts[classes.ravel()], self.shots + self.queries)
        return Choice(classes, turns, images.reshape(tasks, self.ways, -1))

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes, on the device given to ``to``, sorted by label.

        x is float32 of shape [tasks, ways * shots, C, H, W], in [0, 1] before ``mean`` and ``std``, y int64 of shape
        [tasks, ways * shots]; the query set has ``queries`` in place of ``shots``. Raises ValueError for an unknown
        split.
        """
        return self.draw_classes(split, rng, tasks).episode

    def draw_classes(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw the same episodes, with their classes: 4 c + r is class c turned by r quarters."""
        choice = self.choose(split, rng, tasks)
        noise = rng if split in self.augmented else None
        sets = (choice.images[..., : self.shots], choice.images[..., self.shots :])
        support, query = (self._examples(choice._replace(images=images), noise) for images in sets)
        return ClassEpisode(Episode(support, query), 4 * choice.classes + choice.turns)

    def to(self, device: torch.device | str) -> None:
        """Make episodes on ``device``, and move the images there if they take no more than half of its free memory."""
        self.device = torch.device(device)
        if self.device.type != "cuda" or self.images.nbytes <= torch.cuda.mem_get_info(self.device)[0] // 2:
            self.images = self.images.to(self.device)

    def _class_count(self, split: str) -> int:
        return len(self.classes[split]) * (4 if split in self.rotated else 1)

    def _examples(self, choice: Choice, noise: np.random.Generator | None) -> Examples:
        """Gather, turn and finish the chosen images; ``noise`` augments them."""
        tasks, ways, each = choice.images.shape
        rows = self._starts[choice.classes][..., None] + choice.images
        pixels = self._gather(rows.reshape(-1, each), choice.turns.ravel()).movedim(-1, -3)
        if self.inverted:
            pixels.bitwise_not_()
        if noise:
            x = augment(pixels, noise)
        else:  # a product, not a quotient, which a GPU rounds in another way
            x = pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        if any(self.mean) or any(value != 1 for value in self.std):
            mean, std = (torch.tensor(value, device=self.device)[:, None, None] for value in (self.mean, self.std))
            x = x.sub_(mean).div_(std)
        y = torch.arange(ways, device=self.device).repeat_interleave(each).repeat(tasks, 1)
        return Examples(x.unflatten(0, (tasks, ways * each)), y)

    def _gather(self, rows: Integers, turns: Integers) -> Tensor:
        """Return the images ``rows`` [groups, each], each group turned counterclockwise by its ``turns`` quarters.

        Groups that turn alike are gathered side by side, and put into their order when they have been turned.
        """
        order = np.argsort(turns, kind="stable")
        index = torch.from_numpy(rows[order].ravel()).to(self.images.device)
        pixels = self.images.index_select(0, index).to(self.device)
        if not turns.any():
            return pixels
        alike = pixels.split((np.bincount(turns) * rows.shape[1]).tolist())
        turned = torch.cat([part.rot90(quarters, (1, 2)) for quarters, part in enumerate(alike)])
        back = torch.from_numpy(np.argsort(order)).to(self.device)
        return turned.unflatten(0, rows.shape).index_select(0, back).flatten(0, 1)


def check_sizes(ways: int, shots: int, queries: int, meta_batch: int = 1) -> None:
    """Raise ValueError unless there are two classes, one example of each and one task at least."""
    require(ways >= 2, "dataset.ways", "at least 2", ways)
    for name, value in (("shots", shots), ("queries", queries), ("meta_batch", meta_batch)):
        require(value >= 1, f"dataset.{name}", "at least 1", value)
        require_at_most(LARGEST, f"dataset.{name}", value)
    require_at_most(LARGEST, "dataset.ways", ways)


def distinct(rng: np.random.Generator, rows: int, n: int | Integers, k: int) -> Integers:
    """Draw [rows, k] integers below n, or below each row's n [rows], distinct within a row, in random order.

    The j-th draw is one of the n - j integers not yet taken, counted from the smallest (a Lehmer code): the cost does
    not depend on n.
    """
    draws = rng.integers(np.asarray(n)[..., None] - np.arange(k), size=(rows, k))
    for j in reversed(range(k - 1)):
        draws[:, j + 1 :] += draws[:, j + 1 :] >= draws[:, j, None]
    return draws
