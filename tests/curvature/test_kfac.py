"""K-FAC against dense Kronecker products, curvlinops, and the exact GGN where they are one; probes over all signs."""

import copy
from itertools import product

import pytest
import torch
from oracles import (
    CASES,
    LIBRARY_CASES,
    assert_equal,
    conv4,
    dense_jacobian,
    dense_kfac,
    dense_log_det_ratio,
    examples,
    image_shape,
    initial,
    mlp,
    noise_covariance,
    unlabelled,
    vector,
)
from torch import nn
from torch.func import grad, vmap

from meta_exp.curvature import GGN, KFAC
from meta_exp.curvature.kfac import KroneckerPrecision
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.models.convolution import Conv2d

INDEPENDENT = [name for name in CASES if "batch" not in name]


def random_case(name, points=4):
    """A network of ``CASES`` with data: model, input shape, likelihood, examples."""
    make, shape, outputs, likelihood = CASES[name]
    model = make()
    torch.manual_seed(2)
    return model, shape, likelihood, examples(likelihood, shape, (points,), outputs)


def log_det(curvature, x, likelihood):
    """The log det ratio as a function of the parameters."""
    return lambda params: curvature.posterior(params, unlabelled(x), likelihood, {}).log_det_ratio()


@pytest.mark.parametrize("tau", [1e-4, 0.3, 100.0])
@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name, tau):
    """Products of eigenvalues from small sides give log det H - P log tau by LU of the P x P matrix."""
    model, shape, likelihood, data = random_case(name)
    expected = dense_log_det_ratio(dense_kfac(likelihood, model, initial(model), data.x, tau), tau)
    assert_equal(log_det(KFAC(model, shape, tau), data.x, likelihood)(initial(model)), expected)


@pytest.mark.filterwarnings("ignore")  # the library's and PyTorch's own deprecations
@pytest.mark.parametrize("name", [name for name in INDEPENDENT if name in LIBRARY_CASES])
def test_equals_curvlinops(name):
    """The same against curvlinops' K-FAC of the linear and convolutional layers, where points are independent."""
    from curvlinops import KFACLinearOperator

    model, shape, likelihood, data = random_case(name)
    oracle = copy.deepcopy(model)
    if isinstance(likelihood, Categorical):
        loss, factor = nn.CrossEntropyLoss(reduction="sum"), 1.0
    else:
        loss, factor = nn.MSELoss(reduction="sum"), 1 / (2 * likelihood.sigma_noise**2)
    layers = [module for module in oracle.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    operator = KFACLinearOperator(
        oracle,
        loss,
        [parameter for layer in layers for parameter in layer.parameters()],
        [tuple(data)],
        check_deterministic=False,
        fisher_type="type-2",
        kfac_approx="expand",
        separate_weight_and_bias=False,
    )
    eye = torch.eye(operator.shape[1]).double()
    expected = dense_log_det_ratio(factor * (operator @ eye) + 0.3 * eye, 0.3)
    posterior = KFAC(model, shape, 0.3).posterior(initial(model), data, likelihood, {})
    blocks = [block for block in posterior.precisions.values() if isinstance(block, KroneckerPrecision)]
    assert_equal(sum(block.log_det_ratio() for block in blocks), expected)


@pytest.mark.parametrize(("points", "likelihood"), [(1, Gaussian(0.5)), (1, Categorical()), (5, Gaussian(0.5))])
def test_equals_ggn_where_exact(points, likelihood):
    """One linear layer, and one point or Gaussian outputs: the Kronecker product is the GGN itself."""
    model, x = mlp(outputs=3, widths=()), torch.randn(points, 2).double()
    ours, exact = (s(model, (2,), 0.3).posterior(initial(model), unlabelled(x), likelihood, {}) for s in (KFAC, GGN))
    assert_equal(ours.log_det_ratio(), exact.log_det_ratio())
    new = torch.randn(4, 2).double()
    assert_equal(ours.functional_variance(new), exact.functional_variance(new))


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("setting", [{}, {"probes": 2}])
def test_sums_over_points(name, setting, monkeypatch):
    """Every point shown twice doubles B and leaves A: H / tau is then that of half the tau. A mean would leave it."""
    model, shape, likelihood, data = random_case(name)
    monkeypatch.setattr(KFAC, "signs", lambda self, x, rank: torch.ones(self.probes, len(x), rank).double())
    twice = log_det(KFAC(model, shape, 2.0, **setting), data.x.repeat(2, *[1] * len(shape)), likelihood)
    once = log_det(KFAC(model, shape, 1.0, **setting), data.x, likelihood)
    assert_equal(twice(initial(model)), once(initial(model)))


def test_batch_statistics_couple_points(monkeypatch):
    """With batch statistics, taking points as independent gives another log det; ours is the dense one (above)."""
    model, shape, likelihood, data = random_case("conv4-batch-stride")
    function, params = log_det(KFAC(model, shape, 0.3), data.x, likelihood), initial(model)
    coupled = function(params)
    monkeypatch.setattr("meta_exp.curvature.taps.couples_points", lambda *_: False)
    independent = log_det(KFAC(model, shape, 0.3), data.x, likelihood)(params)
    assert (independent - coupled).abs() > 0.01 * coupled


def factors(curvature, params, x, likelihood):
    """A and B, or d, of each layer."""
    blocks = curvature.posterior(params, unlabelled(x), likelihood, {}).precisions
    return {
        name: (block.a.T @ block.a, block.b.T @ block.b) if isinstance(block, KroneckerPrecision) else block.d
        for name, block in blocks.items()
    }


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("name", ["mlp-categorical", "conv4-batch-stride", "conv4-group-max_pool"])
def test_probes_are_unbiased(name, probes, monkeypatch):
    """The mean over all patterns of signs is the exact A, B and d, also where batch statistics couple the points."""
    model, shape, likelihood, data = random_case(name, points=2)
    params, curvature = initial(model), KFAC(model, shape, probes=probes)
    total = None
    patterns = list(product((-1.0, 1.0), repeat=2 * 2))
    for k, pattern in enumerate(patterns):
        # with two probes, every pattern beside another one: each takes every value once
        both = torch.tensor([pattern, patterns[k - 5]][:probes]).double().view(probes, 2, 2)
        monkeypatch.setattr(curvature, "signs", lambda x, rank, both=both: both)
        found = torch.utils._pytree.tree_map(
            lambda t: t / len(patterns), factors(curvature, params, data.x, likelihood)
        )
        total = found if total is None else torch.utils._pytree.tree_map(torch.add, total, found)
    exact = factors(KFAC(model, shape), params, data.x, likelihood)
    assert_equal(total, exact)


def test_one_probe_is_exact_for_one_output():
    """With one output and independent points a sign cancels in g g^T."""
    model, x = mlp(), torch.randn(5, 2).double()
    exact, one = (log_det(KFAC(model, (2,), 0.3, probes=probes), x, Gaussian()) for probes in (None, 1))
    assert_equal(one(initial(model)), exact(initial(model)))


def test_signs():
    """Signs are a function of the task's inputs and the seed, balanced, and the same task by task and under vmap."""
    curvature, tasks = KFAC(mlp(), (2,), probes=3), torch.randn(40, 5, 2).double()
    signs = vmap(lambda x: curvature.signs(x, 4))(tasks)
    assert signs.shape == (40, 3, 5, 4)
    assert (signs.abs() == 1).all()
    assert signs.mean().abs() < 0.1
    assert len(signs.flatten(1).unique(dim=0)) == 40
    for x, one in zip(tasks, signs, strict=True):
        assert torch.equal(curvature.signs(x, 4), one)
    assert torch.equal(KFAC(mlp(), (2,), probes=3).signs(tasks[0], 4), signs[0])
    assert not torch.equal(KFAC(mlp(), (2,), probes=3, seed=1).signs(tasks[0], 4), signs[0])


@pytest.mark.parametrize(
    "name", ["mlp-gaussian", "mlp-categorical", "conv4-batch-stride", "conv4-group-stride", "resnet12-batch"]
)
def test_posterior(name):
    """Draws have covariance H^-1 exactly, and the linearised outputs at new inputs J* H^-1 J*^T."""
    model, shape, likelihood, data = random_case(name)
    params, new = initial(model), torch.randn(3, *shape).double()
    posterior = KFAC(model, shape, 0.3).posterior(params, data, likelihood, {})
    covariance = torch.linalg.inv(dense_kfac(likelihood, model, params, data.x, 0.3))
    assert_equal(noise_covariance(posterior, params), covariance)
    jacobian = dense_jacobian(model, params, new)
    assert_equal(posterior.functional_variance(new), jacobian @ covariance @ jacobian.mT)


@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("name", ["mlp-gaussian", "mlp-categorical", "conv4-batch-stride", "conv4-group-max_pool"])
def test_vmap_over_tasks(name, probes):
    """A posterior for each of three tasks under vmap equals the tasks one by one, log det and gradient."""
    model, shape, likelihood, _ = random_case(name)
    curvature = KFAC(model, shape, 0.3, probes=probes)
    x = torch.randn(3, 4, *shape).double()
    params = {name: p + 0.1 * torch.randn(3, *p.shape).double() for name, p in initial(model).items()}

    def function(params, x):
        return log_det(curvature, x, likelihood)(params)

    found, gradients = vmap(function)(params, x), vmap(grad(function))(params, x)
    for i in range(3):
        one = {name: p[i] for name, p in params.items()}
        assert_equal(found[i], function(one, x[i]))
        assert_equal({name: g[i] for name, g in gradients.items()}, grad(function)(one, x[i]))


@pytest.mark.parametrize("tau", [1e-4, 0.3])
def test_gradient_at_repeated_eigenvalues(tau):
    """Factors with eigenvalues that repeat, at zero (equal points) and elsewhere (equal Gaussian outputs)."""
    model = mlp(outputs=4, widths=(5,), inputs=3)
    x = torch.eye(3).double().repeat(2, 1)
    function, params = log_det(KFAC(model, (3,), tau), x, Gaussian(0.5)), initial(model)
    along = {name: torch.randn_like(p) for name, p in params.items()}
    ahead, behind = ({name: p + step * along[name] for name, p in params.items()} for step in (1e-6, -1e-6))
    slope = vector(grad(function)(params)) @ vector(along)
    assert slope.abs() > 1e-3
    assert_equal(slope, (function(ahead) - function(behind)) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e3, 1e6])
def test_single_precision(tau, likelihood):
    """In float32 log det and its gradient are close to those of float64 over nine decades of tau."""
    model = mlp(outputs=3, widths=(20, 20))
    params, x = initial(model), torch.randn(5, 2).double()
    function = log_det(KFAC(model, (2,), tau), x, likelihood)
    expected, gradient = function(params), grad(function)(params)
    params, x, model = {name: p.float() for name, p in params.items()}, x.float(), model.float()
    function = log_det(KFAC(model, (2,), tau), x, likelihood)
    assert_equal(function(params), expected, rtol=1e-5)
    error = vector(grad(function)(params)) - vector(gradient)
    assert error.norm() < 1e-5 * vector(gradient).norm()


def test_sure_predictions_have_no_curvature():
    """Logits a thousand apart: B and the log det vanish, and nothing is NaN."""
    model, x = mlp(outputs=3), torch.randn(4, 2).double()
    params = {name: 1e4 * p for name, p in initial(model).items()}
    function = log_det(KFAC(model, (2,)), x, Categorical())
    assert function(params).abs() < 1e-6
    assert vector(grad(function)(params)).isfinite().all()


def test_numbers_that_are_not_finite_go_through():
    """They reach the objective, whose guard names the remedy; an eigenvalue routine would raise."""
    model, x = mlp(outputs=2), torch.randn(4, 2).double()
    params = {name: p * torch.nan for name, p in initial(model).items()}
    posterior = KFAC(model, (2,)).posterior(params, unlabelled(x), Gaussian(), {})
    assert posterior.log_det_ratio().isnan()
    assert posterior.functional_variance(x).isnan().all()


def test_noise():
    """Noise has the shapes that ``sample`` takes, the asked leading shape, and repeats with its generator's seed."""
    model, shape = conv4("group"), image_shape("stride")
    curvature, params = KFAC(model, shape, probes=1), initial(model)
    first, second = (
        curvature.noise(torch.Generator().manual_seed(7), (5,), params, 4, Categorical()) for _ in range(2)
    )
    assert_equal(first, second, rtol=0, atol=0)
    data = unlabelled(torch.randn(4, *shape).double())
    draws = vmap(curvature.posterior(params, data, Categorical(), {}).sample)(first)
    assert {name: d.shape for name, d in draws.items()} == {name: (5, *p.shape) for name, p in params.items()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, r"curvature\.probes: expected null or at least 1"),
        ({"probes": 2**31}, r"curvature\.probes: expected at most"),
        ({"prior_precision": 0.0}, r"curvature\.prior_precision"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        KFAC(mlp(), (2,), **settings)


def test_refuses_layers_it_does_not_treat():
    with pytest.raises(ValueError, match="curvature on layer '1'"):
        KFAC(nn.Sequential(nn.Linear(2, 4), nn.PReLU()), (2,))


@pytest.mark.parametrize("name", ["conv4-batch-stride", "resnet12-batch"])
def test_patches_with_channels_last(name, monkeypatch):
    """As compiled code takes them: the log det, draws and variances are those of patches in the weights' order."""
    model, shape, likelihood, data = random_case(name)
    curvature = KFAC(model, shape, 0.3)
    noise = {name: torch.randn_like(value) for name, value in initial(model).items()}

    def results():
        posterior = curvature.posterior(initial(model), data, likelihood, {})
        return posterior.log_det_ratio(), posterior.sample(noise), posterior.functional_variance(data.x)

    expected = results()
    monkeypatch.setattr(Conv2d, "prefers_patches", lambda layer, x: True)
    posterior = curvature.posterior(initial(model), data, likelihood, {})
    assert any(getattr(block, "columns", None) is not None for block in posterior.precisions.values())
    assert_equal(results(), expected)


@pytest.mark.parametrize("conv", [False, True])
def test_gradient_in_float32(conv):
    """Equal points, nearly no noise and a weak prior, too: the gradient is as good as float32 weights allow."""
    gradients = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(3)
        model = conv4() if conv else mlp(outputs=3, widths=(20, 20))
        likelihood, shape, tau = (Categorical(), image_shape("stride"), 0.01) if conv else (Gaussian(1e-4), (2,), 1e-4)
        params = {name: p.float().to(dtype) for name, p in initial(model).items()}
        x = torch.randn(3, *shape).repeat(2, *[1] * len(shape)).to(dtype)
        gradient = grad(log_det(KFAC(model.to(dtype), shape, tau), x, likelihood))(params)
        gradients.append(vector(gradient).double())
    expected, found = gradients
    assert (found - expected).norm() < 1e-4 * expected.norm()
