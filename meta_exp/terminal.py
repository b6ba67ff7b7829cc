r"""Words that others chose, on the way to a terminal: names of files, labels, what a config or an error says.

A terminal obeys control characters: a folder's name could clear the screen, retitle the window or type. Whatever is not
printable is shown as an escape instead, ``\x1b``.
"""

import logging


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


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
