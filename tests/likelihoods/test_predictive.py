"""Scores of predictors whose scores are known, against numerical integration too, in float64."""

import math

import pytest
import torch
from oracles import assert_equal
from scipy.integrate import quad
from torch.func import vmap

from meta_exp.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian, Poisson, Probit
from meta_exp.likelihoods.gaussian import NormalMixture
from meta_exp.likelihoods.predictive import NumberPredictive
from meta_exp.prediction import Prediction
from meta_exp.scoring.metrics import expected_calibration_error


def double(*values):
    return torch.tensor(values, dtype=torch.double)


def prediction(outputs, variance=0.0):
    """Draws [S, M, C] with the same variance around each, uncorrelated."""
    points, outputs_each = outputs.shape[1:]
    return Prediction(outputs, variance * torch.eye(outputs_each, dtype=outputs.dtype).expand(points, -1, -1))


def task_scores(prediction, y, likelihood):
    return likelihood.predictive(*prediction).scores(y)


def task_histograms(prediction, y, likelihood):
    return likelihood.predictive(*prediction).histograms(y)


def uncertainty(prediction, likelihood):
    return likelihood.predictive(*prediction).uncertainty()


def test_perfect_and_constant_classifiers():
    y = torch.tensor([0, 1, 2, 1])
    perfect, constant = prediction(2000 * torch.eye(3).double()[y][None]), prediction(torch.zeros(1, 4, 3).double())
    scores = task_scores(perfect, y, Categorical())
    assert scores["accuracy"] == 1
    assert scores["nll"] == scores["brier"] == 0
    assert expected_calibration_error(task_histograms(perfect, y, Categorical())["reliability"]) == 0
    scores = task_scores(constant, y, Categorical())
    assert_equal(scores["nll"], double(3.0).log()[0])
    assert_equal(scores["brier"], double(2 / 3)[0])
    ece = expected_calibration_error(task_histograms(constant, y, Categorical())["reliability"])
    assert ece == pytest.approx(1 / 3 - 1 / 4)  # it answers 0, the class of one point in four
    assert_equal(uncertainty(constant, Categorical()), torch.ones(4).double())
    assert not uncertainty(perfect, Categorical()).any()


def test_probability_one_falls_in_the_last_bin():
    reliability = task_histograms(prediction(300 * torch.eye(2).double()[None]), torch.tensor([0, 0]), Categorical())
    assert reliability["reliability"][:, -1].tolist() == [2, 2, 1]


@pytest.mark.parametrize("draws", [1, 2, 7])
def test_crps_is_the_integral(draws):
    generator = torch.Generator().manual_seed(draws)
    means = torch.randn(draws, 1, 1, generator=generator).double()
    variance = torch.rand(draws, 1, 1, generator=generator).double() + 0.1
    y = double([0.4])

    def square(t):
        return (float(NormalMixture(means, variance).cdf(double([t]))) - (t >= 0.4)) ** 2

    expected = quad(square, -12, 0.4)[0] + quad(square, 0.4, 12)[0]
    assert float(NormalMixture(means, variance).crps(y)) == pytest.approx(expected, rel=1e-6)


def test_crps_of_a_point_is_the_absolute_error():
    found = NormalMixture(double([[2.0]], [[2.0]]), torch.full((2, 1, 1), 1e-18).double()).crps(double([-1.0]))
    assert_equal(found, double([3.0]), atol=1e-8)


def test_perfect_and_untrained_regression():
    y = double([1.0], [-2.0])
    tight, wide = Gaussian(1e-3), Gaussian(1.0)
    perfect = task_scores(prediction(y[None]), y, tight)
    assert perfect["mse"] == 0
    assert perfect["coverage_50"] == perfect["coverage_95"] == 1
    assert perfect["crps"] == pytest.approx(1e-3 * (math.sqrt(2 / math.pi) - math.sqrt(1 / math.pi)))
    untrained = task_scores(prediction(0 * y[None]), y, wide)
    assert untrained["mse"] == 2.5
    assert untrained["coverage_50"] == 0
    assert untrained["coverage_80"] == 0.5  # 1 lies inside +- 1.28, 2 outside
    assert task_scores(prediction(0 * y[None]), y, tight)["coverage_95"] == 0


def test_coverage_of_the_exact_posterior_is_nominal():
    """Bayesian linear regression: y drawn from the exact predictive is covered at each level within sampling error."""
    generator = torch.Generator().manual_seed(0)
    tasks, points, sigma, tau = 4000, 6, 0.7, 2.0

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    features, new = randn(tasks, points, 3), randn(tasks, 1, 3)
    weights = randn(tasks, 3, 1) / math.sqrt(tau)
    y, target = features @ weights + sigma * randn(tasks, points, 1), new @ weights + sigma * randn(tasks, 1, 1)
    precision = tau * torch.eye(3).double() + features.mT @ features / sigma**2
    mean = new @ torch.linalg.solve(precision, features.mT @ y / sigma**2)
    variance = (new @ torch.linalg.solve(precision, new.mT)).squeeze(-1)

    def score(*task):
        return task_scores(Prediction(task[0][None], task[1][..., None]), task[2], Gaussian(sigma))

    scores = vmap(score)(mean, variance, target)
    for level in (50, 80, 90, 95):
        q = level / 100
        error = 4 * math.sqrt(q * (1 - q) / tasks)
        assert scores[f"coverage_{level}"].mean() == pytest.approx(q, abs=error)
    narrow = vmap(score)(mean, 0 * variance, target)  # the plug-in predictive forgets the posterior's variance
    assert narrow["coverage_90"].mean() < 0.9 - 4 * math.sqrt(0.09 / tasks)
    assert narrow["nll"].mean() > scores["nll"].mean()
    assert narrow["crps"].mean() > scores["crps"].mean()


def test_mixture_is_scored_as_a_whole():
    """The NLL, the coverage and the CRPS of a mixture are not the means of its components'."""
    means, y, noise = double([[-3.0]], [[3.0]]), double([0.0]), Gaussian(1.0)
    mixture = task_scores(prediction(means), y, noise)
    parts = [task_scores(prediction(mean[None]), y, noise) for mean in means]
    off = double([2.0])
    nlls = [task_scores(prediction(mean[None]), off, noise)["nll"] for mean in means]
    density = sum(math.exp(-float(nll)) for nll in nlls) / 2
    assert_equal(task_scores(prediction(means), off, noise)["nll"], double(-math.log(density))[0])
    assert task_scores(prediction(means), off, noise)["nll"] < sum(nlls) / 2
    assert mixture["coverage_50"] == 1  # the centre of the mixture is the tail of both components
    assert parts[0]["coverage_50"] == parts[1]["coverage_50"] == 0
    assert mixture["crps"] < sum(part["crps"] for part in parts) / 2


def test_pit_counts_every_output():
    y = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    pit = task_histograms(prediction(torch.zeros(1, 50, 2).double()), y, Gaussian(1.0))["pit"]
    assert pit.sum() == 100
    assert pit.max() < 20


def test_uncertainty_is_the_variance_of_the_mixture():
    means = double([[-3.0]], [[3.0]])
    assert_equal(uncertainty(prediction(means, variance=0.5), Gaussian(2.0)), double(9 + 0.5 + 4))


def predictives():
    """Of each likelihood three members with numbers of draws and values of their own, and targets."""
    torch.manual_seed(0)
    numbers, counts, classes = (
        torch.randn(5, 2).double(),
        torch.randint(0, 9, (5, 2)).double(),
        torch.randint(0, 4, (5,)),
    )
    draws = (1, 2, 3)

    def outputs(each, scale=1.0):
        return [scale * torch.randn(s, 5, each).double() for s in draws]

    def bent():
        factor = torch.randn(5, 2, 2).double()
        return factor @ factor.mT

    none = torch.zeros(5, 2, 2).double()
    gaussian = [Gaussian(sigma_noise=0.3 * (e + 1)).predictive(f, bent()) for e, f in enumerate(outputs(2))]
    return {
        "gaussian": (gaussian, numbers),
        "one dimension": (
            [Gaussian(sigma_noise=0.3 * (e + 1)).predictive(f, bent()[:, :1, :1]) for e, f in enumerate(outputs(1))],
            numbers[:, :1],
        ),
        "heteroscedastic": ([HeteroscedasticGaussian().predictive(f, none) for f in outputs(4)], numbers),
        "poisson": ([Poisson().predictive(f, none) for f in outputs(2)], counts),
        "categorical": (
            [Categorical(temperature=e + 1.0).predictive(f, none) for e, f in enumerate(outputs(4))],
            classes,
        ),
        "probit": ([Probit().predictive(f, bent()[:, :1, :1].expand(5, 4, 4)) for f in outputs(4)], classes),
    }


@pytest.mark.parametrize("kind", predictives())
def test_a_mixture_of_predictives_has_the_mean_of_their_densities(kind):
    """By hand, whatever their numbers of draws; a single one is itself, and mixtures of mixtures are mixtures."""
    members, y = predictives()[kind]
    mixed = type(members[0]).mixed(members)
    assert_equal(mixed.log_prob(y).exp(), sum(member.log_prob(y).exp() for member in members) / 3)
    alone = type(members[0]).mixed(members[:1])
    assert_equal(alone.log_prob(y), members[0].log_prob(y))
    both = type(mixed).mixed([mixed, mixed])
    assert_equal(both.log_prob(y), mixed.log_prob(y))
    if y.ndim == 1:
        assert_equal(mixed.probabilities, sum(member.probabilities for member in members) / 3)
        return
    mean = sum(member.mean for member in members) / 3
    assert_equal(mixed.mean, mean)
    assert_equal(mixed.variance, sum(member.variance + (member.mean - mean) ** 2 for member in members) / 3)
    assert_equal(mixed.cdf(y), sum(member.cdf(y) for member in members) / 3)
    if kind != "poisson":
        assert_equal(mixed.cdf(mixed.quantile(0.3)), torch.full_like(mean, 0.3))
    assert_equal(alone.crps(y), members[0].crps(y))


def test_a_predictive_that_does_not_mix_is_refused_by_name():
    class Own(NumberPredictive):
        mean = variance = log_prob = score = uncertainty = scores = histograms = cdf = quantile = crps = None

    with pytest.raises(
        ValueError, match="ensemble=true: expected predictives that mix, got Own; give Own a method mixed"
    ):
        Own.mixed([Own(), Own()])


def test_what_is_fitted_has_one_point_more_of_any_class():
    """-log p(y) on average over n points, and 1 / n of that of a class drawn evenly; of numbers the first alone."""
    logits = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    log_p = logits.softmax(-1).mean(0).log()
    expected = -log_p[range(6), y].mean() - log_p.mean() / 50
    assert_equal(Categorical().predictive(logits, torch.zeros(6, 4, 4)).fitted_nll(y, 50), expected)
    sure = Categorical().predictive(torch.tensor([[[0.0, 500.0]]]), torch.zeros(1, 2, 2))
    assert_equal(sure.log_probabilities, torch.tensor([[-500.0, 0.0]]))
    assert_equal(sure.fitted_nll(torch.tensor([1]), 10), torch.tensor(25.0, dtype=torch.float64))
    numbers = Gaussian(1.0).predictive(torch.zeros(1, 6, 1).double(), torch.zeros(6, 1, 1).double())
    target = torch.ones(6, 1).double()
    assert_equal(numbers.fitted_nll(target, 50), -numbers.log_prob(target).mean())
