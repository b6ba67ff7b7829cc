r"""Words that others chose, on the way to a terminal: names of files, labels, what a config or an error says.

A terminal obeys control characters: a folder's name could clear the screen, retitle the window or type. Whatever is not
printable is shown as an escape instead, ``\x1b``.


A terminal may also know few characters, or be gone: what it cannot show is shown as well as may be, and what nobody
reads any more is dropped, for the work goes on.
"""

import codecs
import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any

ALIKE = {"±": "+-", "…": "...", "→": "->"}  # for terminals that know ASCII alone


def plain(words: object) -> str:
    """Return ``words`` in one line, with an escape in place of each character that is not printable."""
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in str(words))


def plain_lines(words: str) -> str:
    """Return ``words`` as ``plain`` does, but for the ends of lines."""
    return "\n".join(plain(line.expandtabs()) for line in words.split("\n"))


def cell(words: object) -> str:
    """Return ``words`` as ``plain`` does, for a table of rich: markup in them is text."""
    from rich.markup import escape

    return escape(plain(words))


class PlainFormatter(logging.Formatter):
    """Lines of a log as ``plain`` words; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return what is written of ``record``."""
        return plain_lines(super().format(record))


class Words(io.TextIOWrapper):
    """A text stream in place of the ``given`` one, into the file descriptor ``number``, whose reader may go."""

    def __init__(self, number: int, given: Any) -> None:
        codecs.register_error("meta_exp", _alike)
        buffer = io.BufferedWriter(io.FileIO(number, "wb", closefd=False))
        lines, at_once = (getattr(given, name, False) for name in ("line_buffering", "write_through"))
        encoding = getattr(given, "encoding", None) or "utf-8"
        super().__init__(buffer, encoding, "meta_exp", line_buffering=lines, write_through=at_once)
        self.number = number

    def write(self, words: str) -> int:
        """Write, or drop what nobody reads."""
        try:
            return super().write(words)
        except BrokenPipeError:
            self._drop()
            return len(words)

    def flush(self) -> None:
        """Flush, or drop what nobody reads."""
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.number)
        os.close(nowhere)


def open_streams() -> None:
    """Have stdout and stderr take whatever is said, also where they are closed, broken, or know few characters."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file that is opened would be one of them
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        given = getattr(sys, name)
        with suppress(AttributeError, OSError, ValueError):
            given.flush()
        setattr(sys, name, Words(number, given))


def _alike(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    words = error.object[error.start : error.end]
    return "".join(ALIKE.get(letter) or _escape(letter) for letter in words), error.end


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
