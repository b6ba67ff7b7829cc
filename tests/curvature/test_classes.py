"""The classes' blocks against the dense form of the same last layer, in float64, and where logits are sure."""

import pytest
import torch
from oracles import CASES, assert_equal, episodes, initial, mlp, task
from torch.func import grad, vmap

from meta_exp.curvature import LastLayer
from meta_exp.curvature.classes import ClassPosterior, ClassSolver
from meta_exp.curvature.dual import Dual
from meta_exp.curvature.mode import ModePosterior
from meta_exp.curvature.newton import DenseSolver
from meta_exp.likelihoods import Categorical, Probit
from meta_exp.tasks.episode import Examples

TAU = 0.3


def features(points, distinct, classes=4, seed=0):
    """Features of ``points``, the first ``distinct`` of them repeated, and logits, in float64."""
    torch.manual_seed(seed)
    return torch.randn(distinct, 3).double().repeat(2, 1)[:points], torch.randn(points, classes).double()


@pytest.mark.parametrize("distinct", [6, 4])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_solver_equals_the_dense_one(distinct, scale):
    """Also where points are the same, and where the kernel is of low rank and large."""
    a, logits = features(6, distinct)
    kernel, eye = scale * a @ a.T, torch.eye(4).double()
    dense = DenseSolver(torch.kron(kernel, eye), Categorical().hessian_sqrt(logits))
    blocks = ClassSolver(kernel, logits)
    v = torch.randn(24, 5).double()
    assert_equal(blocks.apply(v), dense.apply(v))
    assert_equal(blocks.log_det(), dense.log_det())
    xi = torch.randn(18).double()
    spread = torch.einsum("ncq,nq->nc", Categorical().hessian_sqrt(logits), xi.view(6, 3)).flatten()
    assert_equal(blocks.draw(v[:, 0], spread), dense.draw(v[:, 0], xi), rtol=1e-7, atol=1e-8)
    cross = torch.randn(2, 6).double()
    half = dense.half(torch.kron(cross, eye).T)
    v, u = blocks.explained(cross)
    found = torch.einsum("cnm,cnp,cd->mcpd", v, v, eye) - torch.einsum("cnm,dnp->mcpd", u, u)
    assert_equal(found.reshape(8, 8), half.T @ half)


@pytest.mark.parametrize("moved", [0.0, 0.1])
@pytest.mark.parametrize("name", ["mlp-categorical", "conv4-batch-stride"])
def test_posterior_equals_the_dense_one(name, moved):
    """Mode, moments, log det and, from the same noise, draws."""
    make, shape, outputs, likelihood = CASES[name]
    model = make()
    theta = initial(model)
    theta_i = {n: v + moved * torch.randn_like(v) for n, v in theta.items()} if moved else theta
    support, query = task(episodes(likelihood, shape, outputs, support=4, query=3))
    curvature = LastLayer(model, shape, TAU)
    blocks = curvature.posterior(theta_i, support, likelihood, {}, theta)
    dense = Dual.posterior(curvature, theta_i, support, likelihood, {}, theta)
    assert isinstance(blocks, ClassPosterior)
    assert isinstance(dense, ModePosterior)
    assert_equal(blocks.mode(), dense.mode())
    assert_equal(blocks.log_det_ratio(), dense.log_det_ratio())
    for joint in (False, True):
        assert_equal(blocks.moments(query.x, joint), dense.moments(query.x, joint))
    noise = curvature.noise(torch.Generator().manual_seed(0), (5,), theta, 4, likelihood)
    assert_equal(vmap(blocks.sample)(noise), vmap(dense.sample)(noise))


@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (20, 1), (20, 5)])
def test_sure_logits_stay_finite(ways, shots):
    """Features of a size that makes a random head sure of a wrong class, and a weak prior: the mode is found.

    Value and gradients are finite there; LU of I + W K ended in NaN.
    """
    model, likelihood = mlp(outputs=ways, widths=(30,)), Probit()
    y = torch.arange(ways * shots) % ways
    x = 30 * torch.randn(ways, 2).double()[y] + 0.01 * torch.randn(len(y), 2).double()
    theta, support, queries = initial(model), Examples(x, y), 30 * torch.randn(6, 2).double()
    curvature = LastLayer(model, (2,), 1.0)

    def loss(theta):
        posterior = curvature.posterior(theta, support, likelihood, {}, theta)
        mean, covariance = posterior.moments(queries)
        log_prob = likelihood.predictive(mean[None], covariance).log_prob(torch.arange(6) % ways).sum()
        return posterior.log_det_ratio() - log_prob

    found = curvature.posterior(theta, support, likelihood, {}, theta).found
    assert (model(x).argmax(-1) != y).any()
    assert_equal(found.a, likelihood.pull(found.f, y), rtol=1e-4, atol=1e-5)
    assert found.f.abs().max() > 10
    assert loss(theta).isfinite()
    assert all(value.isfinite().all() for value in grad(loss)(theta).values())


def test_derivatives_at_large_gaps():
    """A gap of a thousand between logits underflows a probability; its derivative is 0 and not NaN."""
    a, _ = features(3, 3)
    logits = torch.tensor([[0.0, 1000.0], [5.0, 0.0], [0.0, 0.0]]).double()

    def total(logits):
        solver = ClassSolver(a @ a.T, logits)
        return solver.log_det() + solver.apply(torch.ones(6, 1).double()).sum()

    assert grad(total)(logits).isfinite().all()
