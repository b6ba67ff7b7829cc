"""Tuning of tau against dense linear algebra and LLAMA's own objective, and what a run does with it."""

import itertools
import math

import pytest
import torch
from oracles import adapted, assert_equal, dense_jacobian, dense_precision, episodes, initial, mlp, objective_of, task
from torch.distributions import MultivariateNormal
from torch.func import functional_call

from meta_exp.adaptation import Meta
from meta_exp.algorithms import LLAMA, MAML
from meta_exp.curvature import GGN, KFAC, Diagonal, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.runs.build import build
from meta_exp.runs.calibration import GRID, criterion_of, tune

TAU = torch.tensor(0.7).double()
TINY = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "validation_tasks=12", "samples=3"]


def test_linearized_is_the_nll_of_the_dense_predictive():
    """Each query point's y under N(f, J H^-1 J^T + sigma^2 I), with H at the tau asked for and not the curvature's."""
    model, likelihood = mlp(outputs=2), Gaussian(0.5)
    algorithm = MAML(model=model, likelihood=likelihood, curvature=GGN(model, (2,), 100.0), inner_lr=0.1)
    theta, (support, query) = initial(model), task(episodes(likelihood, (2,), 2))
    theta_i = adapted(algorithm, theta, support, 3)
    precision = dense_precision(likelihood, model, theta_i, support.x, float(TAU))
    jacobian = dense_jacobian(model, theta_i, query.x)
    covariance = jacobian @ torch.linalg.inv(precision) @ jacobian.mT + 0.25 * torch.eye(2).double()
    outputs = functional_call(model, theta_i, (query.x,))
    expected = -MultivariateNormal(outputs, covariance).log_prob(query.y).mean()
    found = criterion_of(algorithm, "linearized", 3, Meta(theta, {}), task(episodes(likelihood, (2,), 2)), None, TAU)
    assert_equal(found, expected)


@pytest.mark.parametrize("structure", [GGN, KFAC, Diagonal, LastLayer])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_marginal_likelihood_is_llamas_objective_on_the_support_set(likelihood, structure):
    """With eta = 1/2, the prior term, and the support set as the query set too."""
    model = mlp(outputs=3)
    support = task(episodes(likelihood, (2,), 3)).support
    episode = task(episodes(likelihood, (2,), 3))._replace(support=support, query=support)
    settings = {"model": model, "likelihood": likelihood, "inner_lr": 0.1, "inner_steps": 2}
    llama = LLAMA(**settings, curvature=structure(model, (2,), float(TAU)), eta=0.5, prior_term=True)
    expected, _ = objective_of(llama, initial(model), {}, episode)
    maml = MAML(**settings, curvature=structure(model, (2,), 9.0))
    found = criterion_of(maml, "marginal_likelihood", 2, Meta(initial(model), {}), episode, None, TAU)
    assert_equal(found, expected)


@pytest.mark.parametrize("criterion", ["linearized", "sample", "marginal_likelihood"])
def test_takes_the_best_of_the_grid_and_changes_nothing(config, criterion):
    run = build(config(*TINY))
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    tuning = tune(run.learner, run.stream.val_dataloader(), criterion)
    assert tuning.prior_precision == GRID[min(range(len(GRID)), key=tuning.scores.__getitem__)]
    assert len(set(tuning.scores)) > len(GRID) / 2
    assert (tuning.validation_tasks, tuning.trained_with, run.learner.prior_precision) == (12, 1000.0, 1000.0)
    assert all(torch.equal(before[name], value) for name, value in run.learner.state_dict().items())
    assert tune(run.learner, run.stream.val_dataloader(), criterion) == tuning


def test_score_of_the_grid_is_the_evaluations_own(config):
    """The NLL at one tau is the one that evaluation gives for a curvature of that tau, on the same tasks."""
    batches = list(build(config(*TINY)).stream.val_dataloader())
    scores = tune(build(config(*TINY)).learner, batches, "linearized").scores
    k = GRID.index(100.0)
    learner = build(config(*TINY, "curvature.prior_precision=100")).learner
    nll = torch.cat(
        [learner.evaluate(batch, learner.evaluation_steps, ["linearized"]).each["linearized/nll"] for batch in batches]
    )
    assert scores[k] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert scores[k] != pytest.approx(scores[k + 3], rel=1e-3)


def test_set_prior_precision_reaches_evaluation_and_not_training(config):
    run = build(config(*TINY))
    batch = next(iter(run.stream.val_dataloader()))
    before = run.learner.evaluate(batch, 1, []).each["log_det"]
    run.learner.set_prior_precision(1.0)
    assert run.learner.prior_precision == pytest.approx(1.0)
    assert (run.learner.evaluate(batch, 1, []).each["log_det"] > before).all()
    run.trainer.fit(run.learner, run.stream)
    assert run.learner.prior_precision == 1000.0


def test_grid_is_logarithmic():
    ratios = [math.log10(b / a) for a, b in itertools.pairwise(GRID)]
    assert ratios == pytest.approx([1 / 3] * len(ratios), abs=0.01)
    assert (GRID[0], GRID[-1]) == (0.01, 1e7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune_prior_precision=mse"], "expected null or one of linearized, sample, marginal_likelihood, got mse"),
        (["algorithm=maml", "tune_prior_precision=linearized"], "expected a curvature, got curvature=none"),
    ],
)
def test_refusals(config, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(config(*TINY, *overrides))
