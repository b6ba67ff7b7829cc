"""The posterior at the mode against Newton's method on the linear model's parameters, and dense matrices."""

import math

import pytest
import torch
from oracles import (
    CASES,
    assert_equal,
    dense_jacobian,
    episodes,
    initial,
    mlp,
    output_hessian,
    task,
    unvector,
    vector,
)
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from meta_exp.curvature import GGN, LastLayer
from meta_exp.likelihoods import Categorical, Probit

TAU = 0.3
KINDS = ["mlp-gaussian", "mlp-categorical", "mlp-poisson", "conv4-batch-stride", "resnet12-batch"]


def case(name, structure=GGN, moved=0.1, likelihood=None):
    """A posterior, with theta_i a random way from theta, and what a dense computation needs."""
    make, shape, outputs, default = CASES[name]
    likelihood = likelihood or default
    torch.manual_seed(0)
    model = make()
    theta = initial(model)
    theta_i = {n: v + moved * torch.randn_like(v) for n, v in theta.items()} if moved else theta
    episode = task(episodes(likelihood, shape, outputs, support=4, query=3))
    curvature = structure(model, shape, TAU)
    posterior = curvature.posterior(theta_i, episode.support, likelihood, {}, theta)
    return model, theta, theta_i, episode, likelihood, posterior, curvature


def dense_mode(model, theta, theta_i, data, likelihood, names=None):
    """Mode and precision of the linear model by Newton's steps on all parameters, halved where they overshoot."""
    names = names or list(theta)
    start, at = (vector({n: part[n] for n in names}) for part in (theta, theta_i))
    jacobian = dense_jacobian(model, theta_i, data.x)[..., columns(theta, names)]
    outputs = functional_call(model, theta_i, (data.x,))
    jacobian = jacobian.flatten(0, 1)

    def linear(phi):
        return outputs + (jacobian @ (phi - at)).view_as(outputs)

    def energy(phi):
        return likelihood.nll(linear(phi), data.y) + TAU / 2 * (phi - start).square().sum()

    phi = start.clone()
    for _ in range(25):
        phi = phi.detach().requires_grad_()
        [gradient] = torch.autograd.grad(energy(phi), phi)
        weights = torch.block_diag(*output_hessian(likelihood, linear(phi).detach()))
        precision = jacobian.T @ weights @ jacobian + TAU * torch.eye(len(phi)).double()
        way = torch.linalg.solve(precision, gradient)
        scale = min((0.5**k for k in range(12)), key=lambda s: float(energy((phi - s * way).detach())))
        phi = phi - scale * way
    phi = phi.detach()
    weights = torch.block_diag(*output_hessian(likelihood, linear(phi)))
    return phi, jacobian.T @ weights @ jacobian + TAU * torch.eye(len(phi)).double()


def columns(theta, names):
    places = unvector(torch.arange(vector(theta).numel()), theta)
    return torch.cat([places[name].flatten() for name in names])


@pytest.mark.parametrize("moved", [0.0, 0.1])
@pytest.mark.parametrize("structure", [GGN, LastLayer])
@pytest.mark.parametrize("name", KINDS)
def test_mode_and_moments_are_those_of_the_dense_model(name, structure, moved):
    model, theta, theta_i, episode, likelihood, posterior, curvature = case(name, structure, moved)
    names = curvature.parameter_names
    mode, precision = dense_mode(model, theta, theta_i, episode.support, likelihood, names)
    at = vector({n: theta_i[n] for n in names})
    assert_equal(vector({n: posterior.mode()[n] for n in names}), mode - at, rtol=1e-6, atol=1e-7)
    ratio = torch.linalg.slogdet(precision).logabsdet - len(precision) * math.log(TAU)
    assert_equal(posterior.log_det_ratio(), ratio, rtol=1e-6, atol=1e-7)
    jacobian = dense_jacobian(model, theta_i, episode.query.x)[..., columns(theta, names)]
    expected = functional_call(model, theta_i, (episode.query.x,)) + jacobian @ (mode - at)
    mean, variance = posterior.moments(episode.query.x)
    assert_equal(mean, expected, rtol=1e-6, atol=1e-7)
    covariance = torch.linalg.inv(precision)
    assert_equal(variance, jacobian @ covariance @ jacobian.mT, rtol=1e-6, atol=1e-7)
    assert_equal(posterior.functional_variance(episode.query.x), variance)
    flat = jacobian.flatten(0, 1)
    joint = posterior.moments(episode.query.x, joint=True)
    assert_equal(joint, (mean, flat @ covariance @ flat.T), rtol=1e-6, atol=1e-7)


def test_steps_that_overshoot_are_damped():
    """Many classes and a weak prior: the mode is found, and everything is finite."""
    torch.manual_seed(0)
    model = mlp(outputs=20, widths=(30,))
    data = task(episodes(Categorical(), (2,), 20, support=20)).support
    data = data._replace(x=10 * data.x, y=torch.arange(20))
    posterior = GGN(model, (2,), 1e-2).posterior(initial(model), data, Categorical(), {}, initial(model))
    found = posterior.found
    assert_equal(found.a, Categorical().pull(found.f, data.y), rtol=1e-4, atol=1e-5)
    assert posterior.log_det_ratio().isfinite()


@pytest.mark.parametrize("name", ["mlp-gaussian", "mlp-categorical"])
def test_sample_covariance(name):
    """Draws are linear in the noise about the mode: A A^T is H^-1."""
    model, theta, theta_i, episode, likelihood, posterior, curvature = case(name)
    _, precision = dense_mode(model, theta, theta_i, episode.support, likelihood)
    noise = curvature.noise(torch.Generator().manual_seed(0), (), theta, 4, likelihood)
    zero = tree_map(torch.zeros_like, noise)
    numbers = [*zero.prior.values(), zero.data]
    eye = torch.eye(sum(v.numel() for v in numbers)).double()
    parts = eye.split([v.numel() for v in numbers], 1)
    *prior, data = (part.view(-1, *v.shape) for part, v in zip(parts, numbers, strict=True))
    draws = vmap(posterior.sample)(type(noise)(dict(zip(zero.prior, prior, strict=True)), data))
    mode = posterior.mode()
    assert_equal(posterior.sample(zero), mode)
    a = torch.cat([(draws[n] - mode[n]).flatten(1) for n in theta], 1)
    assert_equal(a.T @ a, torch.linalg.inv(precision), rtol=1e-6, atol=1e-8)


def test_temperature_is_for_predictions_alone():
    assert Probit(temperature=3.0).nll is not None
    outputs, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 1])
    assert_equal(Probit(temperature=3.0).nll(outputs, y), Categorical().nll(outputs, y))
    covariance = torch.diag_embed(torch.rand(4, 3).double())
    found = Probit(temperature=3.0).predictive(outputs[None], covariance).probabilities
    scaled = 3 * outputs / (1 + torch.pi / 8 * covariance.diagonal(dim1=-2, dim2=-1)).sqrt()
    assert_equal(found, scaled.softmax(-1))
