"""No control character that somebody else chose reaches a terminal."""

import io
import logging

from rich.console import Console
from rich.table import Table

from meta_exp.terminal import PlainFormatter, cell, plain

HOSTILE = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\rb",
    "a\nb",
    "a\bb",
    "\u202egnp",
    "\u2028",
    "\udc80",
    "\0",
    "\x7f",
]


def test_control_characters_become_escapes():
    for words in HOSTILE:
        shown = plain(f"a {words} b")
        assert shown.isprintable()
        assert shown.startswith("a ")
        assert shown.endswith(" b")
    assert plain("\x1b[31m") == r"\x1b[31m"
    assert plain("größe 漢字 é €") == "größe 漢字 é €"


def test_tables_and_logs_show_them_so():
    stream = io.StringIO()
    table = Table(title=cell(HOSTILE[0]))
    for words in HOSTILE:
        table.add_column(cell(words))
    table.add_row(*map(cell, [f"[bold]{words}[/bold]" for words in HOSTILE]))
    Console(file=stream, width=400, force_terminal=False).print(table)
    assert "[bold]" in stream.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in stream.getvalue())
    try:
        raise ValueError("\x1b[2Jerror")
    except ValueError as error:
        record = logging.LogRecord(
            "a", 30, "f.py", 1, "in %s", ("\x1b[2J\n",), (ValueError, error, error.__traceback__)
        )
    lines = PlainFormatter("[%(levelname)s] %(message)s").format(record).split("\n")
    assert lines[0] == r"[WARNING] in \x1b[2J"
    assert "Traceback" in "".join(lines)
    assert all(line.isprintable() for line in lines)
