"""Class-indexed image episodes: uint8 images [classes, images, H, W, C] for each split, and N-way K-shot sampling.

An episode draws ``ways`` distinct classes in random order (label j is the j-th drawn) and, within each, distinct
images: ``shots`` for the support set, then ``queries`` for the query set. A split in ``rotated`` has four classes for
each of its own: class index 4 c + r is class c turned counterclockwise by r quarter turns. Every index comes from the
given generator on the CPU, so that an episode is the same on any device; the images are gathered where they live.

Data sets of this kind are converted once: ``cached`` keeps the pixels in a file that a later run opens at once.
"""

import logging
import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import Tensor

from meta_exp.checks import require
from meta_exp.tasks.episode import Episode, Examples

Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What tasks show: ``classes`` and quarter ``turns`` [tasks, ways], ``images`` [tasks, ways, shots + queries]."""

    classes: Integers
    turns: Integers
    images: Integers


@dataclass
class ImageTasks:
    """N-way K-shot episodes over ``images``, a uint8 tensor [classes, images, H, W, C] for each split.

    Raises ValueError if a split has too few classes for ``ways``, or too few images a class for ``shots + queries``.
    """

    images: dict[str, Tensor]
    ways: int
    shots: int
    queries: int
    rotated: Collection[str] = ()

    def __post_init__(self) -> None:
        """Refuse episodes that a split cannot fill."""
        check_sizes(self.ways, self.shots, self.queries)
        for split, images in self.images.items():
            each, height, width = images.shape[1:4]
            classes = self._class_count(split)
            require(self.ways <= classes, "dataset.ways", f"at most {classes}, the classes of split {split}", self.ways)
            enough = self.shots + self.queries <= each
            expected = f"at most {each}, the images of a class in split {split}"
            require(enough, "dataset.shots + dataset.queries", expected, self.shots + self.queries)
            require(split not in self.rotated or height == width, "rotations", "square images", f"{height} x {width}")

    def choose(self, split: str, rng: np.random.Generator, tasks: int) -> Choice:
        """Draw the classes and images of ``tasks`` episodes, each ordered choice without repetition equally likely."""
        require(split in self.images, "split", f"one of {', '.join(self.images)}", split)
        index = distinct(rng, tasks, self._class_count(split), self.ways)
        classes, turns = divmod(index, 4) if split in self.rotated else (index, np.zeros_like(index))
        images = distinct(rng, index.size, self.images[split].shape[1], self.shots + self.queries)
        return Choice(classes, turns, images.reshape(tasks, self.ways, -1))

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes, on the device of the images, sorted by label.

        x is float32 in [0, 1] of shape [tasks, ways * shots, C, H, W], y int64 of shape [tasks, ways * shots]; the
        query set has ``queries`` in place of ``shots``. Raises ValueError for an unknown split.
        """
        choice = self.choose(split, rng, tasks)
        pixels = _turn(self._gather(self.images[split], choice), choice.turns.ravel())
        pixels = pixels.reshape(tasks, self.ways, *pixels.shape[1:])
        return Episode(_examples(pixels[:, :, : self.shots]), _examples(pixels[:, :, self.shots :]))

    def to(self, device: torch.device | str) -> None:
        """Move the images to ``device``, where episodes are then made."""
        self.images = {split: images.to(device) for split, images in self.images.items()}

    def _class_count(self, split: str) -> int:
        return len(self.images[split]) * (4 if split in self.rotated else 1)

    def _gather(self, images: Tensor, choice: Choice) -> Tensor:  # [tasks * ways, each, C, H, W]
        flat = choice.classes[..., None] * images.shape[1] + choice.images
        rows = torch.from_numpy(flat.ravel()).to(images.device)
        picked = images.flatten(0, 1).index_select(0, rows)
        return picked.reshape(-1, choice.images.shape[-1], *images.shape[2:]).movedim(-1, -3)


def check_sizes(ways: int, shots: int, queries: int, meta_batch: int = 1) -> None:
    """Raise ValueError unless there are two classes, one example of each and one task at least."""
    require(ways >= 2, "dataset.ways", "at least 2", ways)
    for name, value in (("shots", shots), ("queries", queries), ("meta_batch", meta_batch)):
        require(value >= 1, f"dataset.{name}", "at least 1", value)


def distinct(rng: np.random.Generator, rows: int, n: int, k: int) -> Integers:
    """Draw [rows, k] integers below n, distinct within a row, in random order.

    The j-th draw is one of the n - j integers not yet taken, counted from the smallest (a Lehmer code): the cost does
    not depend on n.
    """
    draws = rng.integers(n - np.arange(k), size=(rows, k))
    for j in reversed(range(k - 1)):
        draws[:, j + 1 :] += draws[:, j + 1 :] >= draws[:, j, None]
    return draws


def cached(name: str, shape: tuple[int, ...], build: Callable[[], Pixels]) -> Pixels:
    """Return the uint8 array of ``shape`` kept as ``name`` in the cache folder, or else ``build`` and keep it.

    The folder is META_EXP_CACHE, or the user's cache folder. A name stands for one content, for ever: it holds a
    version of the format and a fingerprint of the source. Of several processes one builds and the others wait. Where
    the folder cannot be written, the array stays in memory.
    """
    folder = Path(os.environ.get("META_EXP_CACHE") or user_cache_path("meta-exp"))
    file = folder / f"{name}.npy"
    if (pixels := _open(file, shape)) is not None:
        return pixels
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{file}.lock"))
        except OSError as error:
            log.warning("Cannot write the data cache, so the images stay in memory: %s", error)
            return build()
        if (pixels := _open(file, shape)) is not None:  # built while this process waited
            return pixels
        if file.exists():
            log.warning("Rebuilding the damaged data cache %s", file)
        pixels = build()
        try:
            _write(file, pixels)
        except OSError as error:
            log.warning("Cannot write the data cache, so the images stay in memory: %s", error)
        return pixels


def _turn(pixels: Tensor, turns: Integers) -> Tensor:
    """Turn [rows, ..., H, W] in place, counterclockwise by ``turns`` [rows] quarters."""
    for quarters in (1, 2, 3):
        rows = torch.from_numpy(np.flatnonzero(turns == quarters)).to(pixels.device)
        pixels.index_copy_(0, rows, pixels.index_select(0, rows).rot90(quarters, (-2, -1)))
    return pixels


def _examples(pixels: Tensor) -> Examples:
    """Label [tasks, ways, each, C, H, W] by way and bring the pixels to [0, 1]."""
    tasks, ways, each = pixels.shape[:3]
    y = torch.arange(ways, device=pixels.device).repeat_interleave(each).repeat(tasks, 1)
    return Examples(pixels.flatten(1, 2).to(torch.float32).div_(255), y)


def _open(file: Path, shape: tuple[int, ...]) -> Pixels | None:
    try:
        pixels = np.lib.format.open_memmap(file, mode="r")
    except Exception:  # there is no file, or a damaged one, whose header can provoke anything
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _write(file: Path, pixels: Pixels) -> None:
    """Write so that ``file`` is whole at any moment; the caller holds the lock, so one name for the draft is enough."""
    draft = file.with_suffix(".tmp")
    try:
        with draft.open("wb") as stream:
            np.save(stream, pixels, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
