"""Trained runs that come with the package: they load and predict by name, and nothing is written beside them."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image, ImageDraw

import meta_exp
from meta_exp.comparison.compare import compare
from meta_exp.runs import shipped
from meta_exp.runs.shipped import SHIPPED, is_shipped, place_of, shipped_names

REPO = Path(__file__).parents[2]
NAMES = shipped_names()


@pytest.fixture
def ship(monkeypatch):
    """benchmarks/ship.py."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return runpy.run_path(str(REPO / "benchmarks" / "ship.py"))


def test_some_are_there_and_small(ship):
    names = {"sinusoid", "sinusoid-noisy", "omniglot-5way-1shot", "omniglot-20way-1shot"}
    assert {f"meta-exp/{name}" for name in names} <= set(NAMES)
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= ship["LARGEST"] == 3e6
    needed = {"config.yaml", "best.ckpt", "metrics.json", "calibration.json", "overrides.yaml", "README.md"}
    assert {file.name for file in files} == needed


@pytest.mark.parametrize("name", NAMES)
def test_each_has_the_card_of_its_files_and_no_path_of_a_machine(ship, name):
    folder = place_of(name)
    assert folder == SHIPPED / name.removeprefix("meta-exp/")
    assert (folder / "README.md").read_text() == ship["card"](folder)
    texts = "".join(file.read_text() for file in folder.iterdir() if file.suffix != ".ckpt")
    assert not re.search(r"(?<![\w<])/(home|root|tmp|work|usr|data)/", texts)


@pytest.mark.parametrize("name", NAMES)
def test_each_predicts(name):
    learner = meta_exp.load(name)
    rng = np.random.default_rng(0)
    if learner.classifies:
        x = rng.uniform(0, 1, (learner.outputs, *learner.input_shape))
        assert set(learner.adapt(x, np.arange(len(x))).predict(x).labels) <= set(range(learner.outputs))
        return
    x = np.linspace(-4, 4, 10)[:, None]
    new = learner.adapt(x, 2 * np.sin(x[:, 0])).predict([[0.5], [2.0]])
    np.testing.assert_allclose(new.mean, 2 * np.sin([0.5, 2.0]), atol=0.5)
    assert (new.std > 0).all()


def test_the_examples_of_readme(tmp_path, monkeypatch, capsys):
    """Ten lines each, without a training: one of points, one of image files."""
    monkeypatch.chdir(tmp_path)
    for number, file in enumerate(("a.png", "b.png", "c.png", "scan1.png", "scan2.png")):
        drawing = Image.new("L", (105, 105), "white")
        ImageDraw.Draw(drawing).line((20, 20 + 15 * number, 80, 80 - 10 * number), fill="black", width=3)
        drawing.save(file)
    blocks = re.findall(r"^```python\n(.*?)^```", (REPO / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    examples = [block for block in blocks if 'meta_exp.load("meta-exp/' in block]
    assert len(examples) == 2
    scope: dict[str, object] = {}
    for example in examples:
        assert len(example.splitlines()) <= 10
        exec(compile(example, "README.md", "exec"), scope)
        assert capsys.readouterr().out.strip()
    assert set(scope["new"].labels) <= {"alpha", "beta", "gamma"}


def test_an_unknown_name_is_refused_with_those_that_are_there():
    message = f"RUN: expected one of {', '.join(NAMES)}, or a folder, got meta-exp/sinusiod"
    with pytest.raises(ValueError, match=re.escape(message)):
        meta_exp.load("meta-exp/sinusiod")


def test_a_folder_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta-exp" / "sinusoid").mkdir(parents=True)
    assert place_of("meta-exp/sinusoid") == Path("meta-exp/sinusoid")
    assert place_of("meta-exp/sinusoid-noisy") == SHIPPED / "sinusoid-noisy"
    for other in ("meta-exp", "meta-exp/a/b", "outputs/meta-exp/sinusoid", "/meta-exp/sinusoid"):
        assert place_of(other) == Path(other)
    assert is_shipped(SHIPPED / "sinusoid")
    assert not is_shipped(tmp_path)


def everything(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_evaluated_by_name_it_is_left_alone(tmp_path):
    before = everything(SHIPPED)
    done = commands.run("evaluate.py", tmp_path, "meta-exp/sinusoid-noisy", "test_tasks=20")
    assert done.returncode == 0, done.stderr
    [results] = tmp_path.glob("outputs/comparison/*/results.csv")
    assert "test_tasks=20" in results.read_text()
    refused = commands.run("evaluate.py", tmp_path, "meta-exp/sinusoid", "calibrate=true", "test_tasks=5")
    assert refused.returncode == 1
    assert "calibrate=true: expected a run of your own, got one of the package" in refused.stdout + refused.stderr
    unknown = commands.run("evaluate.py", tmp_path, "meta-exp/cosine")
    assert unknown.stderr.splitlines()[-1].startswith("error: RUN: expected one of meta-exp/")
    (tmp_path / "seen.csv").write_text("x,y\n-2,0\n0,1\n2,0\n")
    (tmp_path / "ask.csv").write_text("x\n1\n")
    asked = commands.run("evaluate.py", tmp_path, "meta-exp/sinusoid-noisy", "support=seen.csv", "query=ask.csv")
    assert asked.returncode == 0, asked.stderr
    assert (tmp_path / "predictions.csv").exists()
    assert everything(SHIPPED) == before


def test_shipping_a_run(ship, sinusoid_run, tmp_path, monkeypatch):
    """It predicts and is scored as the run does, and an earlier one of its name is replaced."""
    place = tmp_path / "trained"
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["ship.py", str(sinusoid_run), "my-run", "--folder", str(place)])
        runpy.run_path(str(REPO / "benchmarks" / "ship.py"), run_name="__main__")
    assert [file.name for file in place.iterdir()] == ["my-run"]
    monkeypatch.setattr(shipped, "SHIPPED", place)
    x = np.linspace(-4, 4, 6)[:, None]
    tasks = [meta_exp.load(one).adapt(x, np.sin(x[:, 0])) for one in (sinusoid_run, "meta-exp/my-run")]
    first, second = (task.predict(x) for task in tasks)
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.std, second.std)
    outs = [tmp_path / str(i) for i in range(2)]
    for folder, out in zip((sinusoid_run, place / "my-run"), outs, strict=True):
        assert compare([folder], output=str(out)) == 0
    rows = [(out / "results.csv").read_text().splitlines()[1].split(",")[1:] for out in outs]
    assert rows[0] == rows[1]
    card = (place / "my-run" / "README.md").read_text()
    (place / "my-run" / "README.md").write_text("")
    monkeypatch.setattr(sys, "argv", ["ship.py", "--folder", str(place)])
    runpy.run_path(str(REPO / "benchmarks" / "ship.py"), run_name="__main__")
    assert (place / "my-run" / "README.md").read_text() == card


@pytest.mark.parametrize("name", ["", "Name", "a b", "../x", "a_b", "-a"])
def test_names_that_are_none_are_refused(ship, sinusoid_run, tmp_path, name):
    with pytest.raises(ValueError, match=r"NAME: expected small letters, digits, hyphens, got"):
        ship["ship"](sinusoid_run, name, tmp_path / "trained")


def test_too_much_is_refused_and_leaves_what_was_there(ship, sinusoid_run, tmp_path):
    place = tmp_path / "trained"
    ship["ship"](sinusoid_run, "one", place)
    (place / "one" / "large").write_bytes(bytes(ship["LARGEST"]))
    with pytest.raises(ValueError, match="expected at most 3000000 bytes in all"):
        ship["ship"](sinusoid_run, "two", place)
    assert [file.name for file in place.iterdir()] == ["one"]
    shutil.rmtree(place / "one")
