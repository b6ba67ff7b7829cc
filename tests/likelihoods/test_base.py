"""Likelihoods against torch.distributions, automatic Hessians and brute-force mixtures."""

import re
from pathlib import Path

import pytest
import torch
from oracles import assert_equal, starts
from torch import distributions
from torch.func import grad, jacrev, vmap

import meta_exp
from meta_exp import likelihoods
from meta_exp.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood, Poisson

POINTS, OUTPUTS, DRAWS = 6, 4, 5


@pytest.fixture
def outputs():
    torch.manual_seed(0)
    return 2 * torch.randn(POINTS, OUTPUTS).double()


@pytest.fixture
def targets(outputs):
    return {Gaussian: torch.randn_like(outputs), Categorical: torch.randint(OUTPUTS, (POINTS,))}


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_gaussian_nll(outputs, targets, sigma):
    """The sum of -log p over points and outputs; at sigma^2 = 1/2 it is the sum of squares up to a constant."""
    y = targets[Gaussian]
    expected = -distributions.Normal(outputs, sigma).log_prob(y).sum()
    assert_equal(Gaussian(sigma).nll(outputs, y), expected)
    learned = Gaussian(learned=True).at({"log_sigma_noise": torch.tensor(sigma, dtype=torch.double).log()})
    assert_equal(learned.nll(outputs, y), expected)
    half = Gaussian(torch.tensor(0.5).double().sqrt())
    assert_equal(half.nll(outputs, y) - half.nll(y, y), (outputs - y).square().sum())


def test_categorical_nll(outputs, targets):
    """The sum of -log p over points, and its mean as the inner loss."""
    y = targets[Categorical]
    expected = -distributions.Categorical(logits=outputs).log_prob(y)
    assert_equal(Categorical().nll(outputs, y), expected.sum())
    assert_equal(Categorical().loss(outputs, y), expected.mean())


def test_gaussian_loss(outputs, targets):
    """The inner loss is the mean squared error whatever sigma is."""
    y = targets[Gaussian]
    for sigma in (0.1, 2.0):
        assert_equal(Gaussian(sigma).loss(outputs, y), torch.nn.functional.mse_loss(outputs, y))


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_hessian_sqrt(outputs, targets, likelihood):
    """S S^T is the Hessian of -log p in the outputs, and S has as many columns as ``rank`` says."""
    y = targets[type(likelihood)]
    s = likelihood.hessian_sqrt(outputs)
    expected = vmap(jacrev(jacrev(lambda f, y: likelihood.nll(f[None], y[None]))))(outputs, y)
    assert_equal(s @ s.mT, expected)
    assert s.shape == (POINTS, OUTPUTS, likelihood.rank(OUTPUTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("top", [0, -1])
def test_hessian_sqrt_of_sure_predictions(dtype, classes, top):
    """At a gap of 200 between logits S, S S^T and the gradient through them are finite and S S^T = diag(p) - p p^T."""
    logits = torch.zeros(1, classes, dtype=dtype)
    logits[0, top] = 200

    def total(logits):
        s = Categorical().hessian_sqrt(logits)
        return (s @ s.mT).sin().sum() + s.sum()

    s, p = Categorical().hessian_sqrt(logits), logits.softmax(-1)
    assert_equal(s @ s.mT, torch.diag_embed(p) - p[:, :, None] * p[:, None, :], atol=1e-6)
    assert grad(total)(logits).isfinite().all()


def test_hessian_sqrt_gradient(outputs):
    """The reflection that drops a column of S is differentiable: first and second derivatives against differences."""
    logits = outputs[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(Categorical().hessian_sqrt, logits)
    assert torch.autograd.gradgradcheck(Categorical().hessian_sqrt, logits)


def test_gaussian_log_predictive(targets):
    """Log of the mean of S normal densities, their covariances being the outputs' plus sigma^2 I."""
    means, root = torch.randn(DRAWS, POINTS, OUTPUTS).double(), torch.randn(POINTS, OUTPUTS, OUTPUTS).double()
    covariance = root @ root.mT
    y = targets[Gaussian]
    total = covariance + 0.3**2 * torch.eye(OUTPUTS).double()
    densities = distributions.MultivariateNormal(means, total).log_prob(y).exp()
    assert_equal(Gaussian(0.3).predictive(means, covariance).log_prob(y), densities.mean(0).log())
    assert_equal(Gaussian().predictive(means, covariance).score(y), (means.mean(0) - y).square().mean(-1))


def test_categorical_log_predictive(targets):
    """Log of the averaged probability of the right class, point by point."""
    logits, y = torch.randn(DRAWS, POINTS, OUTPUTS).double(), targets[Categorical]
    p = sum(draw.softmax(-1) for draw in logits) / DRAWS
    expected = torch.stack([p[m, y[m]] for m in range(POINTS)]).log()
    predictive = Categorical().predictive(logits, torch.zeros(POINTS, OUTPUTS, OUTPUTS))
    assert_equal(predictive.log_prob(y), expected)
    assert_equal(predictive.score(y), (p.argmax(-1) == y).double())


def test_hyperparameters():
    """Only a learned noise is a hyper-parameter; ``at`` puts it in place."""
    assert Gaussian(0.5).hyperparameters() == {} == Categorical().hyperparameters()
    hyper = starts(Gaussian(0.5, learned=True).hyperparameters())
    torch.testing.assert_close(Gaussian(9.0, learned=True).at(hyper).sigma_noise, torch.tensor(0.5))
    assert Gaussian(0.5).at({}) == Gaussian(0.5)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_refuses_noise_that_is_not_positive(sigma):
    with pytest.raises(ValueError, match=r"likelihood\.sigma_noise"):
        Gaussian(sigma)


def test_nothing_else_knows_which_likelihood_it_is():
    names = [
        name for name, kind in vars(likelihoods).items() if isinstance(kind, type) and issubclass(kind, Likelihood)
    ]
    assert {"Likelihood", "Gaussian", "Categorical", "HeteroscedasticGaussian", "Poisson", "Probit"} == set(names)
    asks = re.compile(
        rf"(isinstance|issubclass)\([^()]*,[^()]*\b({'|'.join(names)})\b|\btype\([^()]*likelihood\)\s*(is|==)"
    )
    assert asks.search("isinstance(likelihood, Gaussian | Poisson)")
    package = Path(meta_exp.__file__).parent
    found = [file for file in package.rglob("*.py") if asks.search(file.read_text())]
    assert not [file for file in found if file.parent != package / "likelihoods"]


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), HeteroscedasticGaussian(), Poisson()])
def test_predictive_bears_the_likelihoods_metric(likelihood):
    assert likelihood.plug_in(torch.zeros(2, likelihood.outputs_for(3))).metric == likelihood.metric
