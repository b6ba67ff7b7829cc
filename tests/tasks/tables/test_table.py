"""Tables of many makers: each is read as it was meant, or refused with file, row, column and what to do."""

import re

import numpy as np
import pytest

from meta_exp.tasks.tables.table import read_columns, read_table

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


NAMED = "name, a,b,label\nx,1.5,-2,cat\n\ny,2,3e1,dog fish\n"


def test_a_named_table_is_read_by_the_names_that_are_asked_for(tmp_path):
    table = read_table(written(tmp_path, NAMED))
    assert table.names == ["name", "a", "b", "label"]
    np.testing.assert_array_equal(table.numbers(["b", "a"]), [[-2, 1.5], [30, 2]])
    assert table.words("label") == ["cat", "dog fish"]
    assert table.cells(["b", "name"]) == [["-2", "x"], ["3e1", "y"]]
    assert table.numbers([]).shape == (2, 0)


def test_decimal_commas_of_the_columns_that_are_asked_for(tmp_path):
    table = read_table(written(tmp_path, "version;a;b\n1.2;1,5;2\n1.3;2,5;3\n"))
    np.testing.assert_array_equal(table.numbers(["a", "b"]), [[1.5, 2], [2.5, 3]])
    with pytest.raises(ValueError, match=r"row 2, column a: expected one sign for decimals in a file"):
        table.numbers(["version", "a"])


@pytest.mark.parametrize(
    ("text", "ask", "message"),
    [
        (
            NAMED,
            lambda t: t.numbers(["a", "z"]),
            "a.csv: expected the columns a, z, got no z; its columns are name, a, b",
        ),
        (NAMED, lambda t: t.words("z"), "a.csv: expected a column z, got no z; its columns are name, a, b, label"),
        (NAMED, lambda t: t.numbers(["a", "label"]), "a.csv, row 2, column label: expected a finite number, got 'cat'"),
        ("a,b\n1,2\n1,\n", lambda t: t.numbers(["b"]), "a.csv, row 3, column b: expected a finite number, got ''"),
        ("a,b\n1,nan\n", lambda t: t.numbers(["b"]), "a.csv, row 2, column b: expected a finite number, got 'nan'"),
        ("a,b\n1,2\n1,\n", lambda t: t.words("b"), "a.csv, row 3, column b: expected a word or a number, got nothing"),
        ("1,2\n3,4\n", None, "a.csv, row 1: expected the names of its columns, got '1'; begin it with a letter"),
        (",a\n0,1\n", None, "a.csv, row 1: expected the names of its columns, got ''; leave the index out"),
        ("a,a\n0,1\n", None, "a.csv, row 1: expected a name for each column, got 'a' twice"),
        ("a,b\n0,1\n0\n", None, "a.csv, row 3: expected 2 columns, got 1 columns"),
        ("a,b\n", None, "a.csv: expected the names of its columns, and rows, got 1 rows"),
        ("", None, "a.csv: expected the names of its columns, and rows, got 0 rows"),
    ],
)
def test_a_named_table_is_refused_with_file_row_and_column(tmp_path, text, ask, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        (ask or len)(read_table(written(tmp_path, text)))
    assert message in str(refusal.value)


def written(folder, text):
    (folder / "a.csv").write_text(text)
    return folder / "a.csv"
