"""Tables of many makers: each is read as it was meant, or refused with file, row, column and what to do."""

import re

import numpy as np
import pytest

from meta_exp.production.table import read_columns

POINTS = [[1, 2.5], [3, -4]]


@pytest.fixture
def table(tmp_path):
    """Write text or bytes as s.csv and read it, by default as one x and one y."""

    def read(text, *arguments, **options):
        file = tmp_path / "s.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_columns(file, *(arguments or (1, 1)), **options)

    return read


READ = {
    "commas": "x,y\n1,2.5\n3,-4",
    "no names": "1,2.5\n3,-4",
    "semicolons": "x;y\n1;2.5\n3;-4\n",
    "tabs": "x\ty\r\n1\t2.5\r\n3\t-4\r\n",
    "decimal commas": "x;y\n1,0;2,5\n3;-4,0",
    "decimal commas and tabs": "1\t2,50\n3,000\t-4",
    "decimal commas in quotes": '"1";"2,5"\n"3";"-4,0"',
    "a separator named": "sep=;\nx;y\n1;2,5\n3;-4",
    "a separator named as Excel does": "\ufeffSEP=,\r\nx,y\r\n1,2.5\r\n3,-4\r\n",
    "UTF-16": "\ufeffx\ty\n1\t2.5\n3\t-4\n".encode("utf-16-le"),
    "UTF-16, big end first": "\ufeffx,y\n1,2.5\n3,-4\n".encode("utf-16-be"),
    "UTF-8 with a mark": b"\xef\xbb\xbfx , y\r\n1, 2.5\r\n3,-4e0\r\n",
    "blank lines": "\n\nx,y\n\n1,2.5\n   \n3,-4\n\n",
    "old Mac lines": "x,y\r1,2.5\r3,-4\r",
    "numbers of all forms": "+1.,2.5E0\n.3e1,-40e-1",
    "a semicolon in a name": "x;time,y\n1,2.5\n3,-4",
    "names of other scripts": "時間,höhe (m)\n1,2.5\n3,-4",
    "quotes": '"x","y, in m"\n"1","2.5"\n3,-4',
}


@pytest.mark.parametrize("maker", READ)
def test_a_table_is_read_as_it_was_meant(table, maker):
    found = table(READ[maker])
    assert found.values.tolist() == POINTS
    assert found.named == ("x" in str(READ[maker]) or "höhe" in str(READ[maker]))
    assert [[float(cell) for cell in row] for row in found.cells] == POINTS, "they go into a file with points"


REFUSED = {
    "x,y\n1,2\n3,nan": "s.csv, row 3, column y: expected a finite number, got 'nan'",
    "1,2\n3,": "s.csv, row 2, column y1: expected a finite number, got ''",
    "1,two\n3,4": "s.csv, row 1, column y1: expected a finite number, got 'two'",
    "x,y\n1,2\n\n3,4,5": "s.csv, row 4: expected columns for 1 of x and 1 of y, got 3 columns",
    "x,y\n": "s.csv: expected rows of numbers, got none",
    "": "s.csv: expected rows of numbers, got none",
    "NA,2\n3,4": "s.csv, row 1, column x1: expected a finite number, got 'NA'",
    "NA,NA\n3,4": "s.csv, row 1, column x1: expected a finite number, got 'NA'; names of columns begin with a letter",
    "nan,inf\n3,4": "s.csv, row 1, column x1: expected a finite number, got 'nan'",
    "\u22121,\u22122\n3,4": "s.csv, row 1, column x1: expected a finite number, got '\u22121'; write its minus as -",
    "1,2\n3,\u22124": "s.csv, row 2, column y1: expected a finite number, got '\u22124'; write its minus as -",
    '"0,5","1,5"\n3,4': "s.csv, row 1, column x1: expected a finite number, got '0,5'; write it with a point, or",
    '1,2\n"1,000",4': "s.csv, row 2, column x1: expected a finite number, got '1,000'; write it with a point, or",
    "0,1\n0.5,2.5": "s.csv, row 1: expected names or data, got 0,1, which may be either; name the columns by words",
    ",x,y\n0,1,2": "s.csv, row 1: expected columns for 1 of x and 1 of y, got 3 columns; leave the index out",
    "0,5;1,5\n1.5;2": "s.csv, row 1, column x1: expected one sign for decimals in a file, got '0,5' beside points",
    "1,234;5,678": "s.csv, row 1, column x1: expected a finite number, got '1,234', whose comma may be of thousands",
    "x;y\n1,234,567;5": "s.csv, row 2, column x: expected a finite number, got '1,234,567'",
    "0,5,1,5": "s.csv, row 1: expected columns for 1 of x and 1 of y, got 4 columns; a decimal comma needs another",
    "1,1_000": "s.csv, row 1, column y1: expected a finite number, got '1_000'",
    "1,\u0661": "s.csv, row 1, column y1: expected a finite number, got '\u0661'",
    "1,1e999": "s.csv, row 1, column y1: expected a finite number, got '1e999'",
    "1,0x10": "s.csv, row 1, column y1: expected a finite number, got '0x10'",
    "x,y\n\n1,2\n\n\n3,": "s.csv, row 6, column y: expected a finite number, got ''",
    "sep=;\nx;y\n1;2\n3;z": "s.csv, row 4, column y: expected a finite number, got 'z'",
    "sep=|\nx|y": "s.csv, row 1: expected columns separated by a comma, ; or a tab, got '|'",
    'x,y\n1,"2\n3,4\n5,6': "s.csv, row 2: expected a row of a CSV file, got unexpected end of data",
    'x,y\n1,2\n3,"4\n"\n5,"6\n7"': "s.csv, row 5, column y: expected a finite number, got '6\\n7'",
    "x,x\n1,2": "s.csv, row 1: expected a name for each column, got 'x' twice",
    "x,2nd\n1,2": "s.csv, row 1, column x1: expected a finite number, got 'x'; names of columns begin with a letter",
    "x,y\ns,m\n1,2": "s.csv, row 2, column x: expected a finite number, got 's'",
    "1 2\n3 4": "s.csv, row 1: expected columns for 1 of x and 1 of y, got 1 columns",
    ",\n1,2": "s.csv, row 1, column x1: expected a finite number, got ''",
    "1,2\n,\n": "s.csv, row 2, column x1: expected a finite number, got ''",
    b"x\x00,\x00y\x00": "s.csv: expected a CSV file in UTF-8 or UTF-16, got a file with zero bytes",
    "h\u00f6he,x\n1,2".encode("latin-1"): "s.csv: expected a CSV file in UTF-8 or UTF-16, got 'utf-8' codec",
    "\n \n": "s.csv: expected rows of numbers, got none",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_table_that_may_mean_something_else_is_refused(table, text):
    with pytest.raises(ValueError, match=re.escape(REFUSED[text])) as refusal:
        table(text)
    assert "\n" not in str(refusal.value)


def test_no_point_is_lost_of_one_column(table):
    """An empty value, as pandas writes it in a table of one column."""
    with pytest.raises(ValueError, match="row 3, column x: expected a finite number, got ''"):
        table('x\n1\n""\n2', 1)
    with pytest.raises(ValueError, match="row 1: expected names or data, got 0, which may be either"):
        table("0\n1\n2", 1)
    with pytest.raises(ValueError, match="row 1: expected columns for 1 of x, got 2 columns; a decimal comma"):
        table("0,5\n1,5", 1)
    assert table("0.0\n1\n2", 1).values.tolist() == [[0], [1], [2]]
    assert table("sep=;\n0,5\n1,5", 1).values.tolist() == [[0.5], [1.5]]


def test_columns_are_matched_by_name(table):
    support = table("time,depth,height\n1,2,3", 2, 1)
    found = table("depth,time\n20,10\n", 2, support=support)
    assert (found.names, found.values.tolist(), found.cells) == (["time", "depth"], [[10, 20]], [["10", "20"]])
    assert table("10,20", 2, support=support).values.tolist() == [[10, 20]], "without names by place"
    columns = r"row 1: expected the support's columns of x \(time, depth\), got "
    for text, got in {
        "time,depth,height\n1,2,3": "'height' too; remove that column",
        "time\n1": "no 'depth'",
        "time,Depth\n1,2": "'Depth' too",
        "time,time,depth\n1,1,2": "'time' twice",
    }.items():
        with pytest.raises(ValueError, match=columns + got):
            table(text, 2, support=support)
    with pytest.raises(ValueError, match="row 1: expected no names, as the support has none, got a, b; name"):
        table("a,b\n1,2", 2, support=table("1,2,3", 2, 1))
    assert table("a\n1", 1, support=table("1,2", 1, 1)).values.tolist() == [[1]]


def test_a_table_of_numpy_is_itself(table, tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 3)) * 10.0 ** np.arange(-150, 150, 100)
    for separator in ",;\t":
        np.savetxt(tmp_path / "n.csv", values, fmt="%.17g", delimiter=separator)
        assert np.array_equal(read_columns(tmp_path / "n.csv", 2, 1).values, values)
