"""Files of tasks: which are found in each layout, and what is refused by name."""

import pytest

from meta_exp.tasks.tables.tables import read_tables


def write(root, **files):
    for name, text in files.items():
        file = root / f"{name.replace('__', '/')}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def found(root, task="task"):
    return [(name, split, [cells for _, cells in table.rows]) for name, split, table in read_tables(root, task)]


def test_a_file_is_a_task(tmp_path):
    write(tmp_path, b="x,y\n1,2\n", a="x,y\n3,4\n5,6\n")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.csv").touch()
    (tmp_path / "c.TSV").write_text("x\ty\n7\t8\n")
    assert found(tmp_path) == [
        ("a", "all", [["3", "4"], ["5", "6"]]), ("b", "all", [["1", "2"]]), ("c", "all", [["7", "8"]]),
    ]  # fmt: skip


def test_a_column_tells_tasks_apart_wherever_their_rows_stand(tmp_path):
    write(tmp_path, all="x,car,y\n1,b,2\n3,a,4\n5,b,6\n", more="x,car,y\n7,c,8\n")
    expected = [("b", [["1", "b", "2"], ["5", "b", "6"]]), ("a", [["3", "a", "4"]]), ("c", [["7", "c", "8"]])]
    assert [(name, rows) for name, _, rows in found(tmp_path, "car")] == expected
    assert [(name, rows) for name, _, rows in found(tmp_path / "all.csv", "car")] == expected[:2]
    assert [name for name, _, _ in found(tmp_path)] == ["all", "more"]


def test_folders_of_splits(tmp_path):
    write(tmp_path, train__a="x,y\n1,2\n", val__b="x,y\n1,2\n", test__c="x,y\n1,2\n")
    assert [(name, split) for name, split, _ in found(tmp_path)] == [("a", "train"), ("b", "validation"), ("c", "test")]


FILES = {"a": "x,y\n1,2\n"}
WRONG = {
    "two splits": (
        {f"{split}__a": "x,y\n1,2\n" for split in ("train", "val", "test")},
        "task a: expected one split, got train and validation; give each to one of them",
    ),
    "two files": (
        {"p": "task,x\na,1\n", "q": "task,x\na,1\n"},
        "task a: expected one file, got {root}/p.csv and {root}/q.csv; rename one of them",
    ),
    "no file": ({"sub__a": "x,y\n1,2\n"}, "{root}: expected files that end in .csv or .tsv, got none"),
    "a split without": (
        {"train__a": "x,y\n1,2\n", "val__b": "x,y\n1,2\n", "test__sub__c": "x,y\n1,2\n"},
        "{root}/test: expected files that end in .csv or .tsv, got none",
    ),
    "no task": ({"a": "task,x\n,1\n"}, "{root}/a.csv, row 2, column task: expected a word or a number, got nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_ambiguous_or_missing_is_refused(tmp_path, case):
    files, message = WRONG[case]
    write(tmp_path, **files)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        found(tmp_path)
    assert str(refusal.value).startswith(message.format(root=tmp_path))


def test_nothing_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"^dataset.root: expected a folder of CSV files, or one, got nothing at .*; name"
    ):
        found(tmp_path / "nowhere")
