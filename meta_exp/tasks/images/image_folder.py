"""Images of one's own: a folder whose sub-folders are classes, of any number of images each.

``layout`` says which folders, lists and pickles are known, and ``files`` what is done with an image. What is the same
for all images of a data set is measured once on its training split, and kept in the run's config: each channel's mean
and deviation, and for grey images whether they are dark on light and shown as their negatives, so that ink is high.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from meta_exp.config.checks import require
from meta_exp.tasks.episode import ClassEpisode, Episode
from meta_exp.tasks.images.episodes import ImageTasks, Integers, check_sizes
from meta_exp.tasks.images.files import Treatment
from meta_exp.tasks.images.layout import UNSPLIT, find_lists, folder_source, read_lists
from meta_exp.tasks.images.picture import ClassifiedImages
from meta_exp.tasks.images.source import shorten
from meta_exp.tasks.images.store import ImageStore, open_store
from meta_exp.tasks.splits import Shares, check_shares, shuffled
from meta_exp.tasks.stream import SPLITS

DIGITS = 6  # of what is measured, behind the point

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder:
    """N-way K-shot episodes of images in the folders of ``root``, with ``queries`` query images of each class.

    Classes with fewer images than ``shots + queries`` are left out, which one line of the log tells. The images are
    read when first needed, by ``to``, ``draw``, ``sampler`` or ``measure``: the settings alone need no data.

    Args:
        root: the folder.
        image_size: height and width in pixels.
        channels: 3 for colours, 1 for grey.
        invert: whether grey images are shown as their negatives; auto where most of their borders are light.
        splits: a folder below ``root`` with lists of the classes of each split; None where it is found by itself.
        shares: of the classes in train, validation and test, where neither folders nor lists tell.
        split_seed: of the shuffle before that.
        normalize: whether each channel gets mean 0 and deviation 1.
        augment: whether training images are cropped, flipped and jittered.
        mean: of each channel over the training images, in [0, 1]; None where it is to be measured.
        std: its deviation.

    Raises ValueError for settings out of range and for data that is not what it should be.
    """

    root: str
    image_size: int = 84
    channels: Literal[1, 3] = 3
    invert: bool | Literal["auto"] = "auto"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    meta_batch: int = 4
    splits: str | None = None
    shares: Shares = (0.64, 0.16, 0.2)
    split_seed: int = 0
    normalize: bool = True
    augment: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    classes = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_sizes(self.ways, self.shots, self.queries, self.meta_batch)
        check_shares(self.shares, self.split_seed)
        require(1 <= self.image_size <= 1024, "dataset.image_size", "1 to 1024 pixels", self.image_size)
        require(self.channels in (1, 3), "dataset.channels", "1 or 3", self.channels)
        fits = self.invert in (True, False, "auto") and not (self.invert is True and self.channels == 3)
        require(fits, "dataset.invert", "auto, or of one channel true or false", self.invert)
        inside = self.splits is None or not (Path(self.splits).is_absolute() or ".." in Path(self.splits).parts)
        require(inside, "dataset.splits", "a folder below dataset.root", self.splits)
        require((self.mean is None) == (self.std is None), "dataset.mean", "mean and std, or neither", "one of them")
        for name, values, least in (("mean", self.mean, 0.0), ("std", self.std, 1e-6)):
            fits = values is None or (len(values) == self.channels and min(values) >= least and max(values) <= 1)
            require(fits, f"dataset.{name}", f"{self.channels} numbers from {least:g} to 1", values)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def outputs(self) -> int:
        """One output for each class of an episode."""
        return self.ways

    @cached_property
    def store(self) -> ImageStore:
        """All images of all classes, as they are; read, checked and kept when first asked for."""
        size = (self.image_size, self.image_size, self.channels)
        return open_store(folder_source(self._root, size, self.splits))

    @cached_property
    def every_class(self) -> dict[str, Integers]:
        """The classes of each split, in ascending order, those with too few images among them."""
        names = self.store.class_names
        if lists := find_lists(self._root, self.splits):
            places = {name: place for place, name in enumerate(names)}
            listed = read_lists(lists, names)
            return {split: np.sort(np.array([places[name] for name in listed[split]])) for split in SPLITS}
        of = np.array(self.store.split_names)
        if (of == UNSPLIT).all():
            return shuffled(len(names), self.shares, self.split_seed)
        return {split: np.flatnonzero(of == split) for split in SPLITS}

    @cached_property
    def split_classes(self) -> dict[str, Integers]:
        """The classes of each split that have images enough, in ascending order; the others are named in the log."""
        kept, counts = self._large_classes(), self.store.counts
        few = np.setdiff1d(np.concatenate([*self.every_class.values()]), np.concatenate([*kept.values()]))
        if len(few):
            names = shorten([f"{self.store.class_names[place]} ({counts[place]})" for place in few])
            needed = f"classes with fewer than dataset.shots + dataset.queries = {self.shots + self.queries} images"
            log.warning("%s are left out: %s", needed, names)
        return kept

    def _large_classes(self) -> dict[str, Integers]:
        counts, least = np.array(self.store.counts), self.shots + self.queries
        kept = {split: places[counts[places] >= least] for split, places in self.every_class.items()}
        for split, places in kept.items():
            expected = (
                f"at least {self.ways} classes (dataset.ways) of {least} images (dataset.shots + dataset.queries)"
            )
            got = f"{len(places)}, and {len(self.every_class[split]) - len(places)} smaller ones"
            require(len(places) >= self.ways, f"split {split} of {self.root}", expected, got)
        return kept

    @cached_property
    def treatment(self) -> Treatment:
        """How images become what the network sees: as the settings say, and else as measured."""
        invert = None if self.channels == 3 else self.invert
        if invert == "auto":
            invert = self.store.light(self._measured) > 0.5
        assert invert != "auto"
        if not self.normalize:
            return Treatment(invert)
        if self.mean is not None and self.std is not None:
            return Treatment(invert, self.mean, self.std)
        mean, std = self.store.moments(self._measured)
        mean = [1 - value for value in mean] if invert else mean
        return Treatment(invert, [round(v, DIGITS) for v in mean], [round(v, DIGITS) or 1.0 for v in std])

    @property
    def _measured(self) -> list[int]:
        """The training classes, small ones too: what is measured does not depend on shots."""
        return self.every_class["train"].tolist()

    @cached_property
    def sampler(self) -> ImageTasks:
        """How episodes are drawn from the images of each split."""
        images, counts = torch.from_numpy(self.store.pixels), self.store.counts
        tasks = ImageTasks(images, counts, self.split_classes, self.ways, self.shots, self.queries)
        tasks.augmented = ("train",) if self.augment else ()
        tasks.inverted, tasks.mean, tasks.std = bool(self.treatment.invert), self.treatment.mean, self.treatment.std
        return tasks

    @property
    def class_names(self) -> dict[str, list[str]]:
        """The names of the classes of each split."""
        return {s: [self.store.class_names[place] for place in places] for s, places in self.split_classes.items()}

    @property
    def picture(self) -> ClassifiedImages:
        """What a learner makes of the first test task."""
        return ClassifiedImages(self)

    def measure(self) -> dict[str, Any]:
        """Return invert, mean and std; raises ValueError where a split cannot fill an episode."""
        self._large_classes()  # refused before anything is trained or written
        invert, mean, std = self.treatment
        found: dict[str, Any] = {"invert": bool(invert)}
        return found | ({"mean": list(mean), "std": list(std)} if self.normalize else {})

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes of a split: x [tasks, points, C, H, W] and y [tasks, points]."""
        return self.sampler.draw(split, rng, tasks)

    def draw_classes(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw the same episodes, with their classes."""
        return self.sampler.draw_classes(split, rng, tasks)

    def to(self, device: torch.device | str) -> None:
        """Move the images to the device that trains."""
        self.sampler.to(device)

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()
