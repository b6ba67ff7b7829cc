"""The image store: every image of a data set in one checked file, opened by memory map.

A store holds uint8 pixels [images, H, W, C], class after class, and of each class how many images it has, its name, the
split of the source that it is in, and what statistics are made of.
Whoever comes first converts the source; everybody after opens the file, and parallel jobs share its pages. The file is
in the safetensors layout (8 bytes of header length, a JSON header, raw bytes), so that other tools can read it. Its
header holds the format version, the stamp of the source, a hash of each class, and a hash over all that it says.

What is checked: at each opening the header, the size of the file, the stamp, and the classes themselves up to SAMPLE
bytes, evenly spaced (all of Omniglot; three classes of miniImageNet, whose 1.3 GB would take seconds); by ``verify``
every class. A file that fails is rebuilt with one line of notice, never used.

    preparing:  lock -> convert class by class into a draft -> fsync -> rename
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from math import prod, sqrt
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import track

from meta_exp.files import acquire
from meta_exp.tasks.images.source import Listing, Pixels, Source, shorten

FORMAT = 2  # raise it with any change of the layout, or of how a source is converted
SAMPLE = 40 * 2**20  # bytes of pixels that an opening checks
ALIGNMENT = 4096  # of the pixels within the file
LONGEST_HEADER = 2**24  # bytes; that of Omniglot has some 100 000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStore:
    """Pixels uint8 [images, H, W, C], class after class; what is said of each class; its file if it has one.

    Attributes:
        counts: images of each class.
        class_names: of each class.
        split_names: of each class, the split of the source that it is in.
        digests: a hash of the pixels of each class.
        sums: of each class and channel, the sums of its pixels and of their squares, [2, C], and in front the number of
            its images whose border is light: 1 + 2 C integers.
    """

    pixels: Pixels
    counts: Sequence[int]
    class_names: Sequence[str]
    split_names: Sequence[str]
    digests: Sequence[str]
    sums: Sequence[Sequence[int]]
    file: Path | None = None

    @property
    def content(self) -> str:
        """The hash over size, counts, names, hashes and sums: equal stores hold the same images by the same names."""
        return _content(self.pixels.shape[1:], *self.listing, self.digests, self.sums)

    @property
    def listing(self) -> Listing:
        """What the source listed."""
        return Listing(self.counts, self.class_names, self.split_names)

    def images(self, index: int) -> Pixels:
        """Return the pixels of a class, uint8 [images, H, W, C]."""
        start = sum(self.counts[:index])
        return self.pixels[start : start + self.counts[index]]

    def moments(self, classes: Sequence[int]) -> tuple[list[float], list[float]]:
        """Return mean and deviation of each channel over all pixels, in [0, 1], of some classes."""
        channels = self.pixels.shape[-1]
        number = sum(self.counts[index] for index in classes) * prod(self.pixels.shape[1:3])
        totals = [sum(self.sums[index][1 + place] for index in classes) for place in range(2 * channels)]
        means = [total / (255 * number) for total in totals[:channels]]
        squares = [total / (255**2 * number) for total in totals[channels:]]
        return means, [sqrt(max(square - mean**2, 0.0)) for mean, square in zip(means, squares, strict=True)]

    def light(self, classes: Sequence[int]) -> float:
        """Return the share of images, of some classes, whose border is light."""
        return sum(self.sums[index][0] for index in classes) / sum(self.counts[index] for index in classes)

    def verify(self) -> None:
        """Check every class against its hash; raises ValueError naming those that differ."""
        self.check(range(len(self.counts)))

    def check(self, classes: Sequence[int]) -> None:
        """Check some classes against their hashes; raises ValueError naming those that differ."""
        ends = np.cumsum([0, *self.counts]).tolist()
        spans = list(pairwise(ends))
        wrong = [index for index in classes if _digest(self.pixels[slice(*spans[index])]) != self.digests[index]]
        if wrong:
            names = shorten([self.class_names[index] for index in wrong])
            raise ValueError(f"{self.file} is damaged: its images of {names} are not those stored")


def open_store(source: Source) -> ImageStore:
    """Open the store of ``source``, and make it first where there is none, or none that holds up.

    Of several processes one converts and the others wait for it. Where the cache folder cannot be written the images
    stay in memory, with a line that says so. Raises ValueError for a faulty source, OSError for a full disk; neither
    leaves a file behind.
    """
    try:
        return read_store(source)
    except (OSError, ValueError):
        pass  # looked into again below, when nobody else is writing
    file = source.store_file
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _wait_for_turn(lock := FileLock(f"{file}.lock"), source)
            stack.callback(lock.release)
            draft = file.with_suffix(".tmp")  # the lock is ours, so one name is enough
            stack.callback(draft.unlink, missing_ok=True)
            try:
                return read_store(source)
            except FileNotFoundError:
                pass
            except ValueError as error:
                log.warning("Rebuilding the data cache: %s", error)
            draft.unlink(missing_ok=True)  # of one that was killed
            stream = stack.enter_context(draft.open("xb"))  # new, and through no link
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("Cannot write the data cache, so the images stay in memory: %s", error)
            return _convert_in_memory(source)
        _write(stream, source)
        draft.replace(file)
        return read_store(source)


def _wait_for_turn(lock: FileLock, source: Source) -> None:
    """Acquire ``lock``, and say it where that takes waiting."""
    remedy = "set META_EXP_CACHE to a folder on another"
    try:
        acquire(lock, remedy)
    except Timeout:
        log.warning("Waiting for another process that prepares %s: it holds %s", source.name, lock.lock_file)
        acquire(lock, remedy, wait_s=-1)


def read_store(source: Source) -> ImageStore:
    """Map the store of ``source`` into memory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format, or made from another source.
    """
    file = source.store_file
    header, start = _read_header(file)
    expected = {"format": FORMAT, "stamp": source.stamp(), "size": list(source.size)}
    for key, value in expected.items():
        if header.get(key) != value:
            raise ValueError(f"{file} is stale: it has another {key}")
    per_class: list[Any] = [header.get(key) for key in ("counts", "class_names", "split_names", "digests", "sums")]
    if header.get("content") != _content(source.size, *per_class) or len({_length(part) for part in per_class}) != 1:
        raise ValueError(f"{file} is damaged: its header does not hold together")
    counts, names, splits, digests, sums = per_class
    shape = (sum(counts), *source.size)
    if file.stat().st_size != start + prod(shape):
        raise ValueError(f"{file} is damaged: it has another size")
    # copy on write, so that torch may have it: nobody writes, and the pages stay those of the file
    pixels = np.memmap(file, np.uint8, "c", start, shape)
    store = ImageStore(pixels, counts, names, splits, digests, sums, file)
    sampled = min(len(counts), max(3, SAMPLE * len(counts) // pixels.nbytes))
    store.check(np.linspace(0, len(counts) - 1, sampled).astype(int).tolist())
    return store


def _write(stream: BinaryIO, source: Source) -> None:
    """Write a store class by class: never more than one class in memory beside what ``convert`` holds."""
    listing, stamp = source.list_classes(), source.stamp()
    digests, sums = [], []
    needed = sum(listing.counts) * prod(source.size)
    largest = max(listing.counts) * prod(source.size) * 255**2
    room = [[largest] * (1 + 2 * source.size[-1])] * len(listing.counts)  # no number of them has more digits
    try:
        room_for = len(_header(source, stamp, listing, [_digest(b"")] * len(room), room))
        stream.seek(room_for)
        for pixels in _progress(source, listing):
            stream.write(pixels.data)
            digests.append(_digest(pixels))
            sums.append(_sums(pixels))
        stream.seek(0)
        stream.write(_header(source, stamp, listing, digests, sums, room_for))
        stream.flush()
        os.fsync(stream.fileno())
    except OSError as error:
        if error.filename:  # of the source
            raise
        words = f"{error.strerror}; the data cache needs {needed / 1e6:.0f} MB there: make room, or set "
        raise OSError(error.errno, words + "META_EXP_CACHE to a folder elsewhere", str(source.store_file)) from error


def _convert_in_memory(source: Source) -> ImageStore:
    listing = source.list_classes()
    classes = list(_progress(source, listing))
    digests, sums = [_digest(pixels) for pixels in classes], [_sums(pixels) for pixels in classes]
    return ImageStore(np.concatenate(classes), *listing, digests, sums)


def _progress(source: Source, listing: Listing) -> Iterator[Pixels]:
    """Convert class by class, with a bar for people."""
    total = len(listing.counts)
    bar = track(source.convert(), f"Converting {source.name}", total=total, console=Console(stderr=True))
    for count, pixels in zip(listing.counts, bar, strict=True):
        assert pixels.shape == (count, *source.size)
        assert pixels.dtype == np.uint8
        yield np.ascontiguousarray(pixels)


def _sums(pixels: Pixels) -> list[int]:
    """Return what ``ImageStore.sums`` holds of a class, exact."""
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    light = sum(np.median(border.reshape(len(border), -1), 1) > 127) if len(border) else 0
    values = np.arange(256)
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(pixels.shape[-1])]
    return [int(light), *(int(count @ values) for count in counts), *(int(count @ values**2) for count in counts)]


def _header(
    source: Source,
    stamp: str,
    listing: Listing,
    digests: Sequence[str],
    sums: Sequence[Sequence[int]],
    length: int | None = None,
) -> bytes:
    """Return the file's bytes before the pixels, padded to ``length``, or else to ALIGNMENT."""
    ours = {
        "format": FORMAT,
        "stamp": stamp,
        "size": source.size,
        **{key: list(part) for key, part in listing._asdict().items()},
        "digests": digests,
        "sums": sums,
        "content": _content(source.size, *listing, digests, sums),
    }
    shape = (sum(listing.counts), *source.size)
    tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, prod(shape)]}
    text = json.dumps({"__metadata__": {"meta_exp": json.dumps(ours)}, "pixels": tensor}).encode()
    length = length or -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT
    assert 8 + len(text) <= length
    return (length - 8).to_bytes(8, "little") + text.ljust(length - 8)


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return what ``_header`` wrote, and where the pixels start; raises ValueError for anything else."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length <= LONGEST_HEADER else b""
    try:
        return dict(json.loads(json.loads(text)["__metadata__"]["meta_exp"])), 8 + length
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: its header cannot be read") from error


def _content(size: Sequence[int], *of_classes: Any) -> str:
    return _digest(json.dumps([list(size), *of_classes]).encode())


def _length(part: Any) -> int:
    return len(part) if isinstance(part, list) else -1


def _digest(content: Any) -> str:
    return blake2b(content, digest_size=8).hexdigest()
