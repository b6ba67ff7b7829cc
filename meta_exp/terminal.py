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
from math import floor, isfinite, log10, nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 1000  # characters of a table
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


def near(words: object) -> str:
    """Return ``words`` with the paths below the working folder as they are called from there."""
    here = os.getcwd()
    return str(words) if here == os.sep else str(words).replace(f"{here}{os.sep}", "")


def in_notebook() -> bool:
    """Whether a notebook's cell keeps all that is written, be it that of a command which the cell calls."""
    return "JPY_PARENT_PID" in os.environ or "matplotlib_inline" in os.environ.get("MPLBACKEND", "")


def duration(seconds: float) -> str:
    """Return a time in one unit, as a person would say it."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"


def plus_minus(mean: float, half: float = nan) -> str:
    """Return a mean with the half width of its interval, with the digits that matter: two of the half width."""
    if not isfinite(half):
        return f"{mean:.4g}"
    if not 1e-4 <= max(abs(mean), half) < 1e5 or not half:
        return f"{mean:.3g} ± {half:.2g}"
    places = min(max(1 - floor(log10(half)), 0), 6)
    return f"{mean:.{places}f} ± {half:.{places}f}"


def fitted(table: "Table", labels: int, width: int) -> "list[Table]":
    """Return ``table``, untitled, as tables that fit ``width``, one below the other, each with its labels.

    Where these and one more column do not fit, that table is wider: a figure cut in two is worse.
    """
    from rich.console import Console
    from rich.table import Table

    def part(columns: list[int]) -> Table:
        shown = Table(show_lines=table.show_lines)
        for place in columns:
            column = table.columns[place]
            label: Any = {"max_width": max(3 * width // 5 // labels, 8), "overflow": "fold"}
            limits = label if place < labels else {"no_wrap": True}
            shown.add_column(column.header, justify=column.justify, **limits)
        for row in zip(*(table.columns[place].cells for place in columns), strict=True):
            shown.add_row(*row)
        return shown

    def fits(columns: list[int]) -> bool:
        return wide.measure(part(columns)).maximum <= width

    wide = Console(width=WIDEST)
    found: list[Table] = []
    front, here = list(range(labels)), list[int]()
    for place in range(labels, len(table.columns)):
        if here and not fits([*front, *here, place]):
            found.append(part([*front, *here]))
            here = []
        here.append(place)
    return [*found, part([*front, *here])]


def print_fitted(table: "Table", labels: int) -> None:
    """Print ``table`` in the width of the terminal, as ``fitted`` does."""
    from rich.console import Console

    console = Console()
    if table.title:  # above it, whole: a narrow table would break it into lines of its own width
        console.print(table.title, soft_wrap=True, highlight=False)
        table.title = None
    for shown in fitted(table, labels, console.width):
        width = max(console.width, Console(width=WIDEST).measure(shown).minimum)
        Console(width=width).print(shown, crop=False)


class Screen(logging.StreamHandler):
    """Lines of a log on the standard output as it is by then, above the bar that is drawn there, if any.

    Attributes:
        console: on which a bar is drawn.
        run: the name of the run, where several speak.
        alone: whether no other process speaks on the same terminal; bars would be drawn over each other.
    """

    console: Any = None
    run = ""
    alone = True

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The standard output."""
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines, each with the run's name in front."""
        lines = near(super().format(record)).split("\n")
        return "\n".join(f"[{plain(self.run)}] {line}" if self.run else line for line in lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless it is for the file alone."""
        if getattr(record, "minor", False):
            return
        if self.console is None:
            super().emit(record)
        else:
            from rich.text import Text

            self.console.print(Text(self.format(record)), soft_wrap=True)


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
