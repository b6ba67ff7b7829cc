"""Pictures: what a learner makes of a task, drawn by its family; and runs of families that draw nothing, or fail to."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import meta_exp.tasks
from meta_exp.adaptation import adapt
from meta_exp.comparison.compare import compare
from meta_exp.runs import pictures
from meta_exp.runs.build import build
from meta_exp.runs.train import train
from meta_exp.tasks import Episode, Examples, Sinusoid
from meta_exp.tasks.images.files import Treatment
from meta_exp.tasks.images.picture import ClassifiedImages
from meta_exp.tasks.picture import Pictured, View

SMOKE = ["trainer=smoke", "logger=none", "samples=3"]


def views(run):
    with torch.no_grad():
        return pictures.views(run.learner, run.family.picture.tasks(), classes=run.family.classes)


@pytest.mark.parametrize("overrides", [[], ["algorithm=maml"], ["predictives=[map]"]], ids=["llama", "maml", "map"])
def test_a_fan_is_saved(config, tmp_path, overrides):
    run = build(config(*SMOKE, *overrides))
    files = pictures.draw(run.learner, run.family, "title", tmp_path / "plots")
    assert sorted(file.name for file in files) == ["fan.png", "fan.svg"]
    assert all(file.stat().st_size > 5000 for file in files)


def test_an_episode_is_saved(config, tmp_path, omniglot_root):
    arguments = ["dataset=omniglot", "curvature=last_layer", "model.filters=8", "dataset.queries=2", "dataset.ways=6"]
    run = build(config(*SMOKE, *arguments, f"dataset.root={omniglot_root}"))
    [view] = views(run)
    assert list(view.probabilities) == ["map", "linearized"]
    for probabilities in view.probabilities.values():
        np.testing.assert_allclose(probabilities.sum(1), np.ones(12), rtol=1e-6)
    assert view.band is view.draws is None
    files = pictures.draw(run.learner, run.family, "title", tmp_path / "plots")
    assert sorted(file.name for file in files) == ["episode.png", "episode.svg"]


@pytest.mark.parametrize(("ways", "columns", "rows", "queries"), [(3, 5, 1, 6), (12, 6, 2, 12), (20, 10, 2, 20)])
def test_an_episode_of_many_ways_wraps(ways, columns, rows, queries):
    """No wider than ten images; of many probabilities the likeliest are drawn, and always that of the true class."""
    labels = np.arange(ways)
    images = np.zeros((ways, 1, 4, 4))
    truth = np.repeat(labels, 2)
    p = np.random.default_rng(0).dirichlet(np.ones(ways), len(truth))
    p[0, 0] = 0.0
    query = np.zeros((len(truth), 1, 4, 4))
    view = View(images, labels, query, truth, {}, None, None, {"map": p, "sample": p[:, ::-1]})
    figure = ClassifiedImages(SimpleNamespace(treatment=Treatment(None, (0.0,), (1.0,)))).draw([view])
    assert figure.get_size_inches()[0] <= 13
    top, bottom = figure.subfigs
    assert len(top.axes) == columns * rows
    assert sum(bool(ax.images) for ax in top.axes) == ways
    bars = [ax for ax in bottom.axes if ax.patches]
    assert len(bars) == queries
    assert all(len(ax.patches) == 2 * min(ways, 5 if ways > 10 else ways) for ax in bars)
    for ax, c in zip(bars, [*labels, *labels][:queries], strict=True):
        [true] = [tick for tick in ax.get_xticklabels() if tick.get_fontweight() == "bold"]
        assert true.get_text() == chr(ord("A") + c)


def test_a_band_is_the_linearized_predictive(config):
    """Its half width is 1.96 times the deviation of the linearised outputs with noise."""
    run = build(config(*SMOKE))
    for task, view in enumerate(views(run)):
        support, query = (Examples(*(part[task] for part in examples)) for examples in run.family.picture.tasks())
        meta = run.learner.meta()
        algorithm = run.learner.algorithm
        theta_i = adapt(algorithm, support, meta, 10)
        posterior = algorithm.posterior(theta_i, support, meta)
        variance = posterior.functional_variance(query.x)[:, 0, 0] + algorithm.likelihood.at(meta.hyper).variance
        half = 1.959964 * variance.sqrt().detach().numpy()
        np.testing.assert_allclose((view.band.high - view.band.low)[:, 0] / 2, half, rtol=1e-5)
        mean = algorithm.network(theta_i, query.x).detach().numpy()
        np.testing.assert_allclose(view.band.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(view.path[10], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(view.path[0], algorithm.network(meta.theta, query.x).detach(), rtol=1e-5, atol=1e-6)
        assert view.draws.shape == (3, 200, 1)


def test_a_curve_runs_from_left_to_right_whatever_the_order_of_its_points(config):
    """Its draws and band too: points in disorder give the same picture as those in order."""
    run = build(config(*SMOKE))
    [view, *_] = views(run)
    order = np.random.default_rng(0).permutation(len(view.query_x))
    path = {k: values[order] for k, values in view.path.items()}
    band = view.band._replace(**{name: getattr(view.band, name)[order] for name in view.band._fields})
    parts = {"query_x": view.query_x[order], "query_y": view.query_y[order], "draws": view.draws[:, order]}
    drawn = [run.family.picture.draw([seen]).axes[0] for seen in (view, view._replace(path=path, band=band, **parts))]
    for line, other in zip(*([*ax.lines, *ax.artists] for ax in drawn), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())
    paths = [ax.collections[0].get_paths()[0].vertices for ax in drawn]
    np.testing.assert_array_equal(*paths)


def test_without_a_posterior_the_band_is_the_noise(config):
    run = build(config(*SMOKE, "algorithm=maml", "likelihood.sigma_noise=0.5", "likelihood.learned=false"))
    for view in views(run):
        np.testing.assert_allclose(view.band.high - view.band.low, 2 * 1.959964 * 0.5, rtol=1e-5)
        assert view.draws is None


@dataclass(frozen=True)
class Planes:
    """Regression of several inputs: y = a . x."""

    shots: int = 10
    queries: int = 10
    meta_batch: int = 4

    input_shape = (3,)
    outputs = 1
    classes = False

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        x = rng.standard_normal((tasks, self.shots + self.queries, 3))
        y = x @ rng.standard_normal((tasks, 3, 1))
        x, y = (torch.from_numpy(values).float() for values in (x, y))
        support, query = (Examples(x[:, part], y[:, part]) for part in (np.s_[: self.shots], np.s_[self.shots :]))
        return Episode(support, query)

    def to(self, device: torch.device) -> None:
        pass


@dataclass(frozen=True)
class Blobs:
    """Classes of vectors: each class is a normal cloud around a centre of its own."""

    shots: int = 3
    queries: int = 5
    meta_batch: int = 4

    input_shape = (2,)
    outputs = 3
    classes = True

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        centres = 3 * rng.standard_normal((tasks, self.outputs, 1, 2))
        x = centres + rng.standard_normal((tasks, self.outputs, self.shots + self.queries, 2))
        x = torch.from_numpy(x).float()
        y = torch.arange(self.outputs)[:, None].expand(tasks, self.outputs, self.shots + self.queries)
        sets = (np.s_[:, :, : self.shots], np.s_[:, :, self.shots :])
        return Episode(*(Examples(x[part].flatten(1, 2), y[part].flatten(1, 2)) for part in sets))

    def to(self, device: torch.device) -> None:
        pass


class Failing:
    """A picture that breaks with a message of two lines."""

    name = "failing"

    def tasks(self) -> Episode:
        return Sinusoid().picture.tasks()

    def draw(self, views):
        raise ZeroDivisionError("a line\nand another")


@dataclass(frozen=True)
class Unlucky(Sinusoid):
    """A family whose picture breaks."""

    @property
    def picture(self) -> Failing:
        return Failing()


@pytest.fixture
def run_of(config, tmp_path, monkeypatch):
    """Train a smoke run of a family of one's own; until the test ends it stands among those of the package."""

    def make(family: type, *overrides: str) -> Path:
        monkeypatch.setattr(family, "__module__", "meta_exp.tasks.own")
        monkeypatch.setattr(meta_exp.tasks, family.__name__, family, raising=False)
        keys = ["model.widths=[8]", "validation_tasks=4", "test_tasks=10", *overrides]
        cfg = config(*SMOKE, *keys, run_dir=tmp_path / "run")
        cfg.dataset = {"_target_": f"meta_exp.tasks.{family.__name__}"}
        train(cfg)
        first = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert train(cfg) == first["validation/served_nll"], "finished, and skipped"
        return tmp_path / "run"

    return make


@pytest.mark.parametrize(
    ("family", "likelihood", "score"),
    [(Planes, "gaussian", "test/linearized/nll"), (Blobs, "categorical", "test/linearized/accuracy")],
)
def test_a_family_without_a_picture_has_none(run_of, caplog, family, likelihood, score):
    assert not isinstance(family(), Pictured)
    run = run_of(family, f"likelihood={likelihood}")
    assert score in json.loads((run / "metrics.json").read_text())
    assert not (run / "plots").exists()
    assert compare([run]) == 0
    assert (run / "report.html").stat().st_size > 5000
    assert not list((run / "pictures").glob("tasks_*"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert "picture" not in caplog.text


def test_a_picture_that_fails_is_one_line(run_of, caplog):
    run = run_of(Unlucky)
    assert compare([run]) == 0
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    reason = "picture: expected one of Unlucky, got ZeroDivisionError: a line and another; "
    assert told == [f"{reason}the run is finished without it", f"{reason}the comparison goes on without it"]
    assert not (run / "plots").exists()
    assert (run / "report.html").stat().st_size > 5000
