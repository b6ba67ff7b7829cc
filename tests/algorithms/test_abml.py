"""ABML against the paper's loop in torch.autograd, its special case MAML, and its predictive."""

import pytest
import torch
from oracles import assert_equal, episodes, gradcheck, initial, mlp, nll, starts, task
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta, adapt
from meta_exp.algorithms import ABML, MAML
from meta_exp.curvature import GGN
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.training.meta_gradient import MetaGradient


def made(likelihood, steps=2, tasks=2, **settings):
    """The algorithm with deviations that differ, noise of each task, and a meta-batch."""
    model = mlp(outputs=2)
    settings = {"deviation": 0.5, "kl_weight": 1.0} | settings
    algorithm = ABML(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, **settings)
    theta = initial(model)
    torch.manual_seed(3)
    hyper = {name: value + 0.1 * torch.randn_like(value) for name, value in starts(algorithm.hyperparameters()).items()}
    drawn = [algorithm.training_noise(torch.Generator().manual_seed(i), theta, 4) for i in range(tasks)]
    return algorithm, Meta(theta, hyper, tree_map(lambda *z: torch.stack(z), *drawn)), episodes(likelihood, (2,), 2)


def by_the_paper(algorithm, meta, batch):
    """Algorithm 1 of the paper, with the KL of torch.distributions, draw by draw and task by task."""
    mean0, log0 = ({n: v.clone().requires_grad_() for n, v in part.items()} for part in meta[:2])
    log0 = {name.removeprefix("log_deviation."): value for name, value in log0.items()}
    w, draws, total = algorithm.kl_weight, algorithm.draws_a_step, 0.0
    for i in range(len(batch.query.y)):
        support, query = task(batch, i)

        def expected(loss, mean, log, k, i=i):
            """The mean over draws of ``loss`` at phi."""
            each = []
            for s in range(draws):
                each.append(loss({n: mean[n] + log[n].exp() * meta.noise[n][i, k, s] for n in mean}))
            return torch.stack(each).mean()

        def kl(mean, log):
            pairs = [(Normal(mean[n], log[n].exp()), Normal(mean0[n], log0[n].exp())) for n in mean]
            return sum(kl_divergence(q, p).sum() for q, p in pairs)

        def fit(phi, support=support):
            return algorithm.likelihood.loss(functional_call(algorithm.model, phi, (support.x,)), support.y)

        def score(phi, support=support, query=query):
            parts = (support, query) if algorithm.data == "both" else (query,)
            return sum(nll(algorithm.likelihood, functional_call(algorithm.model, phi, (p.x,)), p.y) for p in parts)

        mean, log = dict(mean0), dict(log0)
        for k in range(algorithm.inner_steps):
            loss = expected(fit, mean, log, k) + w / len(support.y) * kl(mean, log)
            of = [*mean.values(), *log.values()]
            found = iter(torch.autograd.grad(loss, of, create_graph=not algorithm.first_order))
            mean = {n: value - 0.1 * next(found) for n, value in mean.items()}
            log = {n: value - 0.1 * next(found) for n, value in log.items()}
        points = len(query.y) + (len(support.y) if algorithm.data == "both" else 0)
        total = total + (expected(score, mean, log, algorithm.inner_steps) + w * kl(mean, log)) / points
    total = total / len(batch.query.y)
    found = iter(torch.autograd.grad(total, [*mean0.values(), *log0.values()]))
    return total.detach(), {n: next(found) for n in mean0}, {f"log_deviation.{n}": next(found) for n in log0}


@pytest.mark.parametrize(
    "settings", [{}, {"first_order": True}, {"draws_a_step": 3, "data": "query", "kl_weight": 0.1}]
)
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_gradients_are_those_of_the_paper(likelihood, settings):
    algorithm, meta, batch = made(likelihood, **settings)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:3], by_the_paper(algorithm, meta, batch))


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_without_deviations_and_kl_it_is_maml(likelihood):
    algorithm, meta, batch = made(likelihood, data="query", kl_weight=0.0)
    none = meta._replace(hyper={name: torch.full_like(value, -torch.inf) for name, value in meta.hyper.items()})
    maml = MAML(model=algorithm.model, likelihood=likelihood, inner_lr=0.1, inner_steps=2)
    expected = MetaGradient(maml)(Meta(meta.theta, {}), batch)
    assert_equal(MetaGradient(algorithm)(none, batch)[:2], expected[:2])


def test_a_large_kl_weight_keeps_the_prior():
    """q starts at p, where the KL has no gradient, and a way off is taken back."""
    algorithm, meta, batch = made(Gaussian(0.5), steps=1)
    one = meta._replace(noise=tree_map(lambda z: z[0], meta.noise))
    assert algorithm._kl(algorithm.start(one), one) == 0
    settings = {"model": algorithm.model, "likelihood": Gaussian(), "inner_lr": 0.01, "inner_steps": 1}
    free, bound = (adapt(ABML(**settings, kl_weight=w), task(batch).support, one, 20) for w in (0.0, 1.0))
    way = [sum((end[n] - meta.theta[n]).square().sum() for n in meta.theta) for end in (free, bound)]
    assert way[1] < way[0]


def test_gradcheck():
    algorithm, meta, batch = made(Gaussian(0.5))
    one = meta._replace(noise=tree_map(lambda z: z[0], meta.noise))
    assert gradcheck(algorithm, one, task(batch))


def test_predicts_by_draws_from_q():
    """``sample`` is the mixture over networks at mu + s z, ``map`` the network at mu."""
    algorithm, meta, batch = made(Gaussian(0.5))
    one = meta._replace(noise=tree_map(lambda z: z[0], meta.noise))
    support, query = task(batch)
    state = adapt(algorithm, support, one, 5)  # more steps than noise was drawn for
    draws = algorithm.draws(torch.Generator().manual_seed(5), (4,), meta.theta, 4)
    outputs = algorithm.predict("sample", state, query.x, one, draws=draws).outputs
    for s in range(4):
        phi = {n: state[n] + state[f"log_deviation.{n}"].exp() * draws[n][s] for n in meta.theta}
        assert_equal(outputs[s], functional_call(algorithm.model, phi, (query.x,)))
    at_mean = functional_call(algorithm.model, {n: state[n] for n in meta.theta}, (query.x,))
    assert_equal(algorithm.predict("map", state, query.x, one).outputs[0], at_mean)


def test_noise_in_use_is_that_of_the_steps():
    """The objective's draws are training's alone."""
    algorithm, meta, _ = made(Gaussian(0.5), draws_a_step=3)
    for name, value in meta.theta.items():
        assert algorithm.noise(torch.Generator(), meta.theta, 4)[name].shape == (2, 3, *value.shape)
        assert algorithm.training_noise(torch.Generator(), meta.theta, 4)[name].shape == (3, 3, *value.shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": GGN(mlp(), (2,))}, "algorithm=abml: expected no curvature, got curvature=ggn"),
        ({"deviation": 0.0}, "algorithm.deviation: expected a standard deviation > 0, got 0.0"),
        ({"deviation": 1e-30}, "algorithm.deviation: expected a number from 1e-06 to 1000, got 1e-30"),
        ({"draws_a_step": 0}, "algorithm.draws_a_step"),
        ({"kl_weight": -1.0}, "algorithm.kl_weight"),
        ({"data": "support"}, "algorithm.data: expected both or query, got support"),
        ({"inner_lr": 0.0}, "algorithm.inner_lr"),
        ({"inner_steps": 0}, "algorithm.inner_steps"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        ABML(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1} | settings)
