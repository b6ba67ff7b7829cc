"""Where a store's images come from: files that somebody has, and how they become pixels.

A published source is fetched into a draft folder and moved into place whole, so that no half of it is ever taken for
it. Its stamp (names, sizes and times of its files) tells without reading it whether it is still what a store was made
from; what it lists, which may take reading it, is asked for only when it is not.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from meta_exp.config.checks import require
from meta_exp.installation import with_extra

Pixels = NDArray[np.uint8]


class Listing(NamedTuple):
    """The classes of a source in order: the number of images, the name and the source's own split of each."""

    counts: Sequence[int]
    class_names: Sequence[str]
    split_names: Sequence[str]


@dataclass(frozen=True)
class Source:
    """What a store is made from.

    Args:
        name: of the data set, and of what its images are brought to.
        files: the files, or folders of them.
        size: of an image, [H, W, C].
        list_classes: lists its classes; raises ValueError for a faulty source.
        convert: yields the pixels of the classes in order, uint8 [images, H, W, C] each; raises ValueError for a faulty
            source.
    """

    name: str
    files: Sequence[Path]
    size: tuple[int, int, int]
    list_classes: Callable[[], Listing]
    convert: Callable[[], Iterator[Pixels]]

    @property
    def store_file(self) -> Path:
        """The file of its store, one for each place of a source, in META_EXP_CACHE or else the user's cache folder."""
        folder = Path(os.environ.get("META_EXP_CACHE") or user_cache_path("meta-exp")).expanduser()
        place = blake2b(str(self.files[0].parent.resolve()).encode(), digest_size=4).hexdigest()
        return folder / f"{self.name}-{place}.safetensors"

    def stamp(self) -> str:
        """Return what differs when a file is added, removed or changed."""
        stamps = sorted(line for file in self.files for line in _stamps(file))
        return blake2b("\n".join(stamps).encode(), digest_size=8).hexdigest()


@contextmanager
def draft_folder(root: Path) -> Iterator[Path]:
    """Give a folder within ``root`` that is removed at the end, with all that was not moved out of it."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetching-", dir=root) as draft:
        yield Path(draft)


def learn2learn(module: str) -> ModuleType:
    """Import a module of learn2learn, which fetches data sets; raises ValueError where it is not installed."""
    try:
        return import_module(f"learn2learn.{module}")
    except ModuleNotFoundError as error:
        expected = f"{str(error.name).partition('.')[0]}, by which it is fetched"
        remedy = f"it comes with {with_extra('learn2learn')}, or put the files there yourself and leave it out"
        require(False, "dataset.download", expected, "none", remedy)
        raise


def shorten(names: Sequence[str], most: int = 5) -> str:
    """Join names for an error, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _stamps(path: str | os.PathLike[str]) -> Iterator[str]:
    """Name a file, or each file below a folder, with its size and time of change; scandir is twice as fast as glob."""
    if os.path.isdir(path):
        for entry in os.scandir(path):
            if entry.is_dir():
                yield from _stamps(entry.path)
            else:
                yield _stamp(entry.path, entry.stat())
    else:
        yield _stamp(os.fspath(path), os.stat(path))


def _stamp(path: str, stat: os.stat_result) -> str:
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"
