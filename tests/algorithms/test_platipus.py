"""PLATIPUS against the paper's two algorithms in torch.autograd, and its special case MAML."""

import pytest
import torch
from oracles import assert_equal, episodes, gradcheck, initial, mlp, nll, starts, task
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta, adapt
from meta_exp.algorithms import MAML, PLATIPUS
from meta_exp.curvature import GGN
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.training.meta_gradient import MetaGradient


def made(likelihood, steps=2, tasks=2, **settings):
    """The algorithm with learned values away from their starts, noise of each task, and a meta-batch."""
    model = mlp(outputs=2)
    settings = {"kl_weight": 1.0} | settings
    algorithm = PLATIPUS(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, **settings)
    theta = initial(model)
    torch.manual_seed(3)
    hyper = starts(algorithm.hyperparameters())
    hyper = {name: value.double() + 0.1 * torch.randn(value.shape).double() for name, value in hyper.items()}
    drawn = [algorithm.training_noise(torch.Generator().manual_seed(i), theta, 4) for i in range(tasks)]
    return algorithm, Meta(theta, hyper, tree_map(lambda *z: torch.stack(z), *drawn)), episodes(likelihood, (2,), 2)


def step(algorithm, params, data, rate):
    """A gradient step whose graph is kept."""
    loss = algorithm.likelihood.loss(functional_call(algorithm.model, params, (data.x,)), data.y)
    gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    return {name: value - rate * g for (name, value), g in zip(params.items(), gradients, strict=True)}


def deviations(hyper, part):
    return {n.removeprefix(f"log_deviation_{part}."): v.exp() for n, v in hyper.items() if f"deviation_{part}" in n}


def by_the_paper(algorithm, meta, batch):
    """Algorithm 1 of the paper, task by task and draw by draw."""
    theta, hyper = ({n: v.clone().requires_grad_() for n, v in part.items()} for part in meta[:2])
    total = 0.0
    for i in range(len(batch.query.y)):
        support, query = task(batch, i)
        q = step(algorithm, theta, query, hyper["log_start_lr_q"].exp())
        p = step(algorithm, theta, support, hyper["log_start_lr_p"].exp())
        s_q, s_p = deviations(hyper, "q"), deviations(hyper, "p")
        scores = []
        for s in range(algorithm.draws_a_task):
            phi = {name: q[name] + s_q[name] * meta.noise[name][i, s] for name in q}
            for _ in range(algorithm.inner_steps):
                phi = step(algorithm, phi, support, 0.1)
            scores.append(nll(algorithm.likelihood, functional_call(algorithm.model, phi, (query.x,)), query.y))
        kl = sum(kl_divergence(Normal(q[n], s_q[n]), Normal(p[n], s_p[n])).sum() for n in q)
        total = total + (torch.stack(scores).mean() + algorithm.kl_weight * kl) / len(query.y)
    total = total / len(batch.query.y)
    found = iter(torch.autograd.grad(total, [*theta.values(), *hyper.values()]))
    return total.detach(), {name: next(found) for name in theta}, {name: next(found) for name in hyper}


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_gradients_are_those_of_the_paper(likelihood, draws):
    algorithm, meta, batch = made(likelihood, draws_a_task=draws, kl_weight=0.3)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:3], by_the_paper(algorithm, meta, batch))


def test_what_is_used_starts_from_p():
    """Algorithm 2 of the paper: starts drawn given the support set, each adapted to it."""
    algorithm, meta, batch = made(Gaussian(0.5), particles=4)
    noise = algorithm.noise(torch.Generator().manual_seed(9), meta.theta, 4)
    support = task(batch).support
    found = adapt(algorithm, support, meta._replace(noise=noise), 3)
    theta = {name: value.clone().requires_grad_() for name, value in meta.theta.items()}
    p, s_p = step(algorithm, theta, support, meta.hyper["log_start_lr_p"].exp()), deviations(meta.hyper, "p")
    for s in range(4):
        phi = {name: p[name] + s_p[name] * noise[name][s] for name in p}
        for _ in range(3):
            phi = step(algorithm, phi, support, 0.1)
        assert_equal({name: value[s] for name, value in found.items()}, {n: v.detach() for n, v in phi.items()})


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_without_deviations_kl_and_gamma_it_is_maml(likelihood):
    algorithm, meta, batch = made(likelihood, kl_weight=0.0)
    none = meta._replace(hyper={name: torch.full_like(value, -torch.inf) for name, value in meta.hyper.items()})
    maml = MAML(model=algorithm.model, likelihood=likelihood, inner_lr=0.1, inner_steps=2)
    expected = MetaGradient(maml)(Meta(meta.theta, {}), batch)
    assert_equal(MetaGradient(algorithm)(none, batch)[:2], expected[:2])
    noise = algorithm.noise(torch.Generator(), meta.theta, 4)
    found = adapt(algorithm, task(batch).support, none._replace(noise=noise), 3)
    theta_i = adapt(maml, task(batch).support, Meta(meta.theta, {}), 3)
    assert_equal(found, {name: value.expand(10, *value.shape) for name, value in theta_i.items()})


def test_gradcheck():
    algorithm, meta, batch = made(Gaussian(0.5))
    one = meta._replace(noise=tree_map(lambda z: z[0], meta.noise))
    assert gradcheck(algorithm, one, task(batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": GGN(mlp(), (2,))}, "algorithm=platipus: expected no curvature, got curvature=ggn"),
        ({"deviation": 0.0}, "algorithm.deviation"),
        ({"deviation": 1e-30}, "algorithm.deviation"),
        ({"draws_a_task": 0}, "algorithm.draws_a_task"),
        ({"particles": 0}, "algorithm.particles"),
        ({"start_lr": 0.0}, "algorithm.start_lr: expected null or a learning rate > 0, got 0.0"),
        ({"kl_weight": -1.0}, "algorithm.kl_weight"),
        ({"inner_steps": 0}, "algorithm.inner_steps"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        PLATIPUS(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1} | settings)
