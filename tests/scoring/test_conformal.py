"""Conformal coverage of predictors that are wrong about their own uncertainty: numbers, classes, tasks that differ."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from oracles import assert_equal

from meta_exp.likelihoods.categorical import CategoricalPredictive
from meta_exp.likelihoods.gaussian import NormalMixture
from meta_exp.scoring.conformal import Conformal, class_scores, deviation, fit, nonconformity, residual_scores

LEVELS = (0.5, 0.8, 0.9, 0.95)
POINTS = 10


def numbers(tasks, generator, points=POINTS):
    """Mean, claimed deviation and target of a predictor that knows not how its error varies from task to task.

    Claims are a third of the truth in the mean, errors are biased, skewed, and points of a task share half of them.
    """
    scale = torch.exp(0.5 * torch.randn(tasks, 1, 1, generator=generator, dtype=torch.double))
    claimed = 0.5 + torch.rand(tasks, points, 1, generator=generator, dtype=torch.double)
    shared = torch.randn(tasks, 1, 1, generator=generator, dtype=torch.double)
    own = torch.randn(tasks, points, 1, generator=generator, dtype=torch.double).exp()
    mean = torch.randn(tasks, points, 1, generator=generator, dtype=torch.double)
    return mean, claimed, mean + claimed * (0.3 + scale * (shared + own))


def classes(tasks, generator, count=5, sharpness=3.0):
    """Probabilities that claim ``sharpness`` times the logits of the truth, in float32, and the classes."""
    spread = 1 + torch.rand(tasks, 1, 1, generator=generator)
    logits = 2 * spread * torch.randn(tasks, POINTS, count, generator=generator)
    y = torch.distributions.Categorical(logits=logits).probs.flatten(0, 1).multinomial(1, generator=generator)
    return (sharpness * logits).softmax(-1), y.view(tasks, POINTS)


def true_scores(probabilities, y):
    return class_scores(probabilities).gather(-1, y[..., None])[..., 0]


def number_scores(tasks, generator):
    return residual_scores(*numbers(tasks, generator))[..., 0]


def covered(interval, y):
    low, high = interval
    return ((low <= y) & (y <= high)).double()


def test_the_threshold_is_an_order_statistic():
    """Of 9 tasks with one point each the tenth part of the mass is infinite, and every score is a level's threshold.

    A level between two thousandths is the upper one.
    """
    record = fit(torch.tensor([[9.0], [1], [5], [3], [7], [2], [8], [4], [6]]))
    assert [record.threshold(level / 10) for level in range(1, 10)] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert record.threshold(0.41) == 5
    assert record.threshold(0.901) == math.inf
    assert fit(torch.arange(1.0, 100)[:, None]).threshold(0.07) == 7  # 0.07 * 100 > 7 in float64
    two = fit(torch.tensor([[1.0, 2], [3, 4]]))  # K + 1 = 3 tasks of 2
    assert [two.threshold(level) for level in (0.1, 0.166, 0.167, 0.5, 0.666, 0.667)] == [1, 1, 2, 3, 4, math.inf]
    assert [two.threshold(level) for level in (1e-9, 1 / 6, 0.9999)] == [1, 2, math.inf]
    many = fit(torch.arange(1.0, 5001)[:, None])
    assert [many.threshold(level) for level in (0.0005, 0.9, 0.95001)] == [6, 4501, 4756]


def test_too_few_tasks_give_everything():
    generator = torch.Generator().manual_seed(0)
    mean, std, y = numbers(9, generator)
    record = fit(residual_scores(mean, std, y)[..., 0])
    low, high = record.interval(mean, std, 0.95)  # more points would not help: nine tasks cannot speak of one in twenty
    assert (low == -math.inf).all()
    assert (high == math.inf).all()
    assert record.interval(mean, std, 0.9)[0].isfinite().all()
    probabilities, target = classes(9, generator)
    record = fit(true_scores(probabilities, target))
    assert record.prediction_set(probabilities, 0.95).all()
    assert record.prediction_set(probabilities, 0.95, empty=True).all()


def test_scores_that_are_not_finite_count_as_infinite():
    scores = torch.tensor([[1.0, 2.0], [math.nan, 3.0], [math.inf, 4.0]])
    record = fit(scores)
    assert sorted(set(record.thresholds)) == [1, 2, 3, 4]
    assert record.threshold(0.5) == 4  # the fourth of eight
    assert record.threshold(0.51) == math.inf


def test_the_record_goes_through_json():
    record = fit(number_scores(50, torch.Generator().manual_seed(0)))
    restored = Conformal(**json.loads(json.dumps(asdict(record), allow_nan=False)))
    assert restored == record
    assert restored.threshold(0.9) == record.threshold(0.9)


@pytest.mark.parametrize("level", [0.0, 1.0, 90, -0.5])
def test_levels_that_are_no_probabilities_are_refused(level):
    with pytest.raises(ValueError, match="level: expected a probability between 0 and 1, got"):
        fit(torch.ones(3, 2)).threshold(level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tasks", [20, 100])
def test_the_guarantee_over_calibration_sets(tasks, level):
    """Between the two bounds in the mean of 2000 calibration sets, each with a new task, within four errors."""
    repeats = 2000
    generator = torch.Generator().manual_seed(1)
    hits = torch.empty(repeats, dtype=torch.double)
    for i in range(repeats):
        scores = number_scores(tasks + 1, generator)
        hits[i] = (scores[-1] <= fit(scores[:-1]).threshold(level)).double().mean()
    error = float(4 * hits.std() / math.sqrt(repeats))
    assert level - error <= float(hits.mean()) <= level + (1 + 1 / POINTS) / (tasks + 1) + error


def test_the_guarantee_takes_the_dependence_of_points_into_account():
    """With one score in all points of a task, pooled points would promise 95 % after 12 tasks; it takes 19."""
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(12, 1, generator=generator).abs().expand(12, POINTS)
    assert fit(shared).threshold(0.95) == math.inf
    assert fit(shared.reshape(-1, 1)).threshold(0.95) < math.inf


def test_numbers_are_covered_as_the_level_says():
    """600 tasks by 2000 calibration tasks, within 0.02; the predictor's own interval is far from it."""
    generator = torch.Generator().manual_seed(3)
    record = fit(number_scores(2000, generator))
    mean, std, y = numbers(600, generator)
    for level in LEVELS:
        assert float(covered(record.interval(mean, std, level), y).mean()) == pytest.approx(level, abs=0.02)
    assert float(covered((mean - 1.64 * std, mean + 1.64 * std), y).mean()) < 0.7  # it claims 0.9


def test_classes_are_covered_as_the_level_says():
    """Where sets may be empty; with the likeliest class in each, at least so and at least the accuracy."""
    generator = torch.Generator().manual_seed(4)
    probabilities, y = classes(1000, generator)
    record = fit(true_scores(probabilities, y))
    probabilities, y = classes(600, generator)
    accuracy = float((probabilities.argmax(-1) == y).double().mean())
    for level in LEVELS:
        exact = record.prediction_set(probabilities, level, empty=True)
        served = record.prediction_set(probabilities, level)
        assert float(exact.gather(-1, y[..., None]).double().mean()) == pytest.approx(level, abs=0.02)
        coverage = float(served.gather(-1, y[..., None]).double().mean())
        assert coverage >= max(level - 0.02, accuracy)
        assert served.any(-1).all()
        assert (served | ~exact).all()
    assert record.prediction_set(probabilities, 0.5, empty=True).any(-1).double().mean() < 1
    sizes = [record.prediction_set(probabilities, level).sum(-1).double().mean() for level in LEVELS]
    assert sizes == sorted(sizes)


def test_confident_points_do_not_tie():
    """In float32 1 - p is zero for many points of a sure classifier; the sum over the others tells them apart."""
    probabilities, y = classes(1000, torch.Generator().manual_seed(5), sharpness=8.0)
    plain = 1 - probabilities.gather(-1, y[..., None])[..., 0]
    assert (plain == 0).float().mean() > 0.2
    scores = true_scores(probabilities, y)
    assert (scores == 0).float().mean() < 0.01
    assert_equal(scores, plain.double(), rtol=0, atol=1e-6)


def test_the_deviation_is_that_of_coverage_over_calibration_sets():
    """Points that depend on each other: with 100 tasks 0.02 is less than one deviation at a level of one half."""
    generator = torch.Generator().manual_seed(6)
    truth = number_scores(20_000, generator)
    coverage, claimed = [], []
    for _ in range(400):
        scores = number_scores(100, generator)
        coverage.append((truth <= fit(scores).threshold(0.5)).double().mean())
        claimed.append(deviation(scores, 0.5))
    found = float(torch.stack(coverage).std())
    assert sum(claimed) / 400 == pytest.approx(found, rel=0.15)
    assert found > 0.02
    independent = torch.randn(100, POINTS, generator=generator).abs()
    assert deviation(independent, 0.5) == pytest.approx(math.sqrt(0.25 / 1000), rel=0.2)


def test_scores_of_numbers_by_hand():
    """Two outputs a point, each with its own deviation; three of the four numbers lie within q = 1, all within 3."""
    mean = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    std = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    predictive = NormalMixture(mean[None], std[None] ** 2)
    y = mean + std * torch.tensor([[0.5, -1.0], [0.25, 3.0]])
    assert_equal(nonconformity(predictive, y), torch.tensor([0.5, 1.0, 0.25, 3.0]))
    record = Conformal(9, 4, [1.0] * 850 + [3.0] * 70)  # and nothing beyond 0.92
    scores = record.scores(predictive, y)
    found = {name: float(value) for name, value in scores.items()}
    assert [found[f"conformal_coverage_{q}"] for q in (50, 80, 90, 95)] == [0.75, 0.75, 1, 1]
    assert [found[f"conformal_width_{q}"] for q in (50, 80, 90, 95)] == pytest.approx([2.25, 2.25, 6.75, math.inf])


def test_scores_of_classes_by_hand():
    """Sets may be empty: at q = 0.1 one point has its class, another a wrong one, and the third nothing."""
    p = torch.tensor([[0.95, 0.03, 0.02], [0.02, 0.92, 0.06], [0.4, 0.35, 0.25]])
    y = torch.tensor([0, 2, 0])
    predictive = CategoricalPredictive(p.log()[None])
    assert_equal(nonconformity(predictive, y), torch.tensor([0.05, 0.94, 0.6]).double(), rtol=1e-5)
    record = Conformal(9, 3, [0.1] * 500 + [0.7] * 300)
    found = {name: float(value) for name, value in record.scores(predictive, y).items()}
    assert [found[f"conformal_coverage_{q}"] for q in (50, 80, 95)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [found[f"conformal_size_{q}"] for q in (50, 80, 95)] == pytest.approx([2 / 3, 4 / 3, 3])
