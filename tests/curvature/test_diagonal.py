"""The diagonal structure against the diagonal of the dense GGN, its own covariances, and backward through both."""

import pytest
import torch
from oracles import (
    CASES,
    assert_equal,
    dense_jacobian,
    dense_log_det_ratio,
    dense_precision,
    examples,
    initial,
    mlp,
    noise_covariance,
    unlabelled,
    vector,
)
from torch.func import grad, vmap

from meta_exp.curvature import GGN, Diagonal
from meta_exp.likelihoods import Categorical, Gaussian


@pytest.fixture(params=CASES)
def case(request):
    """A network with data, and the diagonal of the dense H as a matrix."""
    make, shape, outputs, likelihood = CASES[request.param]
    model = make()
    torch.manual_seed(2)
    data = examples(likelihood, shape, (4,), outputs)
    diagonal = dense_precision(likelihood, model, initial(model), data.x, 0.3).diag()
    return model, shape, likelihood, data, diagonal


def test_equals_the_dense_diagonal(case):
    model, shape, likelihood, data, diagonal = case
    posterior = Diagonal(model, shape, 0.3).posterior(initial(model), data, likelihood, {})
    assert_equal(posterior.log_det_ratio(), dense_log_det_ratio(diagonal.diag(), 0.3))
    assert posterior.diagnostics() == {}


def test_posterior(case):
    """Draws have covariance H^-1 exactly, and the linearised outputs at new inputs J* H^-1 J*^T."""
    model, shape, likelihood, data, diagonal = case
    params, new = initial(model), torch.randn(3, *shape).double()
    posterior = Diagonal(model, shape, 0.3).posterior(params, data, likelihood, {})
    assert_equal(noise_covariance(posterior, params), (1 / diagonal).diag())
    jacobian = dense_jacobian(model, params, new)
    assert_equal(posterior.functional_variance(new), (jacobian / diagonal) @ jacobian.mT)


def test_bounds_the_exact_log_det(case):
    """Hadamard's inequality: the determinant is at most the product of the diagonal."""
    model, shape, likelihood, data, _ = case
    ours, exact = (
        structure(model, shape, 0.3).posterior(initial(model), data, likelihood, {}).log_det_ratio()
        for structure in (Diagonal, GGN)
    )
    assert ours > exact


@pytest.mark.parametrize("name", ["mlp-gaussian", "mlp-categorical", "conv4-batch-stride", "conv4-group-max_pool"])
def test_vmap_over_tasks(name):
    """A posterior for each of three tasks under vmap equals the tasks one by one, log det and gradient."""
    make, shape, _, likelihood = CASES[name]
    model = make()
    curvature = Diagonal(model, shape, 0.3)
    x = torch.randn(3, 4, *shape).double()
    params = {name: p + 0.1 * torch.randn(3, *p.shape).double() for name, p in initial(model).items()}

    def function(params, x):
        return curvature.posterior(params, unlabelled(x), likelihood, {}).log_det_ratio()

    found, gradients = vmap(function)(params, x), vmap(grad(function))(params, x)
    for i in range(3):
        one = {name: p[i] for name, p in params.items()}
        assert_equal(found[i], function(one, x[i]))
        assert_equal({name: g[i] for name, g in gradients.items()}, grad(function)(one, x[i]))


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e6])
def test_single_precision(tau, likelihood):
    """In float32 log det and its gradient are close to those of float64."""

    def log_det(params, model, x):
        return Diagonal(model, (2,), tau).posterior(params, unlabelled(x), likelihood, {}).log_det_ratio()

    model = mlp(outputs=3, widths=(20, 20))
    params, x = initial(model), torch.randn(5, 2).double()
    expected, gradient = log_det(params, model, x), grad(log_det)(params, model, x)
    params, x, model = {name: p.float() for name, p in params.items()}, x.float(), model.float()
    assert_equal(log_det(params, model, x), expected, rtol=1e-5)
    error = vector(grad(log_det)(params, model, x)) - vector(gradient)
    assert error.norm() < 1e-5 * vector(gradient).norm()


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_refuses_precisions_that_are_not_positive(tau):
    with pytest.raises(ValueError, match=r"curvature\.prior_precision"):
        Diagonal(mlp(), (2,), tau)
