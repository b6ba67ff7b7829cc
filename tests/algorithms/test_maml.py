"""MAML's meta-gradient against a plain autograd loop, PyTorch's own batch norm, and the equation of one step."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    CASES,
    adapted,
    assert_equal,
    conv4,
    episodes,
    image_shape,
    initial,
    loop_gradient,
    mlp,
    objective_of,
    starts,
    task,
    unvector,
    vector,
    vmapped_gradient,
    with_torch_norms,
)
from torch.func import functional_call, grad

from meta_exp.adaptation import Meta, adapt
from meta_exp.algorithms import ANIL, BOIL, MAML, MAMLPlusPlus, MetaSGD
from meta_exp.curvature import GGN, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_vmap_equals_autograd_loop(name, steps, first_order):
    """The mean of vmap(grad(task)), every parameter adapted, equals torch.autograd on the tasks one by one."""
    make, shape, outputs, likelihood = CASES[name]
    model, batch = make(), episodes(likelihood, shape, outputs)
    algorithm = MAML(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, first_order=first_order)
    theta = initial(model)
    assert_equal(vmapped_gradient(algorithm, theta, batch), loop_gradient(algorithm, theta, batch))


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_against_fused_batch_norm(downsample):
    """The same with F.batch_norm in the loop's forward passes, where PyTorch's second derivatives are right."""
    model, batch = conv4("batch", downsample), episodes(Categorical(), image_shape(downsample), 3)
    algorithm = MAML(model=model, likelihood=Categorical(), inner_lr=0.1, inner_steps=2)
    theta = initial(model)
    expected = loop_gradient(algorithm, theta, batch, with_torch_norms(model))
    assert_equal(vmapped_gradient(algorithm, theta, batch), expected)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("stay", [["norm"], [-1], ["blocks.1", "norm"]])
def test_layers_that_stay(stay, first_order):
    """Steps of the others alone, by torch.autograd; the outer gradient is that of all."""
    model, batch = conv4(), episodes(Categorical(), image_shape("stride"), 3)
    settings = {"inner_lr": 0.1, "inner_steps": 2, "first_order": first_order}
    algorithm = MAML(model=model, likelihood=Categorical(), stay=stay, **settings)
    theta, kinds = initial(model), {"norm": ".affine.", -1: "head.", "blocks.1": "blocks.1."}
    known = [name for name in theta if any(kinds[choice] in name for choice in stay)]
    assert set(algorithm.adapted) == set(theta) - set(known)
    found = vmapped_gradient(algorithm, theta, batch)
    assert_equal(found, loop_gradient(algorithm, theta, batch, known=known))
    assert all(found[name].any() for name in known)


@pytest.mark.parametrize(
    "kind", [MAML, MetaSGD, MAMLPlusPlus, partial(ANIL, layers=["blocks.3", "head"]), partial(BOIL, layers=[0])]
)
def test_what_stays_is_theta_itself(kind):
    """In every algorithm of MAML's family, whatever else its layers do, and the curvature is without it."""
    model = conv4()
    curvature, stay = GGN(model, image_shape("stride")), ["norm", "blocks.1"]
    algorithm = kind(model=model, likelihood=Categorical(), inner_lr=0.1, stay=stay, curvature=curvature)
    theta = initial(model)
    support = task(episodes(Categorical(), image_shape("stride"), 3)).support
    theta_i = adapt(algorithm, support, Meta(theta, starts(algorithm.hyperparameters())), 2)
    assert list(theta_i) == list(theta)
    for name in theta:
        staying = ".affine." in name or name.startswith("blocks.1.")
        assert (name in algorithm.adapted) <= (not staying)
        assert (name in algorithm.curvature.parameter_names) == (not staying)
        if staying:
            assert torch.equal(theta_i[name], theta[name])
    assert not torch.equal(theta_i["head.weight"], theta["head.weight"])
    assert len(curvature.parameter_names) == len(theta), "the one that was given is as it was"


@pytest.mark.parametrize("first_order", [False, True])
def test_one_step_by_hand(first_order):
    """grad = (I - alpha Hessian of the support loss at theta) grad_query(theta_i); the bracket is I in first order."""
    model, alpha, sigma = mlp(outputs=2), 0.1, 0.5
    episode = task(episodes(Gaussian(), (2,), 2))
    algorithm = MAML(model=model, likelihood=Gaussian(sigma), inner_lr=alpha, first_order=first_order)
    theta = initial(model)

    def support_loss(v):
        return F.mse_loss(functional_call(model, unvector(v, theta), (episode.support.x,)), episode.support.y)

    def query_loss(v):
        residuals = functional_call(model, unvector(v, theta), (episode.query.x,)) - episode.query.y
        return residuals.square().sum() / (2 * sigma**2) / len(episode.query.y)

    start = vector(theta)
    theta_i = start - alpha * grad(support_loss)(start)
    expected = grad(query_loss)(theta_i)
    if not first_order:
        expected = expected - alpha * torch.autograd.functional.hessian(support_loss, start) @ expected
    assert_equal(vector(grad(lambda p: objective_of(algorithm, p, {}, episode)[0])(theta)), expected)
    assert_equal(vector(adapted(algorithm, theta, episode.support, 1)), theta_i)


def test_objective_is_a_mean_over_queries():
    """Showing every query twice changes nothing, so that the outer learning rate keeps its meaning."""
    model = mlp(outputs=3)
    episode = task(episodes(Categorical(), (2,), 3))
    algorithm = MAML(model=model, likelihood=Categorical(), inner_lr=0.1)
    twice = episode._replace(query=type(episode.query)(*(t.repeat(2, *[1] * (t.ndim - 1)) for t in episode.query)))
    once, both = (objective_of(algorithm, initial(model), {}, e)[0] for e in (episode, twice))
    assert_equal(both, once)
    logits = algorithm.network(adapted(algorithm, initial(model), episode.support, 1), episode.query.x)
    assert_equal(once, F.cross_entropy(logits, episode.query.y))


def test_learned_noise():
    """d objective / d log sigma = mean over points of (d - squared residuals / sigma^2)."""
    model, episode = mlp(outputs=2), task(episodes(Gaussian(), (2,), 2))
    algorithm = MAML(model=model, likelihood=Gaussian(learned=True), inner_lr=0.1)
    theta, hyper = initial(model), {"log_sigma_noise": torch.tensor(-0.7).double()}
    found = grad(lambda h: objective_of(algorithm, theta, h, episode)[0])(hyper)["log_sigma_noise"]
    residuals = algorithm.network(adapted(algorithm, theta, episode.support, 1), episode.query.x) - episode.query.y
    expected = 2 - residuals.square().sum() / hyper["log_sigma_noise"].mul(2).exp() / len(residuals)
    assert_equal(found, expected)


@pytest.mark.parametrize(("key", "value"), [("inner_lr", 0.0), ("inner_steps", 0)])
def test_refusals(key, value):
    with pytest.raises(ValueError, match=f"algorithm.{key}"):
        MAML(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1, key: value})


@pytest.mark.parametrize(
    ("structure", "stay", "message"),
    [
        (GGN, ["1.weight"], r"algorithm\.stay: expected layers among 1, 3, 5, or their places, got 1.weight"),
        (GGN, [5], r"algorithm\.stay: expected layers among 1, 3, 5, or their places, got 5"),
        (None, ["linear"], r"algorithm\.stay: expected a choice that leaves a layer to adapt, got \['linear'\]"),
        (GGN, [0, 1, 2], r"algorithm\.stay: expected a choice that leaves the curvature one of its layers, 1, 3"),
        (LastLayer, [-1], r"algorithm\.stay: expected a choice that leaves the curvature one of its layers, 5, got"),
    ],
)
def test_refuses_that_nothing_moves(structure, stay, message):
    model = mlp()
    curvature = structure and structure(model, (2,))
    with pytest.raises(ValueError, match=message):
        MAML(model=model, likelihood=Gaussian(), inner_lr=0.1, stay=stay, curvature=curvature)


def test_refuses_a_learned_tau():
    """MAML's objective holds no tau; the remedy is named."""
    model = mlp()
    with pytest.raises(
        ValueError, match=r"curvature\.learned=true: expected algorithm=llama.*tau is fitted after training"
    ):
        MAML(model=model, likelihood=Gaussian(), inner_lr=0.1, curvature=GGN(model, (2,), learned=True))
