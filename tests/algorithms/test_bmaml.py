"""Bayesian MAML against the paper's loops in torch.autograd, its special case MAML, and its particles."""

import math

import pytest
import torch
from oracles import assert_equal, episodes, gradcheck, initial, mlp, nll, starts, task, unvector, vector
from torch.func import functional_call

from meta_exp.adaptation import Meta, adapt
from meta_exp.algorithms import BMAML, MAML
from meta_exp.curvature import GGN
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.tasks.episode import Examples
from meta_exp.training.meta_gradient import MetaGradient


def made(likelihood, steps=2, particles=4, **settings):
    model = mlp(outputs=2)
    algorithm = BMAML(
        model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, particles=particles, **settings
    )
    return algorithm, Meta(initial(model), starts(algorithm.hyperparameters())), episodes(likelihood, (2,), 2)


def svgd(algorithm, particles, data, like, w):
    """A step of SVGD on particles, vectors [P], pair by pair from the definition of the kernel."""
    count, gradients = len(particles), []
    for place in particles:
        loss = algorithm.likelihood.loss(functional_call(algorithm.model, unvector(place, like), (data.x,)), data.y)
        gradients.append(torch.autograd.grad(loss, place, create_graph=True)[0])
    squares = [(a - b).square().sum() for i, a in enumerate(particles) for b in particles[:i]]
    h = (
        sorted(squares, key=lambda square: square.item())[(len(squares) - 1) // 2] / math.log(count + 1)
        if squares
        else torch.tensor(1.0)
    )
    moved = []
    for s in range(count):
        way = 0.0
        for j in range(count):
            kernel = (-(particles[j] - particles[s]).square().sum() / h).exp()
            repels = -2 / h * (particles[j] - particles[s]) * kernel  # its gradient in particle j
            way = way - kernel * gradients[j] + w / len(data.y) * repels
        moved.append(particles[s] + 0.1 / count * way)
    return moved


def by_the_paper(algorithm, meta, batch):
    """Algorithms 1 and 2 of the paper: the mixture's NLL, or the chaser loss, task by task."""
    theta, hyper = ({n: v.clone().requires_grad_() for n, v in part.items()} for part in meta[:2])
    total, w = 0.0, algorithm.repulsion
    for i in range(len(batch.query.y)):
        support, query = task(batch, i)
        others = [{n: hyper[f"particles.{n}"][s] for n in theta} for s in range(algorithm.particles - 1)]
        places = [vector(one) for one in (theta, *others)]
        for _ in range(algorithm.inner_steps):
            places = svgd(algorithm, places, support, theta, w)
        if algorithm.chaser:
            leader = [place.detach().requires_grad_() for place in places]
            both = Examples(torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
            for _ in range(algorithm.leader_steps):
                leader = svgd(algorithm, leader, both, theta, w)
            total = total + sum((a - b.detach()).square().sum() for a, b in zip(places, leader, strict=True))
            continue
        networks = [functional_call(algorithm.model, unvector(place, theta), (query.x,)) for place in places]
        likelihoods = torch.stack([(-nll(algorithm.likelihood, outputs, query.y)).exp() for outputs in networks])
        total = total - likelihoods.mean().log() / len(query.y)
    total = total / len(batch.query.y)
    found = iter(torch.autograd.grad(total, [*theta.values(), *hyper.values()]))
    return total.detach(), {name: next(found) for name in theta}, {name: next(found) for name in hyper}


@pytest.mark.parametrize("settings", [{}, {"particles": 5, "repulsion": 0.3}, {"chaser": True, "leader_steps": 2}])
@pytest.mark.parametrize("likelihood", [Gaussian(1.0), Categorical()])
def test_gradients_are_those_of_the_paper(likelihood, settings):
    algorithm, meta, batch = made(likelihood, **settings)
    found, expected = MetaGradient(algorithm)(meta, batch), by_the_paper(algorithm, meta, batch)
    assert_equal(found[1:3], expected[1:])
    if not algorithm.chaser:  # whose logged value has the likelihood's own term too
        assert_equal(found[0], expected[0])


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_one_particle_is_maml(likelihood):
    algorithm, meta, batch = made(likelihood, particles=1)
    assert not meta.hyper
    maml = MAML(model=algorithm.model, likelihood=likelihood, inner_lr=0.1, inner_steps=2)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:2], MetaGradient(maml)(meta, batch)[:2])


def test_the_kernel_drives_particles_apart():
    """And without it they move as one attracts the others; both on average over particles by the same loss."""
    ways = {}
    for repulsion in (0.0, 100.0):
        algorithm, meta, batch = made(Gaussian(0.5), repulsion=repulsion)
        end = adapt(algorithm, task(batch).support, meta, 3)
        flat = torch.cat([value.flatten(1) for value in end.values()], 1)
        ways[repulsion] = torch.pdist(flat).mean()
    assert ways[100.0] > ways[0.0]


@pytest.mark.parametrize("chaser", [False, True])
def test_gradcheck(chaser):
    """The leader is a constant, so that of the chaser loss only its own derivative can be compared: see the loop."""
    algorithm, meta, batch = made(Gaussian(0.5), particles=3, chaser=chaser)
    if not chaser:
        assert gradcheck(algorithm, meta, task(batch))
    else:
        sigma = Gaussian(0.5, learned=True)
        algorithm = BMAML(model=algorithm.model, likelihood=sigma, inner_lr=0.1, particles=3, chaser=True)
        hyper = {name: value.double() for name, value in starts(algorithm.hyperparameters()).items()}
        found = MetaGradient(algorithm)(Meta(meta.theta, hyper), batch)[2]["log_sigma_noise"]
        assert found != 0, "the likelihood learns from the query set"


def test_starts_are_draws_from_the_same_initial_distribution():
    """Each tensor's entries in other orders; every call gives the same, so that a run can be restored."""
    algorithm, meta, _ = made(Gaussian(0.5))
    starts_of = {name: algorithm.start(meta)[name] for name in meta.theta}
    for name, value in starts_of.items():
        assert torch.equal(value[0], meta.theta[name])
        assert_equal(value.flatten(1).sort(1).values, meta.theta[name].flatten().sort().values.expand(4, -1))
    assert not any(torch.equal(starts_of["1.weight"][a], starts_of["1.weight"][b]) for a in range(4) for b in range(a))
    assert_equal(starts(algorithm.hyperparameters()), meta.hyper, rtol=0, atol=0)


def test_a_drawn_network_is_one_of_the_particles():
    """Each as often as the others."""
    algorithm, meta, batch = made(Gaussian(0.5))
    support, query = task(batch)
    end = adapt(algorithm, support, meta, 1)
    draws = algorithm.draws(torch.Generator().manual_seed(0), (400,), meta.theta, 4)
    drawn = algorithm.predict("sample", end, query.x, meta, draws=draws).outputs
    of = algorithm.predict("map", end, query.x, meta).outputs
    counts = [(drawn == one).all(-1).all(-1).sum().item() for one in of]
    assert sum(counts) == 400
    assert min(counts) > 70


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": GGN(mlp(), (2,))}, "algorithm=bmaml: expected no curvature, got curvature=ggn"),
        ({"repulsion": -1.0}, "algorithm.repulsion"),
        ({"particles": 0}, "algorithm.particles: expected at least 1, got 0"),
        ({"leader_steps": 0}, "algorithm.leader_steps"),
        ({"inner_lr": 0.0}, "algorithm.inner_lr"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        BMAML(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1} | settings)
