"""Tables of one's own: unequal tasks, columns and scales, episodes of numbers and of labels, and refusals."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from meta_exp.tasks import CsvTasks
from meta_exp.tasks.foreign import draw_with_foreign
from meta_exp.tasks.measured import Measured

SHARES = (0.5, 0.25, 0.25)


def values(task, rows):
    """Rows a, b, c of a task, each number telling the task and the row."""
    return [(task + row / 100, 10 * task + row, -1000 * task - row) for row in range(rows)]


@pytest.fixture
def root(tmp_path):
    """Eight tasks of 4, 5, ... rows."""
    (tmp_path / "root").mkdir()
    for task in range(8):
        lines = [",".join(map(str, row)) for row in values(task, 4 + task)]
        (tmp_path / "root" / f"t{task}.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n")
    return tmp_path / "root"


def family(root, **settings):
    return CsvTasks(**{"root": str(root), "shots": 2, "queries": 2, "shares": SHARES} | settings)


def restored(tasks, examples):
    """Episodes in the units of the files."""
    columns = tasks.columns
    return columns.x_scale.restore(examples.x), columns.y_scale.restore(examples.y)


def test_by_default_the_last_column_is_y(root):
    tasks = family(root)
    assert isinstance(tasks, Measured)
    measured = tasks.measure()
    assert (measured["x"], measured["y"]) == (["a", "b"], ["c"])
    assert (tasks.input_shape, tasks.outputs, tasks.classes) == ((2,), 1, False)
    assert family(root, y=["a", "b"]).measure()["x"] == ["c"]
    assert family(root, x=["c"], y=["a", "b"]).outputs == 2
    assert family(root, x=["a"]).measure()["y"] == ["c"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_episode_shows_distinct_rows_of_one_task_of_its_split(root, split):
    tasks = family(root, x=["b", "a"], y=["c"])
    episode = tasks.draw(split, np.random.default_rng(0), 50)
    assert (episode.support.x.shape, episode.query.y.shape) == ((50, 2, 2), (50, 2, 1))
    assert episode.support.x.dtype == episode.support.y.dtype == torch.float32
    (x, y), (z, w) = (restored(tasks, examples) for examples in episode)
    known = {tuple(np.round(row, 2)) for task in tasks.splits[split] for row in values(task, 4 + task)}
    for points, targets in zip(torch.cat([x, z], 1), torch.cat([y, w], 1), strict=True):
        pairs = zip(points.tolist(), targets.tolist(), strict=True)
        rows = [(round(a, 2), round(b), round(c)) for (b, a), [c] in pairs]
        assert set(rows) <= known
        assert len(set(rows)) == 4, "no row twice"
        assert len({int(a) for a, _, _ in rows}) == 1, "one task"


def test_all_rows_of_all_tasks_are_drawn_equally_often(root):
    tasks = family(root)
    drawn = tasks.draw("train", np.random.default_rng(0), 8000)
    a = restored(tasks, drawn.query)[0][..., 0].numpy().ravel()
    number, row = np.divmod(np.rint(100 * a).astype(int), 100)
    shares = np.bincount(number, minlength=8)[tasks.splits["train"]] / len(a)
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    for task in tasks.splits["train"]:
        np.testing.assert_allclose(np.bincount(row[number == task]) / (number == task).sum(), 1 / (4 + task), atol=0.02)


def test_the_scale_is_that_of_all_training_rows_whatever_the_shots(root):
    measured = family(root).measure()
    train = family(root).splits["train"]
    rows = np.array([row for task in train for row in values(task, 4 + task)])
    np.testing.assert_allclose(measured["x_mean"] + measured["y_mean"], rows.mean(0), rtol=1e-8)
    np.testing.assert_allclose(measured["x_std"] + measured["y_std"], rows.std(0), rtol=1e-8)
    assert family(root, shots=1, queries=1).measure() == measured
    assert replace(family(root), **measured).measure() == measured
    settled = replace(family("nowhere"), **measured)
    assert (settled.input_shape, settled.outputs) == ((2,), 1), "nothing is read for what is settled"
    assert settled.columns == family(root).columns


def test_small_tasks_are_left_out_in_one_line(root, caplog):
    tasks = family(root, queries=4)  # 6 rows: t0 and t1 have fewer
    small = [f"t{task} ({4 + task})" for places in tasks.splits.values() for task in places if task < 2]
    with caplog.at_level(logging.INFO):
        tasks.draw("train", np.random.default_rng(0), 1)
        tasks.draw("train", np.random.default_rng(0), 1)
    [record] = caplog.records
    assert record.message == (
        f"tasks with fewer than dataset.shots + dataset.queries = 6 rows are left out: {', '.join(small)}"
    )
    a = restored(tasks, tasks.draw("train", np.random.default_rng(0), 200).query)[0][..., 0]
    assert a.min() >= 2


def test_a_picture_where_x_and_y_are_one_number_each(root):
    assert family(root).picture is None
    assert family(root, x=["a"], y=["b", "c"]).picture is None
    assert family(root, x=["a"]).picture.name == "rows"


@pytest.fixture
def labels(tmp_path):
    """A table of eight kinds, 3 rows of the first, 4 of the second and so on, rows of all kinds mixed."""
    lines = [f"{kind}.{row:02},kind{kind}" for kind in range(8) for row in range(3 + kind)]
    np.random.default_rng(0).shuffle(lines)
    (tmp_path / "kinds.csv").write_text("size,kind\n" + "\n".join(lines) + "\n")
    return tmp_path / "kinds.csv"


def kinds(tasks, x):
    """Which kind and which row each number is."""
    size = tasks.columns.x_scale.restore(x)[..., 0].numpy()
    return np.divmod(np.rint(100 * size).astype(int), 100)


def test_of_one_table_of_labels_the_classes_are_split(labels):
    tasks = family(labels, y="kind", shots=1)
    assert (tasks.classes, tasks.outputs, tasks.input_shape, tasks.picture) == (True, 2, (1,), None)
    assert {split: len(places) for split, places in tasks.splits.items()} == {"train": 4, "validation": 2, "test": 2}
    assert sorted(np.concatenate(list(tasks.splits.values()))) == list(range(8))
    for split, places in tasks.splits.items():
        drawn = tasks.draw_classes(split, np.random.default_rng(0), 60)
        (x, y), (z, w) = drawn.episode
        assert (x.shape, y.tolist()) == ((60, 2, 1), [[0, 1]] * 60)
        assert (z.shape, w.tolist()) == ((60, 4, 1), [[0, 0, 1, 1]] * 60)
        support, query = kinds(tasks, x), kinds(tasks, z)
        np.testing.assert_array_equal(support[0], drawn.classes)
        np.testing.assert_array_equal(query[0], drawn.classes.repeat(2, 1))
        assert set(drawn.classes.ravel()) == set(places)
        for task in range(60):
            rows = list(
                zip(*(np.concatenate([s[task], q[task]]) for s, q in zip(support, query, strict=True)), strict=True)
            )
            assert len(set(rows)) == 6, "no row twice"


def test_rows_of_a_class_are_drawn_equally_often(labels):
    tasks = family(labels, y="kind", shots=1)
    kind, row = kinds(tasks, tasks.draw("train", np.random.default_rng(0), 6000).query.x)
    for place in tasks.splits["train"]:
        counts = np.bincount(row[kind == place], minlength=3 + place)
        np.testing.assert_allclose(counts / counts.sum(), 1 / (3 + place), atol=0.03)


def test_of_several_tables_of_labels_the_tasks_are_split(tmp_path, caplog):
    for task in range(8):
        lines = [f"{10 * task + kind}.{row:02},{'pqr'[kind]}" for kind in range(3) for row in range(3 + kind)]
        (tmp_path / f"t{task}.csv").write_text("size,kind\n" + "\n".join(lines) + "\n")
    tasks = family(tmp_path, y="kind", shots=2)
    with caplog.at_level(logging.INFO):
        drawn = tasks.draw_classes("train", np.random.default_rng(0), 40)
    kind, _ = kinds(tasks, drawn.episode.support.x)
    assert {len(set(row // 10)) for row in kind} == {1}, "classes of one task"
    assert set((kind // 10).ravel()) == set(tasks.splits["train"])
    np.testing.assert_array_equal(kind[:, ::2] % 10, drawn.classes)
    assert set(drawn.classes.ravel()) == {1, 2}, "p has 3 rows, and is left out"
    [record] = caplog.records
    assert "t0/p (3)" in record.message
    assert record.message.startswith(
        "classes with fewer than dataset.shots + dataset.queries = 4 rows, or in tasks of "
    )


def test_foreign_rows_are_of_other_classes(labels):
    tasks = family(labels, y="kind", shots=1, shares=(0.25, 0.25, 0.5))
    episodes, (x, foreign) = draw_with_foreign(tasks, "test", 0, 20)
    own = kinds(tasks, episodes.support.x)[0]
    expected = [[kind not in own[task] for kind in row] for task, row in enumerate(kinds(tasks, x)[0])]
    assert foreign.tolist() == expected
    assert 0 < foreign.float().mean() < 1


def test_numbers_have_nothing_foreign(root):
    assert draw_with_foreign(family(root), "test", 0, 2)[1] is None


WRONG = {
    "a missing column": (
        {"x": ["a", "z"]},
        "{root}/t0.csv: expected the columns a, z, got no z; its columns are a, b, c",
    ),
    "a missing column of y": ({"y": ["z"]}, "{root}/t0.csv: expected a column z, got no z; its columns are a, b, c"),
    "a missing label": ({"y": "z"}, "{root}/t0.csv: expected a column z, got no z; its columns are a, b, c"),
    "too few rows": (
        {"queries": 9},
        "split train of {root}: expected a task with 11 rows (dataset.shots + dataset.queries), got t2 (6), t3",
    ),
    "too few tasks": (
        {"shares": (0.98, 0.01, 0.01)},
        "{root}: expected tasks for each split, got 8 in train, 0 in val",
    ),
    "labels that are numbers": (
        {"y": "c"},
        "split train of {root}: expected a task with 2 classes (dataset.ways) of 4 rows",
    ),
    "nothing is left for x": (
        {"y": ["a", "b", "c"]},
        "{root}/t0.csv: expected columns of x and of y, got a, b, c; name",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_do_not_fit_are_refused(root, case):
    settings, message = WRONG[case]
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        family(root, **settings).measure()
    assert str(refusal.value).startswith(message.format(root=root))
    assert "\n" not in str(refusal.value)


def test_a_cell_that_is_no_number_is_named_with_file_row_and_column(root):
    file = root / "t3.csv"
    file.write_text(file.read_text().replace("3.02", "soon"))
    with pytest.raises(ValueError, match=r"t3.csv, row 4, column a: expected a finite number, got 'soon'"):
        family(root).measure()


def test_too_few_classes_of_a_table(labels):
    with pytest.raises(ValueError, match=r"^split train of .*: expected 2 classes \(dataset.ways\) of 9 rows"):
        family(labels, y="kind", queries=7).measure()
    with pytest.raises(
        ValueError, match=r"expected classes for each split, got 8 in train, 0 in validation, 0 in test; add"
    ):
        family(labels, y="kind", shares=(0.98, 0.01, 0.01)).measure()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": ["a"], "y": ["a"]}, "dataset.x and dataset.y: expected each column once, and none of tasks, got a"),
        ({"x": ["a", "task"]}, "dataset.x and dataset.y: expected each column once, and none of tasks, got task"),
        ({"x": []}, "dataset.x: expected null or the names of columns, got []"),
        ({"y": ""}, "dataset.y: expected null or the names of columns, got "),
        (
            {"x_mean": [0.0]},
            "dataset.x_mean, dataset.x_std: expected null, or a mean and a deviation > 0 for each column",
        ),
        ({"x": ["a"], "x_mean": [0.0], "x_std": [0.0]}, "dataset.x_mean, dataset.x_std: expected null, or a mean"),
        ({"x": ["a"], "x_mean": [0.0], "x_std": [1.0, 2.0]}, "dataset.x_mean, dataset.x_std: expected null, or a mean"),
        ({"y": "a", "y_mean": [0.0], "y_std": [1.0]}, "dataset.y_mean, dataset.y_std: expected null, or a mean"),
        ({"shots": 0}, "dataset.shots: expected at least 1, got 0"),
        ({"ways": 1, "y": "a"}, "dataset.ways: expected at least 2, got 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        family("nowhere", **settings)
    assert str(refusal.value).startswith(message)
