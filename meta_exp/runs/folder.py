"""A run's folder over several processes: one writer at a time, and one config for all of them.

The same command again continues: a finished run is skipped, one with ``last.ckpt`` goes on from there, any other starts
anew. A folder whose run was begun with another config is refused, with the keys that differ.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from meta_exp.config.checks import one_line
from meta_exp.config.keys import MAY_CHANGE, flatten, within
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
        acquire(lock, "choose a folder on another by hydra.run.dir=FOLDER or hydra.sweep.dir=FOLDER", blocking=False)
    except Timeout:
        message = f"{folder}: expected no other process at this run, got one; wait for it, or choose another folder"
        raise Refused(message) from None
    try:
        remove_parts(folder)
        yield
    finally:
        lock.release()


def refuse_other_config(folder: Path, text: str) -> None:
    """Raise Refused if the run in ``folder`` was begun with another config than ``text``, and got somewhere."""
    file = folder / "config.yaml"
    if not (file.exists() and ((folder / "last.ckpt").exists() or (folder / "metrics.json").exists())):
        return
    old, new = (flatten(OmegaConf.to_container(config)) for config in (read_config(file), OmegaConf.create(text)))
    keys = [key for key in dict.fromkeys([*old, *new]) if not within(key, MAY_CHANGE)]
    differ = [f"{key}={old.get(key)}, now {new.get(key)}" for key in keys if repr(old.get(key)) != repr(new.get(key))]
    if differ:
        more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        message = f"{folder}: expected the config that its run was begun with, got {'; '.join(differ[:SHOWN])}{more}"
        raise Refused(f"{message}; give the same config, or choose another folder")
