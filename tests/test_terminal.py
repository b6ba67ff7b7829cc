"""No control character that somebody else chose reaches a terminal, and one that is gone or narrow ends no work."""

import io
import logging
import os
import sys
from pathlib import Path

import commands
import pytest
from rich.console import Console
from rich.table import Table

from meta_exp.terminal import PlainFormatter, Screen, cell, duration, fitted, plain, plus_minus, print_fitted

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


SPEAKS = """
import sys, time
from pathlib import Path
from rich.console import Console
from rich.table import Table
from meta_exp import cli

def command():
    print("first", flush=True)
    while Path("wait").exists():
        time.sleep(0.01)
    table = Table("a", "b")
    table.add_row("1.0 \u00b1 0.5", "\u6f22 \u2192")
    for _ in range(1000):
        Console(width=40).print(table)
    print("said", file=sys.stderr)
    Path("done").write_text("all of it")

cli.run(command)
"""


def speak(folder, shell, **variables):
    (folder / "speaks.py").write_text(SPEAKS)
    package = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHON": sys.executable}
    return commands.finished(["bash", "-c", shell], folder, {**os.environ, **package, **variables})


@pytest.mark.parametrize(
    "shell",
    {
        "piped to head": 'touch wait; { "$PYTHON" speaks.py; echo $? > code; } | { head -1; rm wait; }',
        "stdout closed": '"$PYTHON" speaks.py >&-; echo $? > code',
        "both closed": '"$PYTHON" speaks.py >&- 2>&- <&-; echo $? > code',
        "narrow": 'PYTHONIOENCODING=ascii "$PYTHON" speaks.py; echo $? > code',
        "C": 'LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 "$PYTHON" speaks.py; echo $? > code',
    }.values(),
)
def test_what_nobody_reads_or_can_show_ends_no_work(tmp_path, shell):
    result = speak(tmp_path, shell)
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "done").read_text() == "all of it"
    assert "Traceback" not in result.stderr
    assert "Error" not in result.stderr
    if ">&-" not in shell:
        assert result.stdout.startswith("first\n")
    if "ascii" in shell:
        assert "1.0 +- 0.5" in result.stdout
        assert "\\u6f22 ->" in result.stdout


def test_numbers_have_the_digits_that_matter():
    said = {(0.97312, 0.00678): "0.9731 ± 0.0068", (1.5123, 2.0488): "1.5 ± 2.0", (123.4, 56.7): "123 ± 57"}
    said |= {(2e-7, 1e-8): "2e-07 ± 1e-08", (0.5, 0.0): "0.5 ± 0", (3.14159, float("nan")): "3.142"}
    assert {pair: plus_minus(*pair) for pair in said} == said
    assert [duration(s) for s in (12, 90, 5400)] == ["12 s", "2 min", "1.5 h"]


@pytest.mark.parametrize("width", [40, 80, 300])
def test_a_table_too_wide_becomes_several_that_fit(width):
    table = Table(*(f"column {n}" for n in range(9)), title="of nine")
    table.add_row("a label that is longer than there is room for", *(f"0.{n}234 ± 0.5" for n in range(1, 9)))
    stream = io.StringIO()
    parts = fitted(table, 1, width)
    for part in parts:
        Console(file=stream, width=width).print(part)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert all(f"0.{n}234 ± 0.5" in stream.getvalue() for n in range(1, 9)), "no figure is cut"
    assert len(parts) == {40: 8, 80: 3, 300: 1}[width] or 1 < len(parts) < 9


def test_a_title_stands_whole_above_a_narrow_table(capsys):
    table = Table("a", title="600 test tasks; evaluated with test_tasks=600 samples=4")
    table.add_row("1")
    print_fitted(table, 1)
    assert capsys.readouterr().out.splitlines()[0] == "600 test tasks; evaluated with test_tasks=600 samples=4"


def test_lines_of_a_log_stand_above_a_bar_and_bear_the_runs_name(monkeypatch, capsys):
    screen = Screen()
    record = logging.LogRecord("a", 20, "f.py", 1, "one\n[two] :x:", (), None)
    screen.emit(record)
    assert capsys.readouterr().out == "one\n[two] :x:\n"
    stream = io.StringIO()
    monkeypatch.setattr(Screen, "console", Console(file=stream, width=20))
    monkeypatch.setattr(Screen, "run", "maml, seed 0")
    screen.emit(record)
    assert stream.getvalue() == "[maml, seed 0] one\n[maml, seed 0] [two] :x:\n"
    record.minor = True
    screen.emit(record)
    assert stream.getvalue().count("one") == 1, "what is for the file alone"
