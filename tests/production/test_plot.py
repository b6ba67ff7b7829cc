"""What task.plot() shows: a curve with its band and examples, probabilities, or images by class."""

from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import meta_exp
from meta_exp.models import MLP, Conv4
from meta_exp.production import plot
from meta_exp.tasks import CsvTasks, ImageFolder

X = np.linspace(-4, 0, 10)[:, None]
Y = 2 * np.sin(X[:, 0] - 1)
QUICK = ["validation_tasks=5", "conformal_tasks=20"]


@pytest.fixture(autouse=True)
def agg(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_curve_with_its_band(sinusoid_run):
    task = meta_exp.load(sinusoid_run, ["curvature=last_layer"]).adapt(X, Y)
    ax = task.plot()
    assert labels(ax) == ["95% band", "mean", "examples"]
    mean, examples = ax.lines
    grid = mean.get_xdata()[:, None]
    assert (grid.min(), grid.max()) == (-5.0, 1.0)
    found = task.predict(grid)
    assert np.array_equal(mean.get_ydata(), found.mean)
    assert np.array_equal(np.column_stack(examples.get_data()), np.column_stack([X[:, 0], Y]))
    [band] = ax.collections
    low, high = found.interval(0.95)
    drawn = band.get_paths()[0].vertices
    assert np.isclose(drawn[:, 1].min(), low.min())
    assert np.isclose(drawn[:, 1].max(), high.max())
    own = plt.figure().subplots()
    assert task.plot([[2.0], [1.0]], kind="map", level=0.5, ax=own) is own
    assert own.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert labels(own)[0] == "50% band"


def test_tables_have_their_names_and_units(own_tables):
    learner = meta_exp.fit(partial(MLP, widths=[4]), CsvTasks(str(own_tables), shots=5, queries=5), QUICK, steps=2)
    ax = learner.adapt([[80.0], [120.0], [100.0]], [6000.0, 8000.0, 7000.0]).plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("speed", "fuel")
    assert (ax.lines[0].get_xdata()[0], ax.lines[0].get_xdata()[-1]) == (70.0, 130.0)


def test_images_stand_by_class(own_images):
    family = ImageFolder(str(own_images), image_size=12, channels=1, invert=True, ways=2, queries=3)
    learner = meta_exp.fit(partial(Conv4, filters=2), family, QUICK, steps=2)
    files = [sorted((own_images / name).glob("*.png"))[:3] for name in ("bar1", "bar2")]
    shown = learner.read([file for own in files for file in own[:2]])
    asked = learner.read([own[2] for own in files])
    task = learner.adapt(shown, ["one", "one", "two", "two"])
    ax = task.plot(asked)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one", "two"]
    sheet = ax.images[0].get_array()
    assert np.allclose(sheet[:12, :12], 1 - shown[0].reshape(12, 12))
    assert np.allclose(sheet[14:, 14:26], 1 - shown[3].reshape(12, 12))
    found = task.predict(asked)
    sure = {f"{p:.0%}" for p in found.probabilities.max(1)}
    assert {text.get_text() for text in ax.texts} - {""} == sure
    row = ["one", "two"].index(found.labels[0])
    left = 2 * 14 + 2 * plot.GAP
    assert np.allclose(sheet[row * 14 : row * 14 + 12, left : left + 12], 1 - asked[0].reshape(12, 12))
    alone = task.plot().images[0].get_array()
    assert alone.shape == (26, 2 * 14 + 2 * plot.GAP)
    assert repr(task) == "AdaptedTask(4 examples of 2 classes, map)"
    assert repr(found).startswith(f"Classification(2 points: {found.labels[0]} ")


def test_several_inputs_are_refused(sinusoid_run, monkeypatch):
    task = meta_exp.load(sinusoid_run).adapt(X, Y)
    monkeypatch.setattr(task.predictor, "input_shape", (2,))
    with pytest.raises(
        ValueError, match=r"^plot: expected inputs of one dimension, or images, got inputs of shape \[2\]"
    ):
        task.plot()


def test_reprs_are_a_line(sinusoid_run):
    task = meta_exp.load(sinusoid_run).adapt(X, Y)
    found = task.predict([[0.0], [1.0], [2.0], [3.0]])
    assert repr(task) == "AdaptedTask(10 examples, map, sample, linearized)"
    assert repr(found).startswith("Regression(4 points: ")
    assert repr(found).endswith(", ...)")
    assert repr(found).count("±") == 3
    assert all("\n" not in repr(one) for one in (task, found, *task.sample(1)))
