"""Runs on data of one's own at work: images treated as training treated them, tables in the units of their files."""

import csv
import json
import shutil

import commands
import numpy as np
import pytest
import torch
from conftest import compose_run
from PIL import Image, ImageOps

import meta_exp
from meta_exp.adaptation import adapt
from meta_exp.runs.restore import open_run
from meta_exp.runs.saved import read_config
from meta_exp.runs.train import train
from meta_exp.tasks.episode import Examples

QUICK = ["trainer=smoke", "validation_tasks=4"]
FEW = ["test_tasks=4", "dataset.meta_batch=2"]
GREY = [
    "dataset=image_folder",
    "dataset.image_size=20",
    "dataset.channels=1",
    "dataset.ways=2",
    "model.filters=8",
    "model.norm=group",
]


@pytest.fixture
def images_run(trained, own_images):
    return trained("own_images", *QUICK, *FEW, *GREY, f"dataset.root={own_images}", "algorithm=maml")


@pytest.fixture
def tables_run(trained, own_tables):
    steps = ["trainer.max_steps=300", "trainer.val_check_interval=100"]
    return trained("own_tables", *QUICK, *steps, "dataset=csv", f"dataset.root={own_tables}", "test_tasks=4")


@pytest.fixture(scope="session")
def kinds(shared):
    """One table of ten kinds, 16 rows each, whose size and weight tell the kind."""
    file, rng = shared / "kinds.csv", np.random.default_rng(0)
    rows = [(kind, *rng.normal([100 * kind, 3 - kind], [5, 0.1])) for kind in range(10) for _ in range(16)]
    file.write_text("kind,size,weight\n" + "".join(f"kind {k},{a:.3f},{b:.4f}\n" for k, a, b in rows))
    return file


@pytest.fixture
def labels_run(trained, kinds):
    names = ["dataset=csv", f"dataset.root={kinds}", "dataset.y=kind", "likelihood=categorical", "algorithm=maml"]
    few = ["dataset.shots=2", "dataset.queries=4", "trainer.max_steps=300", "trainer.val_check_interval=100"]
    return trained("kinds", *QUICK, *names, *few, "dataset.meta_batch=8", "test_tasks=50")


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_keeps_what_its_data_decided(images_run, tables_run):
    settled = read_config(images_run / "config.yaml").dataset
    assert settled.invert is True, "bars are dark on light"
    assert 0 < settled.mean[0] < 0.5
    assert len(settled.std) == 1
    settled = read_config(tables_run / "config.yaml").dataset
    assert (list(settled.x), list(settled.y)) == (["speed"], ["fuel"])
    assert 80 < settled.x_mean[0] < 120
    assert 5000 < settled.y_mean[0] < 9000
    assert (tables_run / "plots" / "rows.png").exists()
    assert (images_run / "plots" / "episode.png").exists()


def test_files_are_read_as_training_read_them(images_run, own_images, tmp_path):
    learner, run = meta_exp.load(images_run), open_run(images_run, [f"dataset.root={own_images}"])
    episode = run.family.draw("test", np.random.default_rng(0), 10)
    names = run.family.class_names["test"]
    files = [file for name in names for file in sorted((own_images / name).iterdir())]
    known = {pixels.numpy().tobytes() for pixels in learner.inputs(learner.read(files))}
    assert {pixels.numpy().tobytes() for pixels in episode.query.x.flatten(0, 1)} <= known
    ImageOps.invert(Image.open(files[0])).save(tmp_path / "negative.png")
    page, negative = learner.read([files[0], tmp_path / "negative.png"])
    np.testing.assert_allclose(page, 1 - negative, atol=1e-6)


def test_images_are_predicted_as_in_training(images_run, own_images):
    """The same task by way of files and by way of the data set."""
    learner = meta_exp.load(images_run)
    run = open_run(images_run, [f"dataset.root={own_images}"])
    support, query = ([value[0] for value in part] for part in run.family.draw("test", np.random.default_rng(0), 1))
    meta = run.learner.meta()
    theta_i = adapt(run.learner.algorithm, Examples(*support), meta, run.learner.evaluation_steps)
    logits = (
        run.learner.algorithm.network(theta_i, query[0]).detach() * run.learner.served["map"]["log_temperature"].exp()
    )
    _, mean, std = run.family.treatment
    x, asked = ((part[0] * torch.tensor(std) + torch.tensor(mean)).clamp(0, 1) for part in (support, query))
    found = learner.adapt(x, support[1]).predict(asked)
    np.testing.assert_allclose(found.probabilities, logits.softmax(-1), rtol=1e-3, atol=1e-4)


def test_images_of_ones_own_on_the_command_line(images_run, own_images, tmp_path):
    for name in ("bar0", "bar7"):
        (tmp_path / "seen" / name).mkdir(parents=True)
        shutil.copy(own_images / name / "0.png", tmp_path / "seen" / name)
    (tmp_path / "ask").mkdir()
    shutil.copy(own_images / "bar7" / "1.png", tmp_path / "ask")
    result = commands.run("evaluate.py", tmp_path, images_run, "support=seen", "query=ask")
    assert result.returncode == 0, result.stderr
    [row] = rows(tmp_path / "predictions.csv")
    assert (row["file"], row["predicted"] in ("bar0", "bar7")) == ("1.png", True)


def test_numbers_come_back_in_the_units_of_the_files(tables_run):
    learner, run = meta_exp.load(tables_run), open_run(tables_run)
    x = np.linspace(60, 140, 10)[:, None]
    y = 7000 + 50 * (x[:, 0] - 100)
    asked = np.array([[80.0], [120.0]])
    task = learner.adapt(x, y)
    found = task.predict(asked)
    np.testing.assert_allclose(found.mean, [6000, 8000], rtol=0.05)
    columns, algorithm = run.family.columns, run.learner.algorithm
    z, w = columns.x_scale.standardize(torch.from_numpy(x)), columns.y_scale.standardize(torch.from_numpy(y[:, None]))
    at = run.learner.adapt_task(Examples(z.float(), w.float()), None, run.learner.evaluation_steps)["linearized"]
    inputs = columns.x_scale.standardize(torch.from_numpy(asked)).float()
    prediction = algorithm.predict("linearized", at.params, inputs, at.meta, at.posterior)
    raw = algorithm.likelihood.at(at.meta.hyper).predictive(*prediction)
    [mean], [std] = columns.y_scale
    np.testing.assert_allclose(found.mean, raw.mean[:, 0].detach() * std + mean, rtol=1e-5)
    np.testing.assert_allclose(found.std, raw.variance[:, 0].detach() ** 0.5 * std, rtol=1e-4)
    for level in (0.5, 0.95):
        for ours, theirs in zip(found.interval(level), raw.interval(level), strict=True):
            np.testing.assert_allclose(ours, theirs[:, 0].detach() * std + mean, rtol=1e-5)
    drawn = np.stack([network(asked) for network in task.sample(20)])
    assert (np.abs(drawn - found.mean) < 6 * found.std).all()
    column = learner.adapt(x, y[:, None]).predict(asked)
    assert column.mean.shape == column.interval()[0].shape == (2, 1)


def test_columns_of_a_new_task_are_matched_by_their_names(tables_run, tmp_path):
    """In any order, and among others; the query needs no y."""
    x = np.linspace(60, 140, 10)
    y = 7000 + 50 * (x - 100)
    lines = [f"{b};{a};red" for a, b in zip(x, y, strict=True)]
    (tmp_path / "seen.csv").write_text("fuel;speed;colour\n" + "\n".join(lines))
    (tmp_path / "ask.csv").write_text("driver,speed\nAnn,80.0\nBob,120\n")
    result = commands.run("evaluate.py", tmp_path, tables_run, "support=seen.csv", "query=ask.csv")
    assert result.returncode == 0, result.stderr
    found = rows(tmp_path / "predictions.csv")
    assert list(found[0]) == ["speed", "mean", "std", "lower_95", "upper_95"]
    assert [row["speed"] for row in found] == ["80.0", "120"]
    expected = meta_exp.load(tables_run).adapt(x[:, None], y).predict([[80.0], [120.0]])
    np.testing.assert_allclose([float(row["mean"]) for row in found], expected.mean, rtol=1e-5)
    np.testing.assert_allclose([float(row["upper_95"]) for row in found], expected.interval()[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("seen", "ask", "message"),
    [
        (
            "speed,fuel\n80,7000\n",
            "velocity\n80\n",
            "ask.csv: expected a column speed, got no speed; its columns are vel",
        ),
        (
            "speed,feul\n80,7000\n",
            "speed\n80\n",
            "seen.csv: expected a column fuel, got no fuel; its columns are speed, feul",
        ),
        ("80,7000\n90,8000\n", "speed\n80\n", "seen.csv, row 1: expected the names of its columns, got '80'"),
        ("speed,fuel\n80,much\n", "speed\n80\n", "seen.csv, row 2, column fuel: expected a finite number, got 'much'"),
        ("speed,fuel\n80,1e60\n", "speed\n80\n", "y, row 0, column 0: expected a finite number, got inf"),
    ],
)
def test_a_new_task_that_does_not_fit_is_refused_in_one_line(tables_run, tmp_path, seen, ask, message):
    (tmp_path / "seen.csv").write_text(seen)
    (tmp_path / "ask.csv").write_text(ask)
    result = commands.run("evaluate.py", tmp_path, tables_run, "support=seen.csv", "query=ask.csv")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "predictions.csv").exists()


def test_labels_of_rows(labels_run, kinds, tmp_path):
    assert json.loads((labels_run / "metrics.json").read_text())["test/map/accuracy"] > 0.75
    table = kinds.read_text().splitlines()
    seen, ask = [row for row in table if row.startswith(("kind 2", "kind 8"))][::4], [table[33], table[130]]
    (tmp_path / "seen.csv").write_text("\n".join([table[0], *seen]))
    (tmp_path / "ask.csv").write_text("\n".join(["weight,size", *(",".join(row.split(",")[:0:-1]) for row in ask)]))
    result = commands.run("evaluate.py", tmp_path, labels_run, "support=seen.csv", "query=ask.csv")
    assert result.returncode == 0, result.stderr
    found = rows(tmp_path / "predictions.csv")
    assert list(found[0]) == ["size", "weight", "predicted", "probability", "entropy", "p_kind 2", "p_kind 8"]
    assert [row["predicted"] for row in found] == ["kind 2", "kind 8"]
    assert [row["size"] for row in found] == [row.split(",")[1] for row in ask]
    task = meta_exp.load(labels_run).adapt([[200, 1], [800, -5]], ["a", "b"])
    assert task.predict([[201, 1.01], [799, -5.02]]).labels.tolist() == ["a", "b"]


def test_runs_are_compared_wherever_their_data_is(images_run, own_images, tmp_path):
    shutil.copytree(own_images, tmp_path / "moved")
    result = commands.run(
        "evaluate.py", tmp_path, images_run, f"dataset.root={tmp_path / 'moved'}", "dataset.queries=3"
    )
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
    missing = commands.run("evaluate.py", tmp_path, images_run)
    assert missing.returncode == 1
    last = missing.stderr.splitlines()[-1]
    assert "dataset.root: expected a folder of images, got nothing at " in last
    assert "name it by dataset.root=FOLDER" in last


def test_a_run_does_not_go_on_with_other_data(own_images, tmp_path):
    shutil.copytree(own_images, tmp_path / "images")
    settings = [*QUICK, *FEW, *GREY, f"dataset.root={tmp_path / 'images'}", "algorithm=maml", "logger=none"]
    train(compose_run(tmp_path / "run", *settings))
    train(compose_run(tmp_path / "run", *settings))  # finished, and skipped
    for file in (tmp_path / "images").glob("*/*.png"):
        Image.open(file).point(lambda v: v // 2).save(file)
    with pytest.raises(ValueError, match=r"dataset.mean"):
        train(compose_run(tmp_path / "run", *settings))
