"""The dual posterior against H^-1 of the dense matrix, in float64, and its behaviour in float32."""

import pytest
import torch
from oracles import CASES, assert_equal, dense_jacobian, dense_precision, initial, mlp, starts, unlabelled, vector
from torch.func import grad, vmap

from meta_exp.curvature import GGN, KFAC, Diagonal, LastLayer
from meta_exp.curvature.dual import DualNoise
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.tasks.episode import Examples

TAU = 0.3
SETTINGS = [(name, GGN) for name in CASES if "max_pool" not in name] + [
    ("mlp-gaussian", LastLayer),
    ("mlp-categorical", LastLayer),
    ("conv4-batch-stride", LastLayer),
]


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"{setting[0]}-{setting[1].__name__}")
def case(request):
    """A posterior, the parameters that it treats, H over them, the dense Jacobian at new inputs, and those inputs."""
    name, structure = request.param
    make, shape, _, likelihood = CASES[name]
    torch.manual_seed(0)
    model = make()
    params, x, new = initial(model), torch.randn(4, *shape).double(), torch.randn(3, *shape).double()
    posterior = structure(model, shape, TAU).posterior(params, unlabelled(x), likelihood, {})
    treated = params if structure is GGN else dict(list(params.items())[-2:])
    count = vector(treated).numel()
    precision = dense_precision(likelihood, model, params, x, TAU)[-count:, -count:]
    return posterior, treated, precision, dense_jacobian(model, params, new)[..., -count:], new


def test_sample_covariance(case):
    """A draw is A e, linear in the noise e, and A A^T = H^-1 exactly: A is built from unit vectors of noise."""
    posterior, treated, precision, _, _ = case
    sizes = [p.numel() for p in treated.values()]
    rows = len(posterior.factor)
    basis = torch.eye(sum(sizes) + rows).double()
    *parts, data = basis.split([*sizes, rows], dim=1)
    prior = {name: part.view(-1, *p.shape) for part, (name, p) in zip(parts, treated.items(), strict=True)}
    draws = vmap(posterior.sample)(DualNoise(prior, data))
    a = torch.cat([draws[name].flatten(1) for name in treated], 1)
    assert_equal(a.T @ a, torch.linalg.inv(precision))


def test_functional_variance(case):
    """The linearised outputs' covariances at new inputs are J* H^-1 J*^T."""
    posterior, _, precision, jacobian, new = case
    expected = jacobian @ torch.linalg.inv(precision) @ jacobian.mT
    assert_equal(posterior.functional_variance(new), expected)


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical()])
@pytest.mark.parametrize("structure", [GGN, LastLayer])
def test_noise(structure, likelihood):
    """Noise has the shapes that ``sample`` takes, the asked leading shape, and repeats with its generator's seed."""
    model = mlp(outputs=3)
    curvature, params = structure(model, (2,)), initial(model)
    first, second = (curvature.noise(torch.Generator().manual_seed(7), (5,), params, 4, likelihood) for _ in range(2))
    assert_equal(first, second, rtol=0, atol=0)
    draws = vmap(curvature.posterior(params, unlabelled(torch.randn(4, 2).double()), likelihood, {}).sample)(first)
    assert {name: tuple(d.shape) for name, d in draws.items()} == {name: (5, *params[name].shape) for name in draws}
    assert set(draws) == set(params if structure is GGN else list(params)[-2:])


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e3, 1e6])
def test_single_precision(tau, likelihood):
    """In float32 log det and its gradient are close to those of float64 over nine decades of tau."""

    def log_det(params, model, x):
        return GGN(model, (2,), tau).posterior(params, unlabelled(x), likelihood, {}).log_det_ratio()

    model = mlp(outputs=3, widths=(20, 20))
    params, x = initial(model), torch.randn(5, 2).double()
    expected, gradient = log_det(params, model, x), grad(log_det)(params, model, x)
    params, x, model = {name: p.float() for name, p in params.items()}, x.float(), model.float()
    assert_equal(log_det(params, model, x), expected, rtol=1e-5)
    error = vector(grad(log_det)(params, model, x)) - vector(gradient)
    assert error.norm() < 1e-5 * vector(gradient).norm()


@pytest.mark.parametrize("structure", [GGN, LastLayer, KFAC, Diagonal])
def test_no_underflow(structure):
    """With 100 000 parameters, where det(H) is 0, log det and gradient in float32 are those of float64, and not 0."""
    tau, tolerance = 1e-3, 1e-4
    model = mlp(outputs=5, widths=(116, 100), inputs=784)
    assert torch.tensor(tau).pow(vector(initial(model)).numel()) == 0
    x = torch.randn(5, 784, generator=torch.Generator().manual_seed(0)).double()

    def log_det(params, model, x):
        curvature = structure(model, (784,), tau)
        return curvature.posterior(params, unlabelled(x), Categorical(), {}).log_det_ratio()

    params = initial(model)
    assert vector(params).numel() > 100_000
    expected, gradient = log_det(params, model, x), grad(log_det)(params, model, x)
    model, params, x = model.float(), {name: p.float() for name, p in params.items()}, x.float()
    assert_equal(log_det(params, model, x), expected, rtol=tolerance, atol=0)
    error = vector(grad(log_det)(params, model, x)) - vector(gradient)
    assert error.norm() < tolerance * vector(gradient).norm()
    assert all(g.norm() > 0 for name, g in gradient.items() if structure is not LastLayer or name.startswith("5"))


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("structure", [GGN, LastLayer, KFAC, Diagonal])
@pytest.mark.parametrize("tau", [1e-2, 1e-6, 1e-9])
def test_equal_points_nearly_no_noise_and_a_weak_prior(structure, tau, mode):
    """Every point twice is once at sigma / sqrt 2, whose G has full rank: as there, or NaN, but never wrong.

    The dual's small matrix has eigenvalues of 1 beside those of |J|^2 / (sigma^2 tau), which float64 cannot hold
    beyond 1e16. K-FAC and the diagonal have no such matrix, and hold. Variances with the noise stay positive.
    """
    if mode and not structure.finds_mode:
        pytest.skip("finds no mode")
    torch.manual_seed(1)
    model, x, sigma = mlp(outputs=2, widths=(20, 20)), torch.randn(5, 2).double(), 1e-4
    params, y, new = initial(model), torch.randn(5, 2).double(), torch.cat([x, torch.randn(3, 2).double()])
    theta = {"prior_mean": {name: p + 0.1 for name, p in params.items()}} if mode else {}
    found, expected = (
        structure(model, (2,), tau).posterior(params, Examples(x, y), Gaussian(sigma), {}, **theta)
        for x, y, sigma in ((x.repeat(2, 1), y.repeat(2, 1), sigma), (x, y, sigma / 2**0.5))
    )
    exact = structure in (KFAC, Diagonal)
    lost = found.log_det_ratio().isnan()
    assert lost == (not exact and tau < 1e-7)
    variance = found.functional_variance(new)
    assert variance.isnan().all() == lost
    if lost:
        return
    assert_equal(found.log_det_ratio(), expected.log_det_ratio(), rtol=1e-6 if exact else 1e-2)
    noisy = variance + sigma**2 * torch.eye(2).double()
    assert torch.linalg.cholesky_ex(noisy).info.max() == 0
    expected = expected.functional_variance(new) + sigma**2 * torch.eye(2).double()
    assert_equal(noisy, expected, rtol=0.5, atol=sigma**2 / 2)
    predictive = Gaussian(sigma).predictive(new.new_zeros(1, 8, 2).float(), variance)
    assert predictive.log_prob(torch.zeros(8, 2)).isfinite().all()


def test_hyperparameters():
    """tau is fixed, or exp(log_prior_precision) where it is learned."""
    model = mlp()
    assert GGN(model, (2,), 0.1).hyperparameters() == {}
    assert GGN(model, (2,), 0.1).tau({}) == 0.1
    learned = GGN(model, (2,), 0.25, learned=True)
    torch.testing.assert_close(learned.tau(starts(learned.hyperparameters())), torch.tensor(0.25))


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("structure", [GGN, LastLayer])
def test_refuses_precisions_that_are_not_positive(structure, tau):
    with pytest.raises(ValueError, match=r"curvature\.prior_precision"):
        structure(mlp(), (2,), tau)
