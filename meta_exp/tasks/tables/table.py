r"""Tables of numbers as people and programs save them: each is read as it was meant, or refused with what to do.

Columns are separated by commas, semicolons or tabs (the one that every line has, or that a first line ``sep=;`` names),
in UTF-8 or UTF-16. A first row of words names the columns; it is a header only if every cell begins with a letter and
none says that a value is missing, and data only if every cell is a number. Numbers are plain decimals such as -1.5e-3;
where columns are not separated by commas they may have decimal commas.
"""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from meta_exp.config.checks import require

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")
NAME = re.compile(r"[^\W\d].*", re.DOTALL)
MISSING = {"na", "n/a", "nan", "inf", "infinity", "null", "none", "nil", "missing", "true", "false"}
SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
Row = tuple[int, list[str]]  # the line on which it begins, from 1, and its cells


class Table(NamedTuple):
    """A table whose columns are named and may hold anything; what is asked of it is read by name."""

    file: Path
    names: list[str]
    rows: list[Row]
    separator: str

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Return some columns as numbers [rows, names]; raises ValueError at a missing one and at what is no number."""
        rows = [(line, [cells[place] for place in self._places(names)]) for line, cells in self.rows]
        rows = _with_points(self.file, rows, names, self.separator)
        for line, cells in rows:
            _require_numbers(f"{self.file}, row {line}", names, cells)
        return np.array([cells for _, cells in rows], dtype=np.float64).reshape(len(rows), len(names))

    def words(self, name: str) -> list[str]:
        """Return a column as words; raises ValueError at a missing one and at an empty cell."""
        [place] = self._places([name])
        for line, cells in self.rows:
            require(cells[place] != "", f"{self.file}, row {line}, column {name}", "a word or a number", "nothing")
        return [cells[place] for _, cells in self.rows]

    def cells(self, names: Sequence[str]) -> list[list[str]]:
        """Return some columns as they stand."""
        places = self._places(names)
        return [[cells[place] for place in places] for _, cells in self.rows]

    def _places(self, names: Sequence[str]) -> list[int]:
        missing = [name for name in names if name not in self.names]
        expected = f"the columns {', '.join(names)}" if len(names) > 1 else f"a column {', '.join(names)}"
        got = f"no {', '.join(missing)}"
        require(not missing, str(self.file), expected, got, f"its columns are {', '.join(self.names)}")
        return [self.names.index(name) for name in names]


class Columns(NamedTuple):
    """Numbers: the names of columns, cells as they stand, values [rows, columns], whether names were given."""

    names: list[str]
    cells: list[list[str]]
    values: np.ndarray
    named: bool


def read_table(file: Path) -> Table:
    """Read a file whose first row names its columns.

    Raises:
        ValueError: with the row, as an editor counts lines, where it has no names or its rows differ in length.
    """
    require(not file.is_dir(), str(file), "a CSV file", "a folder")
    rows, separator = _rows(file, _text(file))
    require(len(rows) > 1, str(file), "the names of its columns, and rows", f"{len(rows)} rows")
    line, names = rows[0]
    for name in names:
        remedy = "leave the index out, as to_csv(index=False) does" if name == "" else "begin it with a letter"
        require(_is_name(name), f"{file}, row {line}", "the names of its columns", repr(name), remedy)
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{file}, row {line}", "a name for each column", f"{twice!r} twice")
    for line, cells in rows[1:]:
        remedy = "a decimal comma needs another separator, as ;" if separator == "," else ""
        require(
            len(cells) == len(names), f"{file}, row {line}", f"{len(names)} columns", f"{len(cells)} columns", remedy
        )
    return Table(file, names, rows[1:], separator)


def read_columns(file: Path, features: int, outputs: int = 0, support: Columns | None = None) -> Columns:
    """Read a file with columns for ``features`` of x, then ``outputs`` of y.

    Where both it and the table ``support`` name their columns, it is brought to the order of the support's x.

    Raises:
        ValueError: with the row, as an editor counts lines, and the column, where the file has another meaning than a
            table of finite numbers, or more than one.
    """
    require(not file.is_dir(), str(file), "a CSV file, since the run is a regression", "a folder")
    rows, separator = _rows(file, _text(file))
    require(bool(rows), str(file), "rows of numbers", "none")
    names = [f"x{i + 1}" for i in range(features)] + [f"y{i + 1}" for i in range(outputs)]
    named = all(_is_name(cell) for cell in rows[0][1])
    header = rows.pop(0) if named else None
    order = list(range(features + outputs))
    if header and support and (features > 1 or support.named):
        order = _matched(f"{file}, row {header[0]}", header[1], support, features)
    width = len(header[1]) if header and support else features + outputs
    expected = f"columns for {features} of x" + (f" and {outputs} of y" if outputs else "")
    for line, cells in ([header] if header else []) + rows:
        remedy = "leave the index out, as to_csv(index=False) does" if cells[0] == "" else ""
        remedy = "a decimal comma needs another separator, as ;" if separator == "," and not remedy else remedy
        require(len(cells) == width == len(order), f"{file}, row {line}", expected, f"{len(cells)} columns", remedy)
    if header:
        names = [header[1][place] for place in order]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, f"{file}, row {header[0]}", "a name for each column", f"{twice!r} twice")
    require(bool(rows), str(file), "rows of numbers", "none")
    rows = [(line, [cells[place] for place in order]) for line, cells in rows]
    if not named:
        line, cells = rows[0]
        remedy = "name the columns by words, or where it is data write 0.0"
        counted = cells == [str(i) for i in range(len(cells))]
        require(not counted, f"{file}, row {line}", "names or data", f"{','.join(cells)}, which may be either", remedy)
    rows = [(line, cells) for line, cells in _with_points(file, rows, names, separator)]
    for line, cells in rows:
        _require_numbers(f"{file}, row {line}", names, cells, first=not named and line == rows[0][0])
    cells_of = [cells for _, cells in rows]
    return Columns(names, cells_of, np.array(cells_of, dtype=np.float64), named)


def _text(file: Path) -> str:
    data = file.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected a CSV file in UTF-8 or UTF-16, got {error}") from error
    remedy = "save it as CSV in UTF-8"
    require("\0" not in text, str(file), "a CSV file in UTF-8 or UTF-16", "a file with zero bytes", remedy)
    return text


def _rows(file: Path, text: str) -> tuple[list[Row], str]:
    """Return the rows that are not blank, and their separator."""
    first, _, rest = text.partition("\n")
    named = SEPARATOR.fullmatch(first)
    offset = 1 if named else 0
    text = rest if named else text
    lines = [line for line in text.splitlines() if line.strip()]
    separator = named[1] if named else next((c for c in "\t;" if lines and all(c in line for line in lines)), ",")
    require(separator in ",;\t", f"{file}, row 1", "columns separated by a comma, ; or a tab", repr(separator))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    line = offset + 1
    try:
        for cells in reader:
            if cells and not (len(cells) == 1 and cells[0].isspace()):
                rows.append((line, [cell.strip() for cell in cells]))
            line = offset + reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, row {line}: expected a row of a CSV file, got {error}") from error
    return rows, separator


def _require_numbers(place: str, names: Sequence[str], cells: Sequence[str], first: bool = False) -> None:
    """Raise ValueError at a cell that is no finite number; the ``first`` row may have been meant for names."""
    for name, cell in zip(names, cells, strict=True):
        finite = NUMBER.fullmatch(cell) is not None and isfinite(float(cell))
        require(finite, f"{place}, column {name}", "a finite number", repr(cell), _remedy(cell, first))


def _is_name(cell: str) -> bool:
    return NAME.fullmatch(cell) is not None and cell.casefold() not in MISSING


def _matched(place: str, names: Sequence[str], support: Columns, features: int) -> list[int]:
    """Return the places in ``names`` of the support's columns of x."""
    require(support.named, place, "no names, as the support has none", ", ".join(names), "name the columns of both")
    expected = support.names[:features]
    columns = f"the support's columns of x ({', '.join(expected)})"
    for name in names:
        require(name in expected, place, columns, f"{name!r} too", "remove that column")
        require(names.count(name) == 1, place, columns, f"{name!r} twice", "remove one of them")
    for name in expected:
        require(name in names, place, columns, f"no {name!r}")
    return [names.index(name) for name in expected]


def _with_points(file: Path, rows: list[Row], names: Sequence[str], separator: str) -> list[Row]:
    """Return ``rows`` with decimal points, where all decimals of the file are commas."""
    if separator == ",":
        return rows
    all_cells = [(line, name, cell) for line, cells in rows for name, cell in zip(names, cells, strict=True)]
    commas = [(line, name, cell) for line, name, cell in all_cells if NUMBER.fullmatch(cell.replace(",", ".", 1))]
    commas = [found for found in commas if "," in found[2]]
    thousands = [(line, name, cell) for line, name, cell in all_cells if THOUSANDS.fullmatch(cell)]
    for line, name, cell in commas[:1]:
        place = f"{file}, row {line}, column {name}"
        points = any("." in other for _, _, other in all_cells)
        require(
            not points, place, "one sign for decimals in a file", f"{cell!r} beside points", "write all with points"
        )
        known = len(thousands) < len(commas)
        require(known, place, "a finite number", f"{cell!r}, whose comma may be of thousands", "write it with a point")
    return [(line, [_point(cell) for cell in cells]) for line, cells in rows]


def _point(cell: str) -> str:
    with_point = cell.replace(",", ".", 1)
    return with_point if NUMBER.fullmatch(with_point) else cell


def _remedy(cell: str, first: bool) -> str:
    if re.fullmatch(r"[\u2010-\u2015\u2212\ufe63\uff0d].*", cell):
        return "write its minus as -"
    if NUMBER.fullmatch(cell.replace(",", ".", 1)):
        return "write it with a point, or separate columns by ;"
    return "names of columns begin with a letter, and a row has names alone or numbers alone" if first else ""
