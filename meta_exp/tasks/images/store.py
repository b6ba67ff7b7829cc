"""The image store: every image of a data set in one checked file, opened by memory map.

A store holds uint8 pixels [classes, images, H, W, C], the name of each class and the split of the source that it is in.
Whoever comes first converts the source; everybody after opens the file, and parallel jobs share its pages. The file is
in the safetensors layout (8 bytes of header length, a JSON header, raw bytes), so that other tools can read it. Its
header holds the format version, the stamp of the source, a hash of each class, and a hash over all of these.

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
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import track

from meta_exp.files import acquire
from meta_exp.tasks.images.source import Pixels, Source, shorten

FORMAT = 1  # raise it with any change of the layout, or of how a source is converted
SAMPLE = 40 * 2**20  # bytes of pixels that an opening checks
ALIGNMENT = 4096  # of the pixels within the file
LONGEST_HEADER = 2**24  # bytes; that of Omniglot has some 100 000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStore:
    """Pixels uint8 [classes, images, H, W, C]; name, split and hash of each class; its file if it has one."""

    pixels: Pixels
    class_names: Sequence[str]
    split_names: Sequence[str]
    digests: Sequence[str]
    file: Path | None = None

    @property
    def content(self) -> str:
        """The hash over shape, names and hashes: equal stores hold the same images under the same names."""
        return _content(self.pixels.shape, self.class_names, self.split_names, self.digests)

    def verify(self) -> None:
        """Check every class against its hash; raises ValueError naming those that differ."""
        self.check(range(len(self.pixels)))

    def check(self, classes: Sequence[int]) -> None:
        """Check some classes against their hashes; raises ValueError naming those that differ."""
        wrong = [self.class_names[index] for index in classes if _digest(self.pixels[index]) != self.digests[index]]
        if wrong:
            raise ValueError(f"{self.file} is damaged: its images of {shorten(wrong)} are not those stored")


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
        acquire(lock, remedy, blocking=False)
    except Timeout:
        log.warning("Waiting for another process that prepares %s: it holds %s", source.name, lock.lock_file)
        acquire(lock, remedy, blocking=True)


def read_store(source: Source) -> ImageStore:
    """Map the store of ``source`` into memory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format, or made from another source.
    """
    file = source.store_file
    header, start = _read_header(file)
    expected = {"format": FORMAT, "stamp": source.stamp(), "shape": list(source.shape)}
    expected |= {"class_names": list(source.class_names), "split_names": list(source.split_names)}
    for key, value in expected.items():
        if header.get(key) != value:
            raise ValueError(f"{file} is stale: it has another {key.replace('_', ' ')}")
    if file.stat().st_size != start + prod(source.shape):
        raise ValueError(f"{file} is damaged: it has another size")
    digests: Any = header.get("digests")
    listed = isinstance(digests, list) and all(isinstance(digest, str) for digest in digests)
    if not listed or len(digests) != len(source.class_names):
        raise ValueError(f"{file} is damaged: its header has no hash of each class")
    if header.get("content") != _content(source.shape, source.class_names, source.split_names, digests):
        raise ValueError(f"{file} is damaged: its header does not hold together")
    # copy on write, so that torch may have it: nobody writes, and the pages stay those of the file
    pixels = np.memmap(file, np.uint8, "c", start, source.shape)
    store = ImageStore(pixels, source.class_names, source.split_names, digests, file)
    count = min(len(pixels), max(3, SAMPLE // pixels[0].nbytes))
    store.check(np.linspace(0, len(pixels) - 1, count).astype(int).tolist())
    return store


def _write(stream: BinaryIO, source: Source) -> None:
    """Write a store class by class: never more than one class in memory beside what ``convert`` holds."""
    try:
        start = stream.write(_header(source, [_digest(b"")] * source.shape[0]))  # its place, to be filled below
        digests = []
        for pixels in _progress(source):
            stream.write(pixels.data)
            digests.append(_digest(pixels))
        stream.seek(0)
        assert stream.write(_header(source, digests)) == start
        stream.flush()
        os.fsync(stream.fileno())
    except OSError as error:
        if error.filename:  # of the source
            raise
        needed = f"{error.strerror}; the data cache needs {prod(source.shape) / 1e6:.0f} MB there: make room, or set "
        raise OSError(error.errno, needed + "META_EXP_CACHE to a folder elsewhere", str(source.store_file)) from error


def _convert_in_memory(source: Source) -> ImageStore:
    pixels = np.empty(source.shape, np.uint8)
    for index, images in enumerate(_progress(source)):
        pixels[index] = images
    return ImageStore(pixels, source.class_names, source.split_names, [_digest(images) for images in pixels])


def _progress(source: Source) -> Iterator[Pixels]:
    """Convert class by class, with a bar for people."""
    classes = source.convert()
    bar = track(classes, f"Converting {source.name}", total=source.shape[0], console=Console(stderr=True))
    for pixels in bar:
        assert pixels.shape == source.shape[1:]
        assert pixels.dtype == np.uint8
        yield np.ascontiguousarray(pixels)


def _header(source: Source, digests: list[str]) -> bytes:
    """Return the file's bytes before the pixels, padded to ALIGNMENT."""
    ours = {
        "format": FORMAT,
        "stamp": source.stamp(),
        "shape": source.shape,
        "class_names": list(source.class_names),
        "split_names": list(source.split_names),
        "digests": digests,
        "content": _content(source.shape, source.class_names, source.split_names, digests),
    }
    tensor = {"dtype": "U8", "shape": source.shape, "data_offsets": [0, prod(source.shape)]}
    text = json.dumps({"__metadata__": {"meta_exp": json.dumps(ours)}, "pixels": tensor}).encode()
    length = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return what ``_header`` wrote, and where the pixels start; raises ValueError for anything else."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length <= LONGEST_HEADER else b""
    try:
        return dict(json.loads(json.loads(text)["__metadata__"]["meta_exp"])), 8 + length
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: its header cannot be read") from error


def _content(shape: Sequence[int], *names: Sequence[str]) -> str:
    return _digest(json.dumps([list(shape), *map(list, names)]).encode())


def _digest(content: Any) -> str:
    return blake2b(content, digest_size=8).hexdigest()
