"""miniImageNet (Vinyals et al., 2016) with the classes of Ravi and Larochelle (2017): 100 classes of 600 colour images.

The source are learn2learn's three pickles, ``root/mini-imagenet-cache-{train,validation,test}.pkl``: dicts of
``image_data``, uint8 [images, 84, 84, 3], and ``class_dict``, the indices of each class by its WordNet id. They are
read by an unpickler that knows arrays and plain containers and nothing else, so that no code that a pickle may hold is
ever run; and they are converted one after another, class by class, which takes little more memory than the largest.
"""

import _codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from meta_exp.config.checks import require
from meta_exp.tasks.episode import ClassEpisode, Episode
from meta_exp.tasks.images.episodes import ImageTasks, Integers, check_sizes
from meta_exp.tasks.images.files import Treatment
from meta_exp.tasks.images.picture import ClassifiedImages
from meta_exp.tasks.images.source import Listing, Pixels, Source, draft_folder, learn2learn, shorten
from meta_exp.tasks.images.store import ImageStore, open_store

IMAGES, SIDE = 600, 84
MEAN = (120.39586422 / 255, 115.59361427 / 255, 104.54012653 / 255)  # of each channel, as learn2learn has them
STD = (70.68188272 / 255, 68.27635443 / 255, 72.54505529 / 255)
RECORD = "https://zenodo.org/record/7978538/files"  # learn2learn's copy
_WORDNET_IDS = {
    "train": (
        "n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006 "
        "n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 "
        "n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037 "
        "n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472 "
        "n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 "
        "n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613"
    ),
    "validation": (
        "n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780 "
        "n03584254 n03770439 n03773504 n03980874 n09256479"
    ),
    "test": (
        "n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925 "
        "n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480"
    ),
}
CLASSES = {split: names.split() for split, names in _WORDNET_IDS.items()}


@dataclass(frozen=True)
class MiniImagenet:
    """N-way K-shot episodes of colour images, with ``queries`` query images of each class.

    Pixels are in [0, 1], as in the MAML paper; with ``normalize`` each channel has the mean 0 and deviation 1 of the
    training images. With ``augment`` training images are cropped, flipped and jittered. The images are read when first
    needed, by ``to``, ``draw`` or ``sampler``: the settings alone need no data. Where there are none, ``download``
    fetches them with learn2learn.

    Raises ValueError for settings out of range and for damaged or wrong data, FileNotFoundError for missing data.
    """

    root: str
    ways: int = 5
    shots: int = 1
    queries: int = 15
    meta_batch: int = 4
    normalize: bool = False
    augment: bool = False
    download: bool = False

    input_shape = (3, SIDE, SIDE)
    classes = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_sizes(self.ways, self.shots, self.queries, self.meta_batch)

    @property
    def outputs(self) -> int:
        """One output for each class of an episode."""
        return self.ways

    @property
    def treatment(self) -> Treatment:
        """How images become what the network sees."""
        return Treatment(None, MEAN, STD) if self.normalize else Treatment()

    @cached_property
    def split_classes(self) -> dict[str, Integers]:
        """The classes of each split, in ascending order."""
        split = np.repeat(list(CLASSES), [len(names) for names in CLASSES.values()])
        return {name: np.flatnonzero(split == name) for name in CLASSES}

    @cached_property
    def store(self) -> ImageStore:
        """All images, uint8 [60000, 84, 84, 3], 600 of each class; read, checked and kept when first asked for."""
        root = Path(self.root).expanduser()
        if self.download:
            fetch(root)
        return open_store(mini_imagenet_source(root))

    @cached_property
    def sampler(self) -> ImageTasks:
        """How episodes are drawn from the images of each split."""
        images = torch.from_numpy(self.store.pixels)
        tasks = ImageTasks(images, self.store.counts, self.split_classes, self.ways, self.shots, self.queries)
        tasks.augmented = ("train",) if self.augment else ()
        tasks.mean, tasks.std = self.treatment.mean, self.treatment.std
        return tasks

    @property
    def class_names(self) -> dict[str, list[str]]:
        """The WordNet ids of the classes of each split."""
        return CLASSES

    @property
    def picture(self) -> ClassifiedImages:
        """What a learner makes of the first test task."""
        return ClassifiedImages(self)

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes of train, validation or test: x [tasks, points, 3, 84, 84] and y [tasks, points]."""
        return self.sampler.draw(split, rng, tasks)

    def draw_classes(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw the same episodes, with their classes."""
        return self.sampler.draw_classes(split, rng, tasks)

    def to(self, device: torch.device | str) -> None:
        """Move the images to the device that trains."""
        self.sampler.to(device)


def pickle_name(split: str) -> str:
    """Return learn2learn's file name of a split."""
    return f"mini-imagenet-cache-{split}.pkl"


def mini_imagenet_source(root: Path) -> Source:
    """Describe the three pickles in ``root``; raises FileNotFoundError if one is missing."""
    files = {split: root / pickle_name(split) for split in CLASSES}
    if missing := [file.name for file in files.values() if not file.exists()]:
        raise FileNotFoundError(
            f"dataset.root: expected {', '.join(missing)} in {root}, got nothing there; put learn2learn's pickles of "
            f"miniImageNet there (train 0.8 GB, validation 0.2 GB, test 0.3 GB; {RECORD}), or with a network set "
            "dataset.download=true, or set dataset.root / META_EXP_DATA to where they are"
        )

    def convert() -> Iterator[Pixels]:
        for split, file in files.items():
            yield from read_classes(file, split)

    names = [name for classes in CLASSES.values() for name in classes]
    split_names = [split for split, classes in CLASSES.items() for _ in classes]
    listing = Listing([IMAGES] * len(names), names, split_names)
    return Source("mini-imagenet", list(files.values()), (SIDE, SIDE, 3), lambda: listing, convert)


def fetch(root: Path) -> None:
    """Fetch with learn2learn the pickles that are missing in ``root``, and keep those that hold what they should.

    Raises ConnectionError where they cannot be had, ValueError for wrong ones; nothing half-fetched stays.
    """
    for split in CLASSES:
        name = pickle_name(split)
        if (root / name).exists():
            continue
        their = learn2learn("data.utils")
        with draft_folder(root) as draft:
            try:
                their.download_file(f"{RECORD}/{name}", str(draft / name))
            except OSError as error:
                raise ConnectionError(
                    f"dataset.download: expected {name} from {RECORD}, got {error}; put it into {root} yourself"
                ) from error
            for _ in read_classes(draft / name, split):
                pass
            (draft / name).replace(root / name)


def read_classes(file: Path, split: str) -> Iterator[Pixels]:
    """Yield the images of each class of a split, uint8 [600, 84, 84, 3], in the order of CLASSES.

    Raises ValueError for a pickle that is damaged, that holds code, or that holds other classes or images.
    """
    content = read_pickle(file)
    expected = "a dict of image_data and class_dict"
    form = isinstance(content, dict) and isinstance(content.get("class_dict"), dict) and "image_data" in content
    require(form, str(file), expected, type(content).__name__, "fetch it again")
    images, rows = content["image_data"], content["class_dict"]
    check_classes(file, split, rows)
    shape = (len(CLASSES[split]) * IMAGES, SIDE, SIDE, 3)
    got = f"{getattr(images, 'dtype', type(images).__name__)} {list(getattr(images, 'shape', []))}"
    whole = isinstance(images, np.ndarray) and images.shape == shape and images.dtype == np.uint8
    require(whole, str(file), f"image_data of uint8 {list(shape)}", got, "fetch it again")
    index = np.asarray([rows[name] for name in CLASSES[split]])
    every = np.array_equal(np.sort(index, axis=None), np.arange(len(images)))
    require(every, str(file), "every image in one class", "some in none or in two", "fetch it again")
    for row in index:
        yield images[row]


def check_classes(file: Path, split: str, rows: dict[str, Any]) -> None:
    """Raise ValueError, naming what is wrong, unless ``rows`` has 600 images of each class of the split alone."""
    elsewhere = {name: other for other, names in CLASSES.items() for name in names if other != split}
    problems = {
        "no class": [name for name in CLASSES[split] if name not in rows],
        "another split's": [f"{name} ({elsewhere[name]})" for name in rows if name in elsewhere],
        "unknown": [str(name) for name in rows if name not in elsewhere and name not in CLASSES[split]],
        "uneven": [
            f"{name} ({len(row)})" for name, row in rows.items() if name in CLASSES[split] and len(row) != IMAGES
        ],
    }
    got = "; ".join(f"{problem} {shorten(names)}" for problem, names in problems.items() if names)
    expected = f"the {len(CLASSES[split])} classes of Ravi and Larochelle's {split} split with {IMAGES} images of each"
    require(not got, str(file), expected, got, "fetch it again")


def read_pickle(file: Path) -> Any:
    """Read a pickle of arrays, numbers, strings and plain containers; raises ValueError for any other.

    Python 2's strings are read as bytes in Latin 1, numpy's way.
    """
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can provoke anything
        got = str(error) or type(error).__name__
        raise ValueError(
            f"{file}: expected a pickle of arrays and plain containers, got {got}; fetch it again"
        ) from error


class _PlainUnpickler(pickle._Unpickler):
    """Admits by name what numpy's arrays are made of, and nothing else; in Python, whose memo a file cannot blow up."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what ``module.name`` stands for, or refuse it."""
        parts = module.replace("numpy._core", "numpy.core"), name
        if parts in _ADMITTED:
            return _ADMITTED[parts]
        raise pickle.UnpicklingError(f"one that would run {module}.{name}, which was refused")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to elsewhere."""
        raise pickle.UnpicklingError("one that refers to something outside of it")


class _Dtype:
    """Stands in for ``numpy.dtype``, which a crooked state would make crash: numbers and truth values only."""

    def __init__(self, name: Any, align: Any = False, copy: Any = True) -> None:
        self.name, self.state = name, (3, "|")

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def numpy(self) -> np.dtype:
        """Return what it stands for."""
        plain = isinstance(self.name, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", self.name)
        if not plain or self.state[1] not in ("<", ">", "|", "=") or any(self.state[2:5]):
            raise pickle.UnpicklingError(f"an array of dtype {str(self.name)[:20]}")
        return np.dtype(self.name).newbyteorder(self.state[1])


class _Array(np.ndarray):
    """Stands in for ``numpy.ndarray`` until its state is checked: as many bytes as its shape and dtype say."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        whole: Any = (1, _shape(shape), _checked(dtype), bool(fortran), bytes(_bytes(content)))
        super().__setstate__(whole)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array((0,), np.uint8)


def _scalar(dtype: Any, content: Any) -> Any:
    return np.frombuffer(_bytes(content), _checked(dtype), 1)[0]


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    found = np.frombuffer(_bytes(content), _checked(dtype))
    return found.reshape(_shape(shape), order="F" if order == "F" else "C")


def _checked(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array without a dtype")
    return dtype.numpy()


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise pickle.UnpicklingError("an array of an odd shape")
    return shape


def _bytes(content: Any) -> bytes:
    """Return what an array is made of, which is not copied: it may be large."""
    if isinstance(content, str):  # of Python 2
        return content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("an array of no bytes")
    return content  # type: ignore[return-value]


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 2 and old protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded in {encoding}")
    return _codecs.latin_1_encode(text)[0]


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "numpy.ndarray",  # named by arrays; never called
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
