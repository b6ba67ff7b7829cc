"""Scores of predictors whose scores are known, and the NLL that is of the mixture and not a mean of NLLs."""

import math
from dataclasses import dataclass

import pytest
import torch
from oracles import adapted, assert_equal, episodes, initial, mlp, task

from meta_exp.adaptation import Meta, path
from meta_exp.algorithms import MAML
from meta_exp.curvature import GGN
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.prediction import predict
from meta_exp.scoring.task import evaluate
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.foreign import Foreign


@dataclass(frozen=True, kw_only=True)
class Known(MAML):
    """An algorithm whose network answers with its inputs, whatever its parameters."""

    def network(self, params, x):
        return x + 0 * sum(p.sum() for p in params.values())


def known(likelihood):
    model = mlp()
    return Known(model=model, likelihood=likelihood, inner_lr=0.1), initial(model)


def score(algorithm, theta, query, support=None, **options):
    episode = Episode(support or query, query)
    return evaluate(algorithm, Meta(theta, {}), episode, None, steps=2, predictives=["map"], **options).each


def test_perfect_and_untrained_classifiers():
    y = torch.tensor([0, 1, 2, 1])
    algorithm, theta = known(Categorical())
    perfect = score(algorithm, theta, Examples(2000 * torch.eye(3).double()[y], y))
    assert perfect["map/accuracy"] == 1
    assert perfect["map/nll"] == perfect["map/brier"] == 0
    constant = score(algorithm, theta, Examples(torch.zeros(4, 3).double(), y))
    assert_equal(constant["map/nll"], torch.tensor(math.log(3), dtype=torch.double))
    assert_equal(constant["map/brier"], torch.tensor(2 / 3, dtype=torch.double))


def test_perfect_and_constant_regression():
    y = torch.tensor([[1.0], [-2.0]]).double()
    algorithm, theta = known(Gaussian(0.5))
    perfect = score(algorithm, theta, Examples(y, y))
    assert perfect["map/mse"] == 0
    assert_equal(perfect["map/nll"], torch.tensor(0.5 * math.log(2 * math.pi * 0.25), dtype=torch.double))
    constant = score(algorithm, theta, Examples(0 * y, y))
    assert constant["map/mse"] == constant["loss"] == 2.5


def test_steps_are_scored_along_the_path():
    model = mlp()
    theta = initial(model)
    algorithm = MAML(model=model, likelihood=Gaussian(), inner_lr=0.1)
    episode = task(episodes(Gaussian(), (2,), 1))
    scores = evaluate(algorithm, Meta(theta, {}), episode, None, steps=3, predictives=["map"]).each
    for k, params in enumerate(path(algorithm, episode.support, Meta(theta, {}), 3)):
        expected = ((algorithm.network(params, episode.query.x) - episode.query.y) ** 2).mean()
        assert_equal(scores[f"map/mse_step_{k}"], expected)
    assert "map/mse_step_4" not in scores
    ends = evaluate(algorithm, Meta(theta, {}), episode, None, steps=3, predictives=["map"], scored=(0, 3)).each
    inner = ["map/mse_step_1", "map/mse_step_2"]
    assert_equal(ends, {name: value for name, value in scores.items() if name not in inner})
    end = evaluate(algorithm, Meta(theta, {}), episode, None, steps=3, predictives=["map"], scored=()).each
    assert_equal(end, {name: value for name, value in scores.items() if "_step_" not in name})


def test_nll_is_of_the_mixture():
    """By Jensen's inequality the mixture's NLL is below the mean of the draws' NLLs; and it is the log of the mean."""
    model = mlp(outputs=3)
    theta = initial(model)
    curvature = GGN(model, (2,), prior_precision=0.5)
    algorithm = MAML(model=model, likelihood=Categorical(), curvature=curvature, inner_lr=0.1)
    episode = task(episodes(Categorical(), (2,), 3))
    noise = curvature.noise(torch.Generator().manual_seed(0), (50,), theta, len(episode.support.y), Categorical())
    scores = evaluate(algorithm, Meta(theta, {}), episode, noise, steps=1, predictives=["sample"]).each
    theta_i = adapted(algorithm, theta, episode.support, 1)
    posterior = algorithm.posterior(theta_i, episode.support, Meta(theta, {}))
    drawn = predict("sample", algorithm.network, theta_i, episode.query.x, Categorical(), posterior, noise).outputs
    chosen = drawn.softmax(-1)[:, torch.arange(len(episode.query.y)), episode.query.y]
    assert_equal(scores["sample/nll"], -chosen.mean(0).log().mean())
    assert scores["sample/nll"] < -chosen.log().mean()


def test_foreign_images_are_told_by_their_entropy():
    """A sure answer for the task's own points and a flat one for foreign points are told apart, and counted so."""
    y = torch.tensor([0, 1, 2, 1])
    algorithm, theta = known(Categorical())
    query = Examples(2000 * torch.eye(3).double()[y], y)
    others = torch.cat([torch.zeros(3, 3), 2000 * torch.eye(3)]).double()
    episode = Episode(query, query)

    def scores(*foreign):
        marked = Foreign(others, torch.tensor(foreign))
        return evaluate(algorithm, Meta(theta, {}), episode, None, marked, steps=1, predictives=["map"])

    scored = scores(True, True, True, False, False, False)
    assert scored.each["map/auroc"] == 1
    own, foreign = scored.pooled["map/entropy"]
    assert own[0] == own.sum() == 4
    assert foreign[-1] == foreign.sum() == 3
    assert scores(False, False, False, True, True, True).each["map/auroc"] == 0.5
    assert scores(*[False] * 6).each["map/auroc"].isnan()


def test_regression_flags_what_lies_beyond_the_support():
    """The linearised variance grows away from the support; a constant noise flags nothing."""
    model = mlp(inputs=1)
    theta = initial(model)
    curvature = GGN(model, (1,), prior_precision=1.0)
    algorithm = MAML(model=model, likelihood=Gaussian(0.5), curvature=curvature, inner_lr=0.01)
    x = torch.tensor([[-0.2], [0.1], [0.3]]).double()
    far = torch.tensor([[0.0], [3.0], [-4.0], [0.2]]).double()
    episode = Episode(Examples(x, x.sin()), Examples(far, far.sin()))
    each = evaluate(algorithm, Meta(theta, {}), episode, None, steps=1, predictives=["map", "linearized"]).each
    assert each["linearized/auroc"] == 1
    assert each["map/auroc"] == 0.5
    inside = Episode(episode.support, Examples(far[:1], far[:1].sin()))
    assert evaluate(algorithm, Meta(theta, {}), inside, None, steps=1, predictives=["map"]).each["map/auroc"].isnan()


def test_scores_of_ones_own():
    """For each predictive, as it is served and as trained; a name that is taken and what is no scalar are refused."""
    model, likelihood = mlp(), Gaussian(0.5)
    algorithm = MAML(model=model, likelihood=likelihood, inner_lr=0.1)
    episode = task(episodes(likelihood, (2,), 1))

    def scored(**own):
        options = {"steps": 1, "predictives": ["map"], "served": {"map": {}}, "own": own}
        return evaluate(algorithm, Meta(initial(model), {}), episode, None, **options).each

    each = scored(apart=lambda predictive, y: ((predictive.mean - y) ** 2).mean())
    assert_equal(each["map/apart"], each["map/mse"])
    assert_equal(each["map/apart_raw"], each["map/mse_raw"])
    with pytest.raises(ValueError, match=r"scores\.nll: expected a name of its own, got one that is taken"):
        scored(nll=lambda predictive, y: y.mean())
    with pytest.raises(
        ValueError, match=r"scores\.all: expected a tensor without dimensions, for a task, got \[3, 1\]"
    ):
        scored(all=lambda predictive, y: y)
    with pytest.raises(ValueError, match=r"scores\.one: expected a tensor without dimensions, for a task, got float"):
        scored(one=lambda predictive, y: 1.0)
