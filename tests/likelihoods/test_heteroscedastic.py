"""The heteroscedastic Gaussian against torch.distributions and scipy, and in the whole pipeline."""

import json

import numpy as np
import pytest
import torch
from oracles import assert_equal
from scipy import stats
from scipy.integrate import quad
from torch import distributions
from torch.func import jacrev, vmap

import meta_exp
from meta_exp.likelihoods import HeteroscedasticGaussian
from meta_exp.runs.restore import open_run
from meta_exp.runs.test_set import score_tasks

LIKELIHOOD = HeteroscedasticGaussian()
DRAWS, POINTS, D = 3, 5, 2


@pytest.fixture
def drawn():
    """Draws of outputs [S, M, 2 d] and targets [M, d]."""
    torch.manual_seed(0)
    return torch.randn(DRAWS, POINTS, 2 * D).double(), torch.randn(POINTS, D).double()


def predictive(outputs):
    return LIKELIHOOD.predictive(outputs, outputs.new_zeros(POINTS, 2 * D, 2 * D))


def test_nll_and_loss(drawn):
    (outputs, *_), y = drawn
    expected = -distributions.Normal(outputs[:, :D], (outputs[:, D:] / 2).exp()).log_prob(y)
    assert_equal(LIKELIHOOD.nll(outputs, y), expected.sum())
    assert_equal(LIKELIHOOD.loss(outputs, y), expected.mean())
    assert LIKELIHOOD.outputs_for(D) == outputs.shape[-1]


def test_hessian_sqrt_is_of_the_fisher_information(drawn):
    """Of the Hessian averaged over y: it is quadratic in y, so that m - s and m + s give its mean exactly."""
    outputs = drawn[0][0]
    hessian = vmap(jacrev(jacrev(lambda f, y: LIKELIHOOD.nll(f[None], y[None]))))
    mean, sd = outputs[:, :D], (outputs[:, D:] / 2).exp()
    expected = (hessian(outputs, mean - sd) + hessian(outputs, mean + sd)) / 2
    s = LIKELIHOOD.hessian_sqrt(outputs)
    assert_equal(s @ s.mT, expected)
    assert_equal(s @ s.mT, torch.diag_embed(torch.cat([sd**-2, torch.full_like(sd, 0.5)], -1)))
    assert s.shape[-1] == LIKELIHOOD.rank(2 * D)
    assert (torch.linalg.eigvalsh(hessian(outputs, mean)) < 1e-9).any()  # the observed one is not positive definite


def test_predictive_is_the_mixture(drawn):
    outputs, y = drawn
    found, normals = predictive(outputs), stats.norm(outputs[..., :D], (outputs[..., D:] / 2).exp())
    assert_equal(found.log_prob(y), torch.tensor(normals.pdf(y).prod(-1).mean(0)).log())
    assert_equal(found.cdf(y), torch.tensor(normals.cdf(y).mean(0)))
    second = (normals.var() + normals.mean() ** 2).mean(0)
    assert_equal(found.mean, torch.tensor(normals.mean().mean(0)))
    assert_equal(found.variance, torch.tensor(second) - found.mean**2)
    assert_equal(found.cdf(found.quantile(0.3)), torch.full((POINTS, D), 0.3).double(), rtol=1e-6)
    low, high = found.interval(0.8)
    inside = (low <= y) & (y <= high)
    assert torch.equal(found.covered(y, [0.8])[0], inside)


def test_crps_is_the_integral(drawn):
    outputs, y = drawn
    normals = [stats.norm(float(o[0, 0]), float((o[0, D] / 2).exp())) for o in outputs]
    at = float(y[0, 0])

    def square(t):
        return (sum(n.cdf(t) for n in normals) / DRAWS - (t >= at)) ** 2

    expected = quad(square, -30, at)[0] + quad(square, at, 30)[0]
    assert float(predictive(outputs).crps(y)[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_scores_vmap_over_tasks(drawn):
    outputs, y = drawn
    many = torch.stack([outputs, outputs + 1]), torch.stack([y, y + 2])

    def scores(outputs, y):
        found = predictive(outputs)
        return found.scores(y) | found.histograms(y)

    together, apart = vmap(scores)(*many), [scores(*task) for task in zip(*many, strict=True)]
    for name, value in together.items():
        assert_equal(value, torch.stack([task[name] for task in apart]))


@pytest.fixture
def run(trained):
    quick = ["trainer.max_steps=60", "trainer.val_check_interval=60", "test_tasks=10", "validation_tasks=10"]
    kinds = ["predictives=[map,sample,linearized]", "samples=5", "dataset.noise=0.5"]
    return trained("heteroscedastic", "trainer=smoke", "likelihood=heteroscedastic", *quick, *kinds)


@pytest.mark.parametrize("overrides", [[], ["curvature=last_layer"]], ids=["ggn", "last_layer"])
def test_is_trained_and_evaluated(run, overrides):
    restored = open_run(run, overrides)
    assert restored.learner.model(torch.zeros(1, 1)).shape == (1, 2)
    scores = score_tasks(restored.learner, restored.family, 10, torch.device("cpu"))
    for kind in ("map", "sample", "linearized"):
        for name in ("mse", "nll", "crps", "coverage_90"):
            assert scores.each[f"{kind}/{name}"].isfinite().all()
        assert scores.pooled[f"{kind}/pit"].sum() == 10 * 10
    metrics = json.loads((run / "metrics.json").read_text())
    if not overrides:
        assert float(scores.each["map/nll"].mean()) == pytest.approx(metrics["test/map/nll"])
    assert (run / "plots" / "fan.png").exists()


@pytest.mark.parametrize("kind", ["map", "sample", "linearized"])
def test_predicts_in_production(run, kind):
    x = np.linspace(-4, 4, 9)[:, None]
    task = meta_exp.load(run).adapt(x, np.sin(x[:, 0]))
    found = task.predict(x, kind=kind, samples=4)
    low, high = found.interval(0.95)
    assert (low < found.mean).all()
    assert (found.mean < high).all()
    np.testing.assert_allclose(found.std**2, found.variance, rtol=1e-5)
    if kind == "map":  # mean and noise of the one network, the noise different at each x
        np.testing.assert_allclose(high - found.mean, 1.959964 * found.std, rtol=1e-4)
        assert np.ptp(found.std) > 1e-3
    network = task.sample(1)[0]
    assert network(x).shape == (9,)
