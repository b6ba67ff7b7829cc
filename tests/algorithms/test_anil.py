"""ANIL and BOIL: the layers that adapt are those that are named, and the rest is MAML's."""

import pytest
import torch
from oracles import assert_equal, conv4, episodes, gradcheck, image_shape, initial, mlp, nll, task
from torch.func import functional_call

from meta_exp.adaptation import Meta, adapt
from meta_exp.algorithms import ANIL, BOIL, MAML
from meta_exp.curvature import GGN, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.training.meta_gradient import MetaGradient

HEAD = ["5.weight", "5.bias"]


def made(kind, likelihood, steps=2, **settings):
    model = mlp(outputs=2)
    algorithm = kind(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, **settings)
    return algorithm, Meta(initial(model), {}), episodes(likelihood, (2,), 2)


def by_the_paper(algorithm, theta, batch, adapted):
    """MAML's loop with gradients of the ``adapted`` parameters alone in each step, and of all behind it."""
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    total = 0.0
    for i in range(len(batch.query.y)):
        support, query = task(batch, i)
        params = dict(leaves)
        for _ in range(algorithm.inner_steps):
            loss = algorithm.likelihood.loss(functional_call(algorithm.model, params, (support.x,)), support.y)
            wanted = [params[name] for name in adapted]
            gradients = torch.autograd.grad(loss, wanted, create_graph=not algorithm.first_order)
            params |= {name: params[name] - 0.1 * g for name, g in zip(adapted, gradients, strict=True)}
        total = total + nll(algorithm.likelihood, functional_call(algorithm.model, params, (query.x,)), query.y)
    total = total / len(batch.query.y) / batch.query.y.shape[1]
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return total.detach(), dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", [ANIL, BOIL])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_gradients_are_those_of_the_paper(likelihood, kind, first_order):
    algorithm, meta, batch = made(kind, likelihood, first_order=first_order)
    adapted = HEAD if kind is ANIL else [name for name in meta.theta if name not in HEAD]
    assert_equal(MetaGradient(algorithm)(meta, batch)[:2], by_the_paper(algorithm, meta.theta, batch, adapted))


@pytest.mark.parametrize(("kind", "layers"), [(ANIL, [0, 1, 2]), (ANIL, ["1", -1, 1]), (BOIL, [])])
def test_all_layers_are_maml(kind, layers):
    algorithm, meta, batch = made(kind, Gaussian(0.5), layers=layers)
    maml = MAML(model=algorithm.model, likelihood=Gaussian(0.5), inner_lr=0.1, inner_steps=2)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:2], MetaGradient(maml)(meta, batch)[:2])


@pytest.mark.parametrize("kind", [ANIL, BOIL])
@pytest.mark.parametrize("layers", [[-1], ["head"], ["blocks.3", -1], ["blocks"], [0, "blocks.1.1"]])
def test_what_stays_and_what_moves(kind, layers):
    """By name, by a block's name, and by place, where a norm is a layer beside its convolution."""
    model = conv4()
    algorithm = kind(model=model, likelihood=Categorical(), inner_lr=0.1, layers=layers)
    theta = initial(model)
    support = task(episodes(Categorical(), image_shape("stride"), 3)).support
    theta_i = adapt(algorithm, support, Meta(theta, {}), 2)
    prefix = {-1: "head.", 0: "blocks.0.0."}
    named = tuple(prefix[layer] if isinstance(layer, int) else f"{layer}." for layer in layers)
    moved = {name for name in theta if not torch.equal(theta[name], theta_i[name])}
    chosen = {name for name in theta if name.startswith(named)}
    expected = chosen if kind is ANIL else set(theta) - chosen
    assert set(algorithm.adapted) == expected
    silent = {name for name in expected if name.startswith("blocks") and name.endswith(".0.bias")}  # before a norm
    assert moved >= expected - silent
    assert moved <= expected


@pytest.mark.parametrize("kind", [ANIL, BOIL])
def test_gradcheck(kind):
    algorithm, meta, batch = made(kind, Gaussian(0.5))
    assert gradcheck(algorithm, meta, task(batch))


@pytest.mark.parametrize("structure", [GGN, LastLayer])
@pytest.mark.parametrize("kind", [ANIL, BOIL])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_gradcheck_at_the_mode_of_all_layers(likelihood, kind, structure):
    """The curvature's layers are not those that adapt: the way back to theta is of some of them."""
    model = mlp(outputs=2)
    curvature = structure(model, (2,), 0.3)
    settings = {"inner_lr": 0.1, "mode": True, "curvature": curvature}
    algorithm = kind(model=model, likelihood=likelihood, **settings)
    assert gradcheck(algorithm, Meta(initial(model), {}), task(episodes(likelihood, (2,), 2)))


def test_frozen_parameters_are_not_among_them():
    model = mlp(outputs=2)
    for name in HEAD[:1]:
        model.get_parameter(name).requires_grad_(False)
    assert ANIL(model=model, likelihood=Gaussian(), inner_lr=0.1).adapted == ("5.bias",)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ANIL, {"layers": [3]}, "algorithm.layers: expected layers among 1, 3, 5, or their places, got 3"),
        (ANIL, {"layers": ["head"]}, "algorithm.layers: expected layers among 1, 3, 5, or their places, got head"),
        (ANIL, {"layers": []}, "algorithm.layers: expected a choice that leaves a layer to adapt"),
        (BOIL, {"layers": [0, 1, 2]}, "algorithm.layers: expected a choice that leaves a layer to adapt"),
        (ANIL, {"inner_loop": "gauss_newton"}, "algorithm.inner_loop: expected gradient, got gauss_newton"),
    ],
)
def test_refusals(kind, settings, message):
    model = mlp()
    settings = {"model": model, "likelihood": Gaussian(), "curvature": GGN(model, (2,)), "inner_lr": 0.1} | settings
    with pytest.raises(ValueError, match=message):
        kind(**settings)
