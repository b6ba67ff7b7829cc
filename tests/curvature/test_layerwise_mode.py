"""A structure's own step to the mode against dense matrices, a search along it, and the mode where both are one."""

import pytest
import torch
from oracles import (
    CASES,
    assert_equal,
    dense_jacobian,
    dense_kfac,
    dense_precision,
    episodes,
    initial,
    mlp,
    output_hessian,
    task,
    vector,
)
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from meta_exp.curvature import KFAC, Diagonal
from meta_exp.likelihoods import Gaussian

TAU = 0.3
KINDS = ["mlp-gaussian", "mlp-categorical", "mlp-poisson", "conv4-batch-stride", "resnet12-batch"]
STRUCTURES = {KFAC: dense_kfac, Diagonal: lambda *given: dense_precision(*given).diagonal().diag()}


@pytest.mark.parametrize("moved", [0.0, 0.1])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", KINDS)
def test_step_and_moments_are_those_of_the_dense_structure(name, structure, moved):
    make, shape, outputs, likelihood = CASES[name]
    model = make()
    torch.manual_seed(0)
    theta = initial(model)
    theta_i = {n: v + moved * torch.randn_like(v) for n, v in theta.items()} if moved else theta
    support, query = task(episodes(likelihood, shape, outputs, support=4, query=3))
    posterior = structure(model, shape, TAU).posterior(theta_i, support, likelihood, {}, theta)

    precision = STRUCTURES[structure](likelihood, model, theta_i, support.x, TAU)
    jacobian = dense_jacobian(model, theta_i, support.x).flatten(0, 1)
    at, way = functional_call(model, theta_i, (support.x,)).detach(), vector(theta_i) - vector(theta)

    def energy(change):
        f = at + (jacobian @ change).view_as(at)
        return likelihood.nll(f, support.y) + TAU / 2 * (way + change).square().sum()

    zero = torch.zeros_like(way).requires_grad_()
    [gradient] = torch.autograd.grad(energy(zero), zero)
    step = -torch.linalg.solve(precision, gradient)
    length = torch.zeros((), dtype=torch.float64)
    for _ in range(30):  # Newton's steps along the line, halved where they overshoot
        here = length.clone().requires_grad_()
        [slope] = torch.autograd.grad(energy(here * step), here)
        f = at + (jacobian @ (length * step)).view_as(at)
        along = jacobian @ step
        curvature = along @ torch.block_diag(*output_hessian(likelihood, f)) @ along + TAU * step @ step
        newton = -slope / curvature
        halved = [length + 0.5**k * newton for k in range(12)]
        length = min(halved, key=lambda s: float(energy(s * step)))
    found = posterior.mode()
    assert_equal(vector({n: found[n] for n in theta}), length * step, rtol=1e-6, atol=1e-8)

    new = dense_jacobian(model, theta_i, query.x)
    mean, covariance = posterior.moments(query.x)
    expected = functional_call(model, theta_i, (query.x,)) + new @ (length * step)
    assert_equal(mean, expected, rtol=1e-6, atol=1e-8)
    inverse = torch.linalg.inv(precision)
    assert_equal(covariance, new @ inverse @ new.mT, rtol=1e-6, atol=1e-8)
    assert_equal(posterior.functional_variance(query.x), covariance)
    flat = new.flatten(0, 1)
    assert_equal(posterior.moments(query.x, joint=True), (mean, flat @ inverse @ flat.T), rtol=1e-6, atol=1e-8)


def test_is_the_mode_where_the_structure_is_exact():
    """K-FAC of one linear layer under a Gaussian."""
    model, likelihood = mlp(outputs=2, widths=()), Gaussian(0.7)
    theta, (support, _) = initial(model), task(episodes(Gaussian(), (2,), 2))
    posterior = KFAC(model, (2,), TAU).posterior(theta, support, likelihood, {}, theta)
    jacobian = dense_jacobian(model, theta, support.x).flatten(0, 1)
    residual = (support.y - functional_call(model, theta, (support.x,))).flatten()
    precision = dense_precision(likelihood, model, theta, support.x, TAU)
    expected = torch.linalg.solve(precision, jacobian.T @ residual / 0.7**2)
    assert_equal(vector(posterior.mode()), expected, rtol=1e-7)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_nothing_to_move_for(structure):
    """Targets that theta fits: the step has no length, and its derivatives are finite."""
    model = mlp(outputs=2)
    theta, (support, query) = initial(model), task(episodes(Gaussian(), (2,), 2))
    fitted = support._replace(y=functional_call(model, theta, (support.x,)).detach())

    def mean(params):
        posterior = structure(model, (2,), TAU).posterior(params, fitted, Gaussian(), {}, params)
        return posterior.moments(query.x)[0].sum()

    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    at_theta = functional_call(model, theta, (query.x,)).sum()
    assert_equal(mean(leaves), at_theta)
    assert all(g.isfinite().all() for g in torch.autograd.grad(mean(leaves), list(leaves.values())))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_sample_covariance(structure):
    """Draws are linear in the noise about the mode: A A^T is the structure's H^-1."""
    model, likelihood = mlp(outputs=3), CASES["mlp-categorical"][3]
    theta, (support, _) = initial(model), task(episodes(likelihood, (2,), 3))
    curvature = structure(model, (2,), TAU)
    posterior = curvature.posterior(theta, support, likelihood, {}, theta)
    noise = curvature.noise(torch.Generator().manual_seed(0), (), theta, 4, likelihood)
    zero = tree_map(torch.zeros_like, noise)
    size = vector(theta).numel()
    parts = torch.eye(size).double().split([v.numel() for v in zero.values()], 1)
    basis = {n: part.reshape(size, *zero[n].shape) for n, part in zip(zero, parts, strict=True)}
    draws, mode = vmap(posterior.sample)(basis), posterior.mode()
    assert_equal(posterior.sample(zero), mode)
    a = torch.cat([(draws[n] - mode[n]).flatten(1) for n in theta], 1)
    expected = torch.linalg.inv(STRUCTURES[structure](likelihood, model, theta, support.x, TAU))
    assert_equal(a.T @ a, expected, rtol=1e-6, atol=1e-8)
