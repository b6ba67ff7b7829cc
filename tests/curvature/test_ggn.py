"""The exact GGN's log det against dense matrices, two independent libraries, and equations by hand."""

import copy
import math

import pytest
import torch
from oracles import (
    CASES,
    LIBRARY_CASES,
    assert_equal,
    dense_log_det_ratio,
    dense_precision,
    examples,
    initial,
    mlp,
    output_hessian,
    unlabelled,
    vector,
)
from torch import nn
from torch.func import functional_call, grad, vmap

from meta_exp.curvature import GGN
from meta_exp.likelihoods import Categorical, Gaussian

TAUS = [1e-4, 0.3, 1.0, 100.0]


def log_det(model, shape, tau, x, likelihood):
    """The log det ratio as a function of the parameters."""
    curvature = GGN(model, shape, tau)
    return lambda params: curvature.posterior(params, unlabelled(x), likelihood, {}).log_det_ratio()


def random_case(name, points=4):
    """A network of ``CASES`` with data: model, input shape, likelihood, examples."""
    make, shape, outputs, likelihood = CASES[name]
    model = make()
    torch.manual_seed(2)
    return model, shape, likelihood, examples(likelihood, shape, (points,), outputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tau", [0.3, 100.0])
def test_equals_dense(name, tau):
    """log det M (R x R) equals log det H - P log tau by LU of the P x P matrix."""
    model, shape, likelihood, data = random_case(name)
    expected = dense_log_det_ratio(dense_precision(likelihood, model, initial(model), data.x, tau), tau)
    assert_equal(log_det(model, shape, tau, data.x, likelihood)(initial(model)), expected)


@pytest.mark.filterwarnings("ignore")  # the library's and PyTorch's own deprecations
@pytest.mark.parametrize("name", LIBRARY_CASES)
def test_equals_curvlinops(name):
    """The same against curvlinops' GGN, whose matrix columns are its products with unit vectors."""
    from curvlinops import GGNLinearOperator

    model, shape, likelihood, data = random_case(name)
    oracle = copy.deepcopy(model)
    if isinstance(likelihood, Categorical):
        loss, factor = nn.CrossEntropyLoss(reduction="sum"), 1.0
    else:
        loss, factor = nn.MSELoss(reduction="sum"), 1 / (2 * likelihood.sigma_noise**2)
    operator = GGNLinearOperator(oracle, loss, list(oracle.parameters()), [tuple(data)], check_deterministic=False)
    eye = torch.eye(operator.shape[1]).double()
    expected = dense_log_det_ratio(factor * (operator @ eye) + 0.3 * eye, 0.3)
    assert_equal(log_det(model, shape, 0.3, data.x, likelihood)(initial(model)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mlp-gaussian", "mlp-categorical"])
def test_equals_laplace_torch(name):
    """Log det and linearised variance against laplace-torch's full GGN posterior, which it sums in float32."""
    from laplace import Laplace

    model, shape, likelihood, data = random_case(name)
    kind = {"likelihood": "classification"}
    if isinstance(likelihood, Gaussian):
        kind = {"likelihood": "regression", "sigma_noise": likelihood.sigma_noise}
    oracle = Laplace(
        copy.deepcopy(model), subset_of_weights="all", hessian_structure="full", prior_precision=0.25, **kind
    )
    oracle.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=len(data.x)))
    posterior = GGN(model, shape, 0.25).posterior(initial(model), data, likelihood, {})
    assert_equal(posterior.log_det_ratio(), dense_log_det_ratio(oracle.posterior_precision, 0.25), rtol=1e-6)
    new = torch.randn(3, *shape).double()
    assert_equal(posterior.functional_variance(new), oracle._glm_predictive_distribution(new)[1], rtol=1e-5)


@pytest.mark.parametrize("weights", [(0.7, -1.2), (0.2, 0.4)])
@pytest.mark.parametrize("tau", TAUS)
def test_two_weights_by_hand(weights, tau):
    """f = v relu(u x), x > 0, u > 0, regression: J_n = x_n (v, u), so with X = sum x_n^2 / sigma^2

    det H / tau^2 = 1 + X (u^2 + v^2) / tau, whose derivatives have the signs of u and v: smaller weights are flatter.
    """
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    u, v = weights
    params = {"0.weight": torch.tensor([[u]]).double(), "2.weight": torch.tensor([[v]]).double()}
    x, sigma = torch.tensor([[0.5], [1.0], [2.0]]).double(), 0.5
    scale = x.square().sum().item() / sigma**2
    ratio = 1 + scale * (u**2 + v**2) / tau

    function = log_det(model, (1,), tau, x, Gaussian(sigma))
    assert_equal(function(params), torch.tensor(math.log(ratio)).double(), rtol=1e-6)
    expected = torch.tensor([2 * scale * u / tau / ratio, 2 * scale * v / tau / ratio]).double()
    assert_equal(vector(grad(function)(params)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradient_by_differences(name):
    """The log det's gradient along a random direction against a central difference."""
    model, shape, likelihood, data = random_case(name)
    function, params = log_det(model, shape, 0.3, data.x, likelihood), initial(model)
    along = {name: torch.randn_like(p) for name, p in params.items()}
    ahead, behind = ({name: p + step * along[name] for name, p in params.items()} for step in (1e-6, -1e-6))
    slope = vector(grad(function)(params)) @ vector(along)
    assert slope.abs() > 1e-3
    assert_equal(slope, (function(ahead) - function(behind)) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "batch" not in name])
def test_sums_over_points(name):
    """Every point shown twice doubles the GGN: H / tau is then that of half the tau. A mean would leave it."""
    model, shape, likelihood, data = random_case(name)
    twice = log_det(model, shape, 2.0, data.x.repeat(2, *[1] * len(shape)), likelihood)
    assert_equal(twice(initial(model)), log_det(model, shape, 1.0, data.x, likelihood)(initial(model)))


def test_batch_statistics_couple_points(monkeypatch):
    """With batch statistics, taking points as independent gives another log det; ours is the dense one."""
    model, shape, likelihood, data = random_case("conv4-batch-stride")
    function, params = log_det(model, shape, 0.3, data.x, likelihood), initial(model)
    coupled = function(params)
    monkeypatch.setattr("meta_exp.curvature.taps.couples_points", lambda *_: False)
    independent = log_det(model, shape, 0.3, data.x, likelihood)(params)
    assert_equal(coupled, dense_log_det_ratio(dense_precision(likelihood, model, params, data.x, 0.3), 0.3))
    assert (independent - coupled).abs() > 0.01 * coupled


@pytest.mark.parametrize("name", ["mlp-gaussian", "mlp-categorical", "conv4-batch-stride", "conv4-group-max_pool"])
def test_vmap_over_tasks(name):
    """A posterior for each of three tasks under vmap equals the tasks one by one, log det and gradient."""
    model, shape, likelihood, _ = random_case(name)
    curvature = GGN(model, shape, 0.3)
    x = torch.randn(3, 4, *shape).double()
    params = {name: p + 0.1 * torch.randn(3, *p.shape).double() for name, p in initial(model).items()}

    def function(params, x):
        return curvature.posterior(params, unlabelled(x), likelihood, {}).log_det_ratio()

    found, gradients = vmap(function)(params, x), vmap(grad(function))(params, x)
    for i in range(3):
        one = {name: p[i] for name, p in params.items()}
        assert_equal(found[i], function(one, x[i]))
        assert_equal({name: g[i] for name, g in gradients.items()}, grad(function)(one, x[i]))


@pytest.mark.parametrize("tau", TAUS)
def test_linear_model_closed_form(tau):
    """One linear layer, regression: log det(I + X X^T / (sigma^2 tau)) for each output, whatever the weights."""
    model, x = mlp(outputs=2, widths=()), torch.randn(5, 2).double()
    features = torch.cat([x, torch.ones(5, 1).double()], 1)
    expected = 2 * torch.logdet(torch.eye(5).double() + features @ features.T / (0.25 * tau))
    assert_equal(log_det(model, (2,), tau, x, Gaussian(0.5))(initial(model)), expected)


def test_sure_predictions_have_no_curvature():
    """Logits a thousand apart: Lambda and the log det vanish, and nothing is NaN."""
    model = mlp(outputs=3)
    params = {name: 1e4 * p for name, p in initial(model).items()}
    x = torch.randn(4, 2).double()
    assert output_hessian(Categorical(), functional_call(model, params, (x,))).abs().max() < 1e-12
    function = log_det(model, (2,), 1.0, x, Categorical())
    assert function(params).abs() < 1e-6
    assert vector(grad(function)(params)).isfinite().all()
