"""Files that are either whole or absent, whenever the process or the machine dies, and in nobody else's place.

Where the disk is full, or has no locks, the error names the file.

A folder may come from a stranger, with links where files are to be written. So a file is written under a new name that
cannot be guessed, and then put in place of what bears its own: a link is replaced, not followed. A folder that is a
link is refused. Only a pipe or a device that a person names as the output is written into. What is read of it is a
file of bounded size: a pipe would be waited for, a device has no end.
"""

import csv
import errno
import json
import os
import re
import secrets
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

from filelock import FileLock

from meta_exp.config.checks import one_line, require
from meta_exp.terminal import plain

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
NUMBER = re.compile(r"[+-]?[\d.]+([eE][+-]?\d+)?", re.ASCII)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # as some network file systems answer
ASKED_S = 0.5  # in which a process that asks for a lock has long let go of it
LARGEST = 2**24  # bytes of a file that is read whole
PART = re.compile(r"\.[0-9a-f]{16}\.part")
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # by which a spreadsheet takes a cell for one, and runs it


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` so that the file is either whole or absent; those that are not finite become null."""
    write_whole(file, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def read_bounded(file: Path, expected: str, largest: int = LARGEST) -> bytes:
    """Return the bytes of a file; raises ValueError for what is none or too large, OSError where it is unread."""
    require(file.is_file() or not file.exists(), str(file), expected, "no plain file")
    with file.open("rb") as stream:
        data = stream.read(largest + 1)
    require(len(data) <= largest, str(file), expected, f"more than {largest} bytes")
    return data


def read_json(file: Path, expected: str, remedy: str = "") -> dict[str, Any]:
    """Return the object that a JSON file holds; raises ValueError for any other content, OSError where it is unread."""
    data = read_bounded(file, expected)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        got = one_line(error) if data else "an empty file"
        raise ValueError(f"{file}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else "")) from error
    require(isinstance(found, dict), str(file), expected, type(found).__name__, remedy)
    return dict(found)


def write_whole(file: Path, text: str) -> None:
    """Write ``text`` so that the file is either whole or as it was."""
    with replacing(file) as stream:
        stream.write(text)


def write_rows(stream: Any, rows: Iterable[Sequence[Any]]) -> None:
    """Write ``rows`` as CSV into an open file; text that a spreadsheet would run gets an apostrophe in front.

    Text is ``plain``: in one line, control characters escaped.
    """
    csv.writer(stream, lineterminator="\n").writerows(map(_defused, row) for row in rows)


@contextmanager
def replacing(file: Path, mode: str = "w") -> Iterator[Any]:
    """Open a new file beside ``file`` for writing, as text or bytes; at the end flush it to the disk and rename it."""
    part = file.with_name(f".{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with naming(file, part):
            with os.fdopen(os.open(part, flags, 0o666), mode, **({} if "b" in mode else TEXT)) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, file)
    finally:
        with suppress(OSError):  # where it could not be made it cannot be removed, and that is said already
            part.unlink()


@contextmanager
def naming(file: Path, part: Path | None = None) -> Iterator[None]:
    """Have an OSError that names no file, as that of a full disk, or the ``part`` of one, name ``file``."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise


def is_held(file: Path) -> bool:
    """Whether a process holds the lock ``file``; a link, or what cannot be asked, is taken as free.

    Who asks shares the lock for an instant with all who ask; ``acquire`` outwaits that.
    """
    if file.is_symlink() or not file.is_file():
        return False
    try:
        import fcntl

        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    except ImportError:
        return False
    return False


def acquire(lock: FileLock, remedy: str, *, wait_s: float = ASKED_S) -> None:
    """Acquire ``lock``, which the operating system lets go of when the process dies.

    Args:
        lock: what to acquire.
        remedy: what to do where the file system has no locks.
        wait_s: for another process; by default as long as one that asks ``is_held`` may take; -1: for ever.

    Raises:
        Timeout: another process holds it.
        OSError: it cannot be had; where the file system has no such locks, with ``remedy``. A lock that is a mere file
            is not taken in their place: it would outlive a process that is killed.
    """
    missing = f"this file system has no locks; {remedy}"
    try:
        with warnings.catch_warnings(), naming(Path(lock.lock_file)):
            warnings.filterwarnings("error", message="flock not supported")
            lock.acquire(timeout=wait_s)
    except (UserWarning, NotImplementedError) as error:
        raise OSError(errno.ENOLCK, missing, str(lock.lock_file)) from error
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise OSError(error.errno, missing, str(lock.lock_file)) from error
        raise


@contextmanager
def writing(file: Path) -> Iterator[Any]:
    """Open for text what a person named: ``-`` is the standard output, a pipe or a device is written, not replaced."""
    if str(file) == "-":
        yield sys.stdout
        sys.stdout.flush()
    elif is_stream(file):
        with naming(file), file.open("w", **TEXT) as stream:
            yield stream
    else:
        with replacing(file) as stream:
            yield stream


def is_stream(file: Path) -> bool:
    """Whether ``file`` stands for something that is written into: the standard output, a pipe, a device."""
    if str(file) == "-" or file.absolute().parts[1:2] in (("dev",), ("proc",)):  # links, among others to such
        return True
    return os.path.lexists(file) and not any(kind(file.lstat().st_mode) for kind in (stat.S_ISREG, stat.S_ISLNK))


def make_folder(folder: Path) -> None:
    """Make ``folder`` where there is none; raises ValueError for a link to one, by which files would land elsewhere."""
    require(not folder.is_symlink(), str(folder), "a folder to write into", "a link", "remove it")
    folder.mkdir(parents=True, exist_ok=True)


def require_writable(folder: Path, remedy: str) -> None:
    """Raise OSError with ``remedy`` where nothing can be written into ``folder``, which need not be there yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OSError(errno.ENOTDIR, f"{os.strerror(errno.ENOTDIR)}; {remedy}", str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"nothing can be written there; {remedy}", str(there))


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed had begun to write in ``folder`` and below it; links are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            if PART.fullmatch(name):
                Path(place, name).unlink()


def _defused(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    words = str(value)
    formula = words.startswith(FORMULA) and not NUMBER.fullmatch(words)
    return f"'{plain(words)}" if formula else plain(words)
