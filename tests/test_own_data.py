"""scikit-learn's digits as data of one's own, from files to answers: trained, evaluated, compared and served.

Ten digits, 6 / 2 / 2 of them for training, validation and test: the 3 and the 5 that are told apart are new.
"""

import csv
import json

import commands
import numpy as np
import pytest
from PIL import Image

import meta_exp

SPLIT = ["dataset.ways=2", "dataset.shots=1", "dataset.shares=[0.6,0.2,0.2]", "dataset.split_seed=4"]
QUICK = ["algorithm=maml", "logger=none", "compile=false", "dataset.queries=5", "test_tasks=100", "validation_tasks=50"]
STEPS = ["trainer.val_check_interval=100", "trainer.accelerator=cpu"]
IMAGES = ["dataset=image_folder", "dataset.channels=1", "dataset.image_size=28", "model.filters=16"]
OUTER = ["dataset.meta_batch=8", "algorithm.inner_steps=1", "algorithm.inner_lr=0.4", "optimizer.lr=0.005"]
TABLES = ["dataset=csv", "dataset.y=digit", "likelihood=categorical", "algorithm.inner_lr=0.1"]
UNSEEN = ("3", "5")  # the digits of the test split


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The 1797 digits, 8 x 8, as a folder of images and as a table with a column of labels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, which holds the digits, is not installed")
    data, root = datasets.load_digits(), tmp_path_factory.mktemp("digits")
    for number, (pixels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        folder = root / "images" / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels * 255 / 16 + 0.5)).save(folder / f"{number:04}.png")
    with (root / "digits.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*data.feature_names, "digit"])
        writer.writerows([*pixels, digit] for pixels, digit in zip(data.data, data.target, strict=True))
    return root


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.reader(stream))


def trained_and_compared(folder, *settings):
    """Train two seeds on the command line, compare them in one table, and return the first one's test accuracy."""
    result = commands.run(
        "train.py", folder, "-m", *settings, *SPLIT, *QUICK, *STEPS, "seed=0,1", "hydra.sweep.dir=runs"
    )
    assert result.returncode == 0, result.stderr
    compared = commands.run("evaluate.py", folder, "runs", f"dataset.root={settings[0].partition('=')[2]}")
    assert compared.returncode == 0, compared.stderr
    assert "accuracy" in compared.stdout
    runs = sorted(file.parent for file in folder.glob("runs/*/metrics.json"))
    assert len(runs) == len(rows(folder / "runs" / "results.csv")) - 1 == 2
    return runs[0], [json.loads((run / "metrics.json").read_text())["test/map/accuracy"] for run in runs]


def test_digits_as_a_folder_of_images(digits, tmp_path):
    run, accuracies = trained_and_compared(
        tmp_path, f"dataset.root={digits / 'images'}", *IMAGES, *OUTER, "trainer.max_steps=200"
    )
    assert np.mean(accuracies) > 0.75, "chance is 0.5"
    (tmp_path / "ask").mkdir()
    for digit in UNSEEN:
        (tmp_path / "seen" / digit).mkdir(parents=True)
        first, *others = sorted((digits / "images" / digit).iterdir())[:11]
        (tmp_path / "seen" / digit / first.name).write_bytes(first.read_bytes())
        for file in others:
            (tmp_path / "ask" / f"{digit}-{file.name}").write_bytes(file.read_bytes())
    served = commands.run("evaluate.py", tmp_path, run, "support=seen", "query=ask")
    assert served.returncode == 0, served.stderr
    _, *found = rows(tmp_path / "predictions.csv")
    right = np.mean([row[0][0] == row[1] for row in found])
    assert right > 0.6
    learner = meta_exp.load(run)
    shown = [next((tmp_path / "seen" / digit).iterdir()) for digit in UNSEEN]
    asked = sorted((tmp_path / "ask").iterdir())
    labels = learner.adapt(learner.read(shown), list(UNSEEN)).predict(learner.read(asked)).labels
    assert labels.tolist() == [row[1] for row in found]


def test_digits_as_a_table(digits, tmp_path):
    run, accuracies = trained_and_compared(
        tmp_path, f"dataset.root={digits / 'digits.csv'}", *TABLES, "trainer.max_steps=400"
    )
    assert np.mean(accuracies) > 0.6, "chance is 0.5"
    header, *table = rows(digits / "digits.csv")
    of = {digit: [row for row in table if row[-1] == digit] for digit in UNSEEN}
    with (tmp_path / "seen.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *(row for own in of.values() for row in own[:5])])
    with (tmp_path / "ask.csv").open("w", newline="") as stream:  # the pixels from last to first, without the label
        csv.writer(stream).writerows(
            row[-2::-1] for row in [header, *(row for own in of.values() for row in own[5:25])]
        )
    served = commands.run("evaluate.py", tmp_path, run, "support=seen.csv", "query=ask.csv")
    assert served.returncode == 0, served.stderr
    names, *found = rows(tmp_path / "predictions.csv")
    assert names[64:68] == ["predicted", "probability", "entropy", "p_3"]
    assert np.mean([row[64] == UNSEEN[place // 20] for place, row in enumerate(found)]) > 0.6
    x = np.array([row[:64] for own in of.values() for row in own[:5]], float)
    task = meta_exp.load(run).adapt(x, np.repeat(UNSEEN, 5))
    asked = np.array([row[:64] for own in of.values() for row in own[5:25]], float)
    assert task.predict(asked).labels.tolist() == [row[64] for row in found]


def _spoil_image(root):
    (root / "images" / "b" / "2.png").write_bytes(b"no image")
    return ["dataset=image_folder", f"dataset.root={root / 'images'}", "algorithm=maml"]


def _spoil_cell(root):
    (root / "tables" / "b.csv").write_text("x,y\n1,2\n3,much\n")
    return ["dataset=csv", f"dataset.root={root / 'tables'}", "dataset.shares=[0.4,0.3,0.3]"]


SPOILT = {
    "no image": (_spoil_image, "b/2.png: expected an image, got cannot identify image file"),
    "no number": (_spoil_cell, "b.csv, row 3, column y: expected a finite number, got 'much'"),
    "too few classes": (
        lambda root: ["dataset=image_folder", f"dataset.root={root / 'images'}", "algorithm=maml"],
        "images: expected at least 5 classes (dataset.ways) of 16 images (dataset.shots + dataset.queries), got 0",
    ),
    "too few tasks": (lambda root: ["dataset=csv", f"dataset.root={root / 'tables'}"], "expected tasks for each split"),
    "no root": (lambda root: ["dataset=csv"], "dataset.root: expected a valid string, got None"),
    "too few labels": (
        lambda root: [
            "dataset=csv",
            f"dataset.root={root / 'tables' / 'a.csv'}",
            "dataset.y=x",
            "likelihood=categorical",
        ],
        "a.csv: expected classes for each split, got 1 in train, 0 in validation, 0 in test",
    ),
    "numbers for labels": (
        lambda root: ["dataset=csv", f"dataset.root={root / 'tables'}", "dataset.shares=[0.4,0.3,0.3]", "dataset.y=x"],
        "expected a task with 2 classes (dataset.ways) of 20 rows (dataset.shots + dataset.queries) each",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_cannot_be_trained_on_is_one_line_and_leaves_nothing(tmp_path, case):
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (i, 9, 9)).save(tmp_path / "images" / name / f"{i}.png")
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / f"{name}.csv").write_text("x,y\n1,2\n")
    spoil, message = SPOILT[case]
    environment = {"META_EXP_CACHE": str(tmp_path / "cache")}
    result = commands.run("train.py", tmp_path, *spoil(tmp_path), "logger=none", "hydra.run.dir=run", **environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "run").exists()
    stores = [file.name for file in tmp_path.glob("cache/*") if file.suffix == ".tmp"]
    assert not stores
    assert case != "no image" or not list(tmp_path.glob("cache/*.safetensors"))
