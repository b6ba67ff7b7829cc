"""A trained run on tasks of its user's: shapes and labels as they came, real drawings, refusals in one line."""

import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import torch

import meta_exp
from meta_exp.adaptation import adapt
from meta_exp.likelihoods.gaussian import NormalMixture
from meta_exp.production import predictor as production
from meta_exp.runs.restore import open_run
from meta_exp.tasks import MiniImagenet
from meta_exp.tasks.episode import Examples
from meta_exp.tasks.images.files import Treatment, list_images
from meta_exp.tasks.stream import draw_tasks

X = np.linspace(-4, 0, 10)[:, None]
Y = 2 * np.sin(X[:, 0] - 1)
GRID = np.linspace(-5, 5, 7)[:, None]


@pytest.fixture
def sinusoid(sinusoid_run):
    return meta_exp.load(sinusoid_run)


@pytest.fixture
def characters(character_run):
    return meta_exp.load(character_run, ["curvature=last_layer"])


@pytest.fixture
def letters(drawings):
    """Five drawings to learn from and fifteen to ask about, of three characters: their files and names."""
    folders = sorted(drawings.iterdir())[:3]
    files = [(file, folder.name) for folder in folders for file in list_images(folder)]
    shown = [pair for i, pair in enumerate(files) if i % 20 < 5]
    asked = [pair for i, pair in enumerate(files) if i % 20 >= 5]
    return [[list(column) for column in zip(*pairs, strict=True)] for pairs in (shown, asked)]


def test_predictions_are_those_of_the_learner(sinusoid_run, sinusoid):
    """The same task through training's own evaluation, whose MSE stands for the mean and NLL for the variance."""
    learner = open_run(sinusoid_run).learner
    episodes = draw_tasks(open_run(sinusoid_run).family, "test", 0, 1)
    (support, query) = [[value[0].numpy() for value in part] for part in episodes]
    meta = learner.meta()
    theta_i = adapt(learner.algorithm, Examples(episodes.support.x[0], episodes.support.y[0]), meta, 10)
    found = sinusoid.adapt(*support).predict(query[0], kind="map")
    expected = learner.algorithm.network(theta_i, episodes.query.x[0]).detach()
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, float(learner.served["map"]["log_sigma_noise"].exp() ** 2), rtol=1e-5)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_draws_are_the_same_on_any_device(sinusoid_run, sinusoid, device):
    there = meta_exp.load(sinusoid_run, device=device)
    for kind in ("map", "sample", "linearized"):
        ours, theirs = (learner.adapt(X, Y).predict(GRID, kind=kind) for learner in (there, sinusoid))
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours.interval(), theirs.interval(), rtol=1e-3, atol=1e-3)


def test_images_are_normalised_as_training_did(character_run):
    run = open_run(character_run)
    treatment = Treatment(None, (0.5,), (0.25,))
    family = SimpleNamespace(classes=True, input_shape=(1, 28, 28), outputs=3, treatment=treatment)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    inputs = production.Predictor(dataclasses.replace(run, family=family)).inputs(images)
    np.testing.assert_allclose(inputs[:, 0], (images / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    assert MiniImagenet("x").treatment.mean == (0.0,)
    assert MiniImagenet("x", normalize=True).treatment.std == pytest.approx((0.277, 0.268, 0.285), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, ">f8"])
def test_arrays_may_be_reversed_read_only_or_of_any_order(characters, dtype):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28)) / (1 if dtype is np.uint8 else 255)
    images = images.astype(dtype)
    expected = characters.inputs(images)
    fixed = images.copy()
    fixed.flags.writeable = False
    for given in (images[::-1, :, ::-1][::-1, :, ::-1], fixed, np.asfortranarray(images), images[:, ::-1][:, ::-1]):
        assert torch.equal(characters.inputs(given), expected)
    labels = np.array([0, 0, 0, 1, 1, 1])[::-1]
    labels.flags.writeable = False
    assert characters.adapt(images[::-1], labels).predict(fixed[::-1]).probabilities.shape == (6, 2)


def test_adapting_helps(sinusoid):
    errors = [np.mean((sinusoid.adapt(X, Y, steps=k).predict(X).mean - Y) ** 2) for k in (1, 10, 40)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("kind", ["map", "sample", "linearized"])
def test_shapes_follow_y_and_kinds_follow_x(sinusoid, kind):
    for y, shape in ((Y, (7,)), (Y[:, None], (7, 1))):
        found = sinusoid.adapt(X, y).predict(GRID, kind=kind)
        low, high = found.interval(0.9)
        for value in (found.mean, found.variance, found.std, low, high):
            assert isinstance(value, np.ndarray)
            assert value.shape == shape
        assert (low < found.mean).all()
        assert (found.mean < high).all()
        np.testing.assert_allclose(found.std**2, found.variance, rtol=1e-5)
    tensors = sinusoid.adapt(torch.tensor(X), torch.tensor(Y)).predict(torch.tensor(GRID), kind=kind)
    assert all(isinstance(value, torch.Tensor) for value in (tensors.mean, tensors.std, *tensors.interval()))
    np.testing.assert_allclose(tensors.mean, sinusoid.adapt(X, Y).predict(GRID, kind=kind).mean)


def test_interval_holds_what_it_says():
    """Of one Gaussian in closed form; of a lopsided mixture by its distribution function."""
    one = production.Regression(np.zeros(1), np.ones(1), NormalMixture(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))
    np.testing.assert_allclose(np.ravel(one.interval(0.95)), [-1.959964, 1.959964], atol=1e-5)
    means, variances = torch.tensor([0.0, 0.0, 8.0]).view(3, 1, 1), torch.tensor([1.0, 4.0, 0.01]).view(3, 1, 1)
    low, high = production.Regression(np.zeros(1), np.ones(1), NormalMixture(means, variances)).interval(0.8)
    draws = means.flatten().repeat(100_000) + variances.flatten().sqrt().repeat(100_000) * torch.randn(
        300_000, generator=torch.Generator().manual_seed(0)
    )
    np.testing.assert_allclose([low[0], high[0]], np.quantile(draws, [0.1, 0.9]), atol=0.03)


def test_conformal_intervals_are_mean_and_threshold_times_deviation(sinusoid):
    """Of each predictive its own; in the shape and kind of what was given."""
    assert set(sinusoid.learner.conformal) == {"map", "linearized"}
    for kind, record in sinusoid.learner.conformal.items():
        found = sinusoid.adapt(X, Y).predict(GRID, kind=kind)
        low, high = found.interval(0.8, method="conformal")
        np.testing.assert_allclose(low, found.mean - record.threshold(0.8) * found.std, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(high, found.mean + record.threshold(0.8) * found.std, rtol=1e-5, atol=1e-6)
        assert np.isinf(found.interval(0.99, method="conformal")).all(), "twenty tasks cannot speak of one in a hundred"
    tensors = sinusoid.adapt(torch.tensor(X), torch.tensor(Y[:, None])).predict(torch.tensor(GRID))
    low, high = tensors.interval(0.8, method="conformal")
    assert low.shape == high.shape == (7, 1)
    assert isinstance(low, torch.Tensor)


def test_conformal_sets(character_run, letters):
    """Booleans by point and class; the likeliest is there unless they may be empty; larger for higher levels."""
    (shown, names), (asked, _) = letters
    learner = meta_exp.load(character_run)
    found = learner.adapt(learner.read(shown), names).predict(learner.read(asked))
    sets = {level: found.prediction_set(level) for level in (0.5, 0.8, 0.95)}
    for inside in sets.values():
        assert isinstance(inside, np.ndarray)
        assert (inside.dtype, inside.shape) == (bool, (len(asked), 3))
        assert inside[np.arange(len(asked)), found.probabilities.argmax(1)].all()
    assert (sets[0.95] >= sets[0.8]).all()
    assert (sets[0.8] >= found.prediction_set(0.8, empty=True)).all()
    assert sets[0.95].sum() > found.prediction_set(0.5, empty=True).sum()


def test_what_has_no_thresholds_says_how_to_get_them(sinusoid_run, sinusoid, characters, letters):
    """A predictive that the run's calibration left out, and a posterior after the fact."""
    refused = r"a run that has thresholds for this predictive, got none; uv run evaluate\.py RUN calibrate=true makes"
    for found in (
        sinusoid.adapt(X, Y).predict(GRID, kind="sample"),
        meta_exp.load(sinusoid_run, "curvature=last_layer").adapt(X, Y).predict(GRID),
    ):
        with pytest.raises(ValueError, match=rf"^method=conformal: expected {refused}"):
            found.interval(0.9, method="conformal")
        assert found.interval(0.9)[0].shape == (7,)
    with pytest.raises(ValueError, match=r"^method: expected one of predictive, conformal, got exact"):
        found.interval(0.9, method="exact")
    (shown, names), (asked, _) = letters
    with pytest.raises(ValueError, match=rf"^prediction_set: expected {refused}"):
        characters.adapt(characters.read(shown), names).predict(characters.read(asked)).prediction_set(0.9)


def test_pieces_of_a_long_query_are_put_together(sinusoid, monkeypatch):
    task = sinusoid.adapt(X, Y)
    whole = {kind: task.predict(GRID, kind=kind) for kind in sinusoid.kinds}
    monkeypatch.setattr(production, "POINTS", 3)
    for kind, expected in whole.items():
        found = task.predict(GRID, kind=kind)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-4)


def test_draws_are_reproducible_and_the_generator_decides(sinusoid):
    task = sinusoid.adapt(X, Y)
    default = task.predict(GRID, kind="sample").mean
    assert np.array_equal(default, task.predict(GRID, kind="sample").mean)
    other = task.predict(GRID, kind="sample", generator=torch.Generator().manual_seed(5)).mean
    assert not np.array_equal(default, other)
    networks = task.sample(30, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.mean([network(GRID) for network in networks], 0), default, rtol=1e-4, atol=1e-5)
    assert np.std([network(GRID) for network in networks], 0).min() > 0


def test_an_alphabet_that_training_never_saw(characters, letters):
    (shown, names), (asked, truth) = letters
    task = characters.adapt(characters.read(shown), np.array(names))
    for kind in characters.kinds:
        found = task.predict(characters.read(asked), kind=kind)
        assert list(found.classes) == sorted(set(names))
        assert found.labels.dtype == np.array(names).dtype
        assert np.mean(found.labels == np.array(truth)) > 0.6  # chance is 1/3
        np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
        p = found.probabilities.astype(float)
        np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(1), rtol=1e-4, atol=1e-6)
    assert np.mean([network(characters.read(asked)).argmax(1) for network in task.sample(2)]) > 0


@pytest.mark.parametrize("points", [1000, 40])
def test_an_image_is_seen_beside_the_support_and_nothing_else(characters, letters, monkeypatch, points):
    """The network sees the task's fifteen images and, behind them, the one that is asked; whatever else is asked."""
    (shown, names), (asked, _) = letters
    images, queries = characters.read(shown), characters.read(asked)[::7]
    task = characters.adapt(images, names)
    assert characters.coupled
    algorithm, classes = characters.learner.algorithm, len(set(names))
    monkeypatch.setattr(production, "POINTS", points)
    for kind in characters.kinds:
        params, posterior, meta = task.served[kind]
        likelihood = algorithm.likelihood.at(meta.hyper)
        draws = algorithm.draws(
            torch.Generator().manual_seed(0), (characters.learner.samples,), meta.theta, len(images)
        )
        together = task.predict(queries, kind=kind).probabilities
        for i, query in enumerate(queries):
            x = characters.inputs(np.concatenate([images, query[None]]))
            with torch.no_grad():
                prediction = algorithm.predict(kind, params, x, meta, posterior, None if kind == "map" else draws)
            expected = likelihood.predictive(*prediction).given(classes).probabilities[-1]
            np.testing.assert_allclose(together[i], expected, rtol=1e-4, atol=1e-6)
            alone = task.predict(query[None], kind=kind).probabilities
            np.testing.assert_allclose(alone[0], together[i], rtol=1e-4, atol=1e-6)
    [network] = task.sample(1)
    np.testing.assert_allclose(network(queries)[2], network(queries[2:3])[0], rtol=1e-4, atol=1e-6)


def test_one_scan_at_a_time_and_most_of_one_class(characters, letters):
    """Batch statistics of such would be those of no task that training saw: a third of them would be right."""
    (shown, names), (asked, truth) = letters
    task = characters.adapt(characters.read(shown), names)
    queries, truth = characters.read(asked), np.array(truth)
    one_by_one = np.array([task.predict(query[None]).labels[0] for query in queries])
    assert np.mean(one_by_one == truth) > 0.6
    for name in sorted(set(names)):
        others = np.flatnonzero(truth != name)[:1]
        places = np.concatenate([np.flatnonzero(truth == name), others])
        assert np.array_equal(task.predict(queries[places]).labels, one_by_one[places])


def test_labels_and_images_in_other_forms(characters, letters):
    (shown, names), (asked, _) = letters
    images, queries = characters.read(shown), characters.read(asked)
    expected = characters.adapt(images, names).predict(queries)
    places = np.unique(names, return_inverse=True)[1]
    flat = (images[:, 0] * 255).round().astype(np.uint8)
    found = characters.adapt(torch.tensor(flat), torch.tensor(places * 10)).predict(torch.tensor(queries))
    assert torch.equal(torch.unique(found.labels), torch.tensor([0, 10, 20]))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)


def test_fewer_classes_than_ways_share_all_the_probability(characters, letters):
    (shown, names), (asked, _) = letters
    found = characters.adapt(characters.read(shown[:10]), names[:10]).predict(characters.read(asked[:30]))
    assert found.probabilities.shape == (30, 2)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("served", ["curvature=ggn", "curvature=last_layer", "map"])
def test_threads_that_share_a_predictor_get_the_answers_of_one(sinusoid_run, served):
    """Four threads, each with tasks of its own; and a task that all have asked is as it was before."""
    learner = meta_exp.load(sinusoid_run, [] if served == "map" else [served])
    kind = "map" if served == "map" else None
    shared, tasks = learner.adapt(X, Y), [(X + shift, Y * (1 + shift)) for shift in np.linspace(0, 4, 24)]

    def answer(task):
        own = learner.adapt(*task)
        answers = [own.predict(GRID, kind=kind), shared.predict(GRID, kind=kind)]
        networks = own.sample(2) + shared.sample(1)
        return [
            *(found.mean for found in answers),
            *(found.variance for found in answers),
            *(n(GRID) for n in networks),
        ]

    expected = [answer(task) for task in tasks]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(answer, tasks, timeout=300))
    finally:
        sys.setswitchinterval(interval)
    assert np.array_equal(found, expected)
    assert np.array_equal(answer(tasks[0]), expected[0]), "nothing of the threads is left behind"


def test_a_thread_waits_for_its_own_network_only(sinusoid):
    task = sinusoid.adapt(X, Y)
    with pytest.raises(ValueError, match="x, row 0, column 0: expected a finite number"):
        task.predict(X * np.nan)  # and gives its turn back
    copied = deepcopy(task)
    with ThreadPoolExecutor(2) as pool:
        with sinusoid.turn:
            waiting = pool.submit(task.predict, X)
            pool.submit(copied.predict, X).result(60)
            assert not waiting.done()
        waiting.result(60)


def refused(message, call, *arguments, **options):
    with pytest.raises(ValueError, match=message) as refusal:
        call(*arguments, **options)
    assert "\n" not in str(refusal.value)


def test_bad_curves_are_refused(sinusoid):
    task, hole = sinusoid.adapt(X, Y), X.copy()
    hole[3] = np.nan
    refused(r"x: expected shape \[n, 1\], got shape \[10\]; reshape your data", sinusoid.adapt, X[:, 0], Y)
    refused(r"x: expected shape \[n, 1\], got shape \[10, 2\]", sinusoid.adapt, np.hstack([X, X]), Y)
    refused("y: expected 10 targets, one for each x, got 9", sinusoid.adapt, X, Y[:9])
    refused(r"x, row 3, column 0: expected a finite number, got nan", sinusoid.adapt, hole, Y)
    refused(r"y, row 3, column 0: expected a finite number, got nan", sinusoid.adapt, X, hole)
    refused("x: expected numbers, got could not convert string", sinusoid.adapt, [["one"]], [1.0])
    refused("x: expected at least one row, got none", task.predict, X[:0])
    refused("steps: expected an integer, at least 1, got 0", sinusoid.adapt, X, Y, steps=0)
    refused("adapt: expected finite parameters after adaptation", sinusoid.adapt, X * 1e9, Y * 1e9)
    refused("kind: expected one of map, sample, linearized, got mean", task.predict, X, kind="mean")
    refused("samples: expected an integer, at least 1, got 0", task.predict, X, kind="sample", samples=0)
    refused("level: expected a probability between 0 and 1, got 95", task.predict(X).interval, 95)


def test_bad_classes_are_refused(characters, letters):
    (shown, names), _ = letters
    x = characters.read(shown)
    refused(r"y: expected 2 to 3 classes, .* 3 ways, got 1 \(a\)", characters.adapt, x, ["a"] * 15)
    refused(r"y: expected 2 to 3 classes, .* 3 ways, got 15", characters.adapt, x, range(15))
    refused("y, row 2: expected a class label, got NaN", characters.adapt, x[:3], [0.0, 1.0, np.nan])
    refused("y: expected labels of one type", characters.adapt, x[:2], np.array([1, "a"], dtype=object))
    refused(r"x: expected pixels in \[0, 1\], got 0 to 255; divide by 255", characters.adapt, x * 255, names)
    refused(r"x: expected shape \[n, 1, 28, 28\], .*; make it of image files", characters.adapt, x[:, :, :20], names)


def test_no_posterior_without_curvature(character_run, letters):
    (shown, names), (asked, _) = letters
    learner = meta_exp.load(character_run)
    task = learner.adapt(learner.read(shown), names)
    assert task.predict(learner.read(asked)).probabilities.shape == (45, 3)  # map
    for kind in ("linearized", "sample"):
        message = rf"kind={kind}: expected a run with a curvature.*curvature=last_layer"
        refused(message, task.predict, learner.read(asked), kind=kind)
    refused("sample: expected a run with a curvature", task.sample)


ELSEWHERE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("learn2learn", "wandb", "gym"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
import meta_exp
assert "torch" not in sys.modules  # the package is light until load is asked for
learner = meta_exp.load(sys.argv[1], [f"dataset.root={sys.argv[2]}"])
images = learner.read(sys.argv[3:])
print(learner.adapt(images, ["a", "b"]).predict(images).labels.tolist())
"""


def test_loads_where_neither_data_set_nor_dashboard_is(character_run, letters, tmp_path):
    (shown, _), _ = letters
    command = [sys.executable, "-W", "error::UserWarning", "-c", ELSEWHERE]
    arguments = [character_run, tmp_path / "nothing", shown[0], shown[5]]
    variables = {key: value for key, value in os.environ.items() if key != "META_EXP_DATA"}
    result = commands.finished([*command, *arguments], variables=variables)
    assert result.stdout == "['a', 'b']\n", result.stderr
