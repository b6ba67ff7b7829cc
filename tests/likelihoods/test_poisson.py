"""The Poisson likelihood against torch.distributions, scipy and sums over counts, and in the whole pipeline."""

import numpy as np
import pytest
import torch
from counts import CountTasks
from oracles import assert_equal
from scipy import stats
from torch import distributions
from torch.func import jacrev, vmap

import meta_exp
from meta_exp import tasks
from meta_exp.likelihoods import Poisson
from meta_exp.runs.build import build
from meta_exp.runs.restore import open_run
from meta_exp.runs.test_set import score_tasks

LIKELIHOOD = Poisson()
DRAWS, POINTS, D = 3, 6, 2
COUNTS = np.arange(3000)


@pytest.fixture
def drawn():
    """Draws of log rates [S, M, d] and counts [M, d], 0 among them."""
    torch.manual_seed(0)
    y = torch.poisson(torch.full((POINTS, D), 3.0)).double()
    y[0] = 0
    return 1 + torch.randn(DRAWS, POINTS, D).double(), y


def predictive(log_rates):
    return LIKELIHOOD.predictive(log_rates, log_rates.new_zeros(POINTS, D, D))


def mixture_cdf(log_rates, y):
    return torch.tensor(stats.poisson(log_rates.exp()).cdf(y).mean(0))


def test_nll_and_loss(drawn):
    (outputs, *_), y = drawn
    expected = -distributions.Poisson(outputs.exp()).log_prob(y)
    assert_equal(LIKELIHOOD.nll(outputs, y), expected.sum())
    assert_equal(LIKELIHOOD.loss(outputs, y), expected.mean())


def test_hessian_sqrt(drawn):
    (outputs, *_), y = drawn
    s = LIKELIHOOD.hessian_sqrt(outputs)
    assert_equal(s @ s.mT, vmap(jacrev(jacrev(lambda f, y: LIKELIHOOD.nll(f[None], y[None]))))(outputs, y))
    assert s.shape == (POINTS, D, LIKELIHOOD.rank(LIKELIHOOD.outputs_for(D)))


def test_predictive_is_the_mixture(drawn):
    log_rates, y = drawn
    found, components = predictive(log_rates), stats.poisson(log_rates.exp())
    assert_equal(found.log_prob(y), torch.tensor(components.pmf(y).prod(-1).mean(0)).log())
    assert_equal(found.cdf(y), mixture_cdf(log_rates, y))
    assert_equal(found.cdf(y + 0.7), found.cdf(y))
    assert not found.cdf(-y - 0.5).any()
    assert_equal(found.mean, torch.tensor(components.mean().mean(0)))
    second = torch.tensor((components.var() + components.mean() ** 2).mean(0))
    assert_equal(found.variance, second - found.mean**2)
    assert_equal(found.score(y), (found.mean - y).square().mean(-1))


@pytest.mark.parametrize("q", [0.001, 0.025, 0.3, 0.5, 0.9, 0.975])
def test_quantile_is_the_least_count(drawn, q):
    found = predictive(drawn[0]).quantile(q)
    whole = stats.poisson(drawn[0].exp()[..., None]).cdf(COUNTS).mean(0)
    assert_equal(found, torch.tensor((whole >= q).argmax(-1)).double())
    assert not found.signbit().any()


def test_coverage_is_that_of_the_discrete_quantiles(drawn):
    found = predictive(drawn[0])
    for k in range(20):
        y = torch.full((POINTS, D), float(k)).double()
        for level, inside in zip((0.5, 0.9), found.covered(y, [0.5, 0.9]), strict=True):
            low, high = found.interval(level)
            assert torch.equal(inside, (low <= y) & (y <= high))
        assert_equal(found.pit(y), (mixture_cdf(drawn[0], y - 1) + mixture_cdf(drawn[0], y)) / 2)


def test_crps_is_the_sum_over_counts(drawn):
    log_rates, y = drawn
    whole = stats.poisson(log_rates.exp()[..., None]).cdf(COUNTS).mean(0)
    expected = ((whole - (y[..., None].numpy() <= COUNTS)) ** 2).sum(-1)
    assert_equal(predictive(log_rates).crps(y), torch.tensor(expected), atol=1e-8)


@pytest.mark.parametrize("rates", [(1000.0, 1000.0), (1.0, 1500.0)])
def test_crps_of_many_counts_is_within_the_distance_of_its_places(rates):
    log_rates = torch.tensor(rates).double().log().view(2, 1, 1)
    y = torch.tensor([[900.0]]).double()
    whole = stats.poisson(np.array(rates)[:, None]).cdf(COUNTS).mean(0)
    expected = ((whole - (COUNTS >= 900)) ** 2).sum()
    spacing = (max(rates) + 8 * max(rates) ** 0.5 + 16) / 256
    assert abs(float(predictive_of(log_rates).crps(y)) - expected) < spacing


def predictive_of(log_rates):
    return LIKELIHOOD.predictive(log_rates, torch.zeros(1, 1, 1))


def test_scores_vmap_over_tasks(drawn):
    log_rates, y = drawn
    many = torch.stack([log_rates, log_rates + 1]), torch.stack([y, y + 2])

    def scores(log_rates, y):
        found = predictive(log_rates)
        return found.scores(y) | found.histograms(y)

    together, apart = vmap(scores)(*many), [scores(*task) for task in zip(*many, strict=True)]
    for name, value in together.items():
        assert_equal(value, torch.stack([task[name] for task in apart]))


def test_a_rate_that_overflows_is_seen():
    """In float32 exp(89) is infinite: so are nll and loss, and a predictive's moments; none of them is NaN."""
    outputs, y = torch.tensor([[89.0]]), torch.tensor([[3.0]])
    assert LIKELIHOOD.nll(outputs, y) == LIKELIHOOD.loss(outputs, y) == torch.inf
    found = LIKELIHOOD.plug_in(outputs)
    assert found.mean == found.variance == found.score(y) == torch.inf
    assert found.log_prob(y) == -torch.inf


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.setattr(tasks, "CountTasks", CountTasks, raising=False)
    monkeypatch.setattr(CountTasks, "__module__", "meta_exp.tasks")
    quick = ["trainer.max_steps=60", "trainer.val_check_interval=60", "test_tasks=10", "validation_tasks=10"]
    kinds = ["predictives=[map,sample,linearized]", "samples=5", "dataset._target_=meta_exp.tasks.CountTasks"]
    return trained("poisson", "trainer=smoke", "likelihood=poisson", *quick, *kinds)


@pytest.mark.parametrize("overrides", [[], ["curvature=last_layer"]], ids=["ggn", "last_layer"])
def test_is_trained_and_evaluated(run, overrides):
    restored = open_run(run, overrides)
    scores = score_tasks(restored.learner, restored.family, 10, torch.device("cpu"))
    for kind in ("map", "sample", "linearized"):
        for name in ("mse", "nll", "crps", "coverage_90"):
            assert scores.each[f"{kind}/{name}"].isfinite().all()
        assert scores.pooled[f"{kind}/pit"].sum() == 10 * 10
    assert (run / "plots" / "fan.png").exists()


@pytest.mark.parametrize("kind", ["map", "sample", "linearized"])
def test_predicts_in_production(run, kind):
    x = np.linspace(-4, 4, 9)[:, None]
    task = meta_exp.load(run).adapt(x, np.arange(9) % 4)
    found = task.predict(x, kind=kind, samples=4)
    low, high = found.interval(0.95)
    assert np.array_equal(low, low.round())
    assert np.array_equal(high, high.round())
    assert (found.mean > 0).all()
    assert (low <= high).all()
    if kind == "map":
        np.testing.assert_allclose(found.variance, found.mean, rtol=1e-5)
        assert np.array_equal(high, stats.poisson(found.mean.astype(float)).ppf(0.975))
    assert (task.sample(1)[0](x) > 0).all()


def test_what_is_no_count_is_refused(run):
    learner, x = meta_exp.load(run), np.zeros((3, 1))
    for y, found in (([0, 1.5, 2], r"row 1, column 0: .*, got 1\.5"), ([0, 1, -2], r"row 2, column 0: .*, got -2\.0")):
        with pytest.raises(ValueError, match=f"y, {found}"):
            learner.adapt(x, np.array(y))


def test_a_gaussian_takes_counts(config):
    build(config("dataset._target_=counts.CountTasks", "trust=[counts]"))
    with pytest.raises(ValueError, match="CountTasks: expected gaussian, heteroscedastic, poisson, got categorical"):
        build(config("dataset._target_=counts.CountTasks", "trust=[counts]", "likelihood=categorical"))
