"""A run's folder over several processes: one writer at a time, and one config for all of them.

The same command again continues: a finished run is skipped, one with ``last.ckpt`` goes on from there, any other starts
anew. A folder whose run was begun with another config is refused, with the keys that differ. What only the evaluation
needs may change: of a finished run that is then done anew.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from meta_exp.config.checks import one_line
from meta_exp.config.keys import MAY_CHANGE, SCORED, SERVED, VALIDATED, flatten, within
from meta_exp.files import acquire, remove_parts
from meta_exp.runs.saved import read_config
from meta_exp.terminal import plain

SHOWN = 5  # differing keys


class Refused(ValueError):
    """The folder belongs to another process or another config; nothing in it was touched."""


class LogFile(logging.FileHandler):
    """Appends to ``train.log``, but to no link that the folder brings: it goes on in a file of its own.

    Where it cannot be written, on a full disk, that is said once.
    """

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say what went wrong, the first time."""
        error = sys.exc_info()[1]
        if not self.failed and error is not None:
            self.failed = True
            words = f"{self.baseFilename}: {one_line(error)}; the run goes on, and its log has holes"
            print(plain(words), file=sys.stderr, flush=True)

    def _open(self) -> Any:
        file = Path(self.baseFilename)
        if os.path.lexists(file) and (file.is_symlink() or not file.is_file() or file.stat().st_nlink > 1):
            lines = file.read_bytes() if file.is_file() and not file.is_symlink() else b""
            file.unlink()
            file.write_bytes(lines)
        return super()._open()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run's folder against other processes; the operating system lets go of it when this one dies.

    Raises:
        Refused: another process holds it.
        OSError: the file system has no locks, or is full.
    """
    lock = FileLock(folder / ".lock")
    try:
        acquire(lock, "choose a folder on another by hydra.run.dir=FOLDER or hydra.sweep.dir=FOLDER")
    except Timeout:
        message = f"{folder}: expected no other process at this run, got one; wait for it, or choose another folder"
        raise Refused(message) from None
    try:
        remove_parts(folder)
        yield
    finally:
        lock.release()


def remove_unbegun(folder: Path) -> bool:
    """Remove the folder of a run that came to nothing before it began, and say whether that was so.

    What it holds then is its log and its lock; folders above it, from outputs/ on, go with it where nothing else is in
    them.
    """
    if not folder.is_dir() or {file.name for file in folder.iterdir()} - {".lock", "train.log"}:
        return False
    for file in folder.iterdir():
        file.unlink()
    with suppress(OSError):
        folder.rmdir()
        for place in folder.parents:
            if "outputs" not in place.parts:
                break
            place.rmdir()
    return True


def refuse_other_config(folder: Path, text: str, trained: bool = False) -> list[str]:
    """Raise Refused if the run in ``folder`` was begun with another config than ``text``, and got somewhere.

    Returns what has changed of its evaluation, ``key=old, now new``; of a run that is ``trained`` that may be more.
    """
    file = folder / "config.yaml"
    if not (file.exists() and ((folder / "last.ckpt").exists() or (folder / "metrics.json").exists())):
        return []
    old, new = (flatten(OmegaConf.to_container(config)) for config in (read_config(file), OmegaConf.create(text)))
    changed = {
        key: f"{key}={old.get(key)}, now {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if not _same(old.get(key), new.get(key))
    }
    may_change = (*MAY_CHANGE, *VALIDATED) if trained else MAY_CHANGE
    differ = [words for key, words in changed.items() if not within(key, may_change)]
    if differ:
        more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        message = f"{folder}: expected the config that its run was begun with, got {'; '.join(differ[:SHOWN])}{more}"
        raise Refused(f"{message}; give the same config, or choose another folder")
    # a key that one of them lacks is of another version, not of another command
    both = old.keys() & new.keys()
    return [words for key, words in changed.items() if key in both and within(key, (*SCORED, *VALIDATED, *SERVED))]


def _same(old: object, new: object) -> bool:
    """Whether two values are the same; 1 and 1.0 are, true and 1 are not."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    return old == new and isinstance(old, bool) == isinstance(new, bool)
