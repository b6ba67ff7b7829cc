"""The exact Hessian against the dense one of the written-out -log p, indefinite and not, in float64."""

import pytest
import torch
from oracles import (
    CASES,
    assert_equal,
    conv4,
    dense_jacobian,
    dense_log_det_ratio,
    episodes,
    examples,
    initial,
    mlp,
    nll,
    noise_covariance,
    objective_of,
    task,
    unvector,
    vector,
)
from torch import nn
from torch.func import functional_call, grad, vmap

from meta_exp.adaptation import Meta
from meta_exp.algorithms import LLAMA, MAML
from meta_exp.curvature import GGN, Hessian
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.scoring.task import evaluate
from meta_exp.tasks.episode import Examples

NAMES = ["mlp-gaussian", "mlp-categorical", "conv4-batch-stride", "resnet12-batch"]


def random_case(name, points=4):
    make, shape, outputs, likelihood = CASES[name]
    model = conv4(filters=4) if name == "conv4-batch-stride" else make()  # of 8 the dense matrix takes long
    torch.manual_seed(2)
    return model, shape, likelihood, examples(likelihood, shape, (points,), outputs)


def dense_hessian(likelihood, model, params, data):
    """Rows of the Hessian of -log p(data) by two reverse passes of autograd."""
    v = vector(params).requires_grad_()
    value = nll(likelihood, functional_call(model, unvector(v, params), (data.x,)), data.y)
    (gradient,) = torch.autograd.grad(value, v, create_graph=True)
    return torch.stack([torch.autograd.grad(g, v, retain_graph=True)[0] for g in gradient])


def raised(matrix, tau):
    """tau I + the matrix with negative eigenvalues at 0; and how many are negative beyond rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors @ (values.clamp_min(0) + tau).diag() @ vectors.T, int((values < -1e-12 * values.abs().max()).sum())


@pytest.fixture(params=NAMES, scope="module")
def case(request):
    """A posterior, its parameters, H, the dense Jacobian at new inputs, those inputs, and the number clamped."""
    model, shape, likelihood, data = random_case(request.param)
    params, new = initial(model), torch.randn(3, *shape).double()
    posterior = Hessian(model, shape, 0.05).posterior(params, data, likelihood, {})
    precision, clamped = raised(dense_hessian(likelihood, model, params, data), 0.05)
    return posterior, params, precision, dense_jacobian(model, params, new), new, clamped


def test_equals_dense(case):
    """Log det, covariance of the draws, and covariances of the linearised outputs."""
    posterior, params, precision, jacobian, new, _ = case
    covariance = torch.linalg.inv(precision)
    assert_equal(posterior.log_det_ratio(), dense_log_det_ratio(precision, 0.05), rtol=1e-8)
    assert_equal(noise_covariance(posterior, params), covariance, rtol=1e-7, atol=1e-7)
    assert_equal(posterior.functional_variance(new), jacobian @ covariance @ jacobian.mT, rtol=1e-7, atol=1e-7)


def test_counts_what_it_clamps(case):
    """These networks are not at a minimum: at tau = 0.05 their tasks are indefinite, and the posterior says so."""
    posterior, *_, clamped = case
    assert clamped > 0
    assert posterior.clamped == clamped
    assert posterior.diagnostics() == {"indefinite": 1.0, "clamped": clamped}


def test_one_negative_direction_by_hand():
    """f = v u x of two weights and one point: the Hessian of (f - y)^2 / 2 is [[v^2, r + uv], [r + uv, u^2]], x = 1.

    At u = v = 0 with y = 3 it is [[0, -3], [-3, 0]], of eigenvalues -3 and 3.
    """
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    params = {name: torch.zeros(1, 1).double() for name in ("0.weight", "1.weight")}
    data = Examples(torch.ones(1, 1).double(), torch.full((1, 1), 3.0).double())
    for tau, indefinite in ((1.0, 1), (2.9, 1), (3.1, 0)):
        posterior = Hessian(model, (1,), tau).posterior(params, data, Gaussian(), {})
        assert_equal(posterior.log_det_ratio(), torch.tensor(1 + 3 / tau, dtype=torch.double).log())
        assert posterior.diagnostics() == {"indefinite": indefinite, "clamped": 1}


def test_is_the_ggn_of_a_linear_model():
    """Without hidden layers the Hessian is the GGN, definite, and nothing is clamped."""
    model = mlp(outputs=3, widths=())
    data = examples(Categorical(), (2,), (5,), 3)
    ours, ggn = (s(model, (2,), 0.3).posterior(initial(model), data, Categorical(), {}) for s in (Hessian, GGN))
    assert_equal(ours.log_det_ratio(), ggn.log_det_ratio())
    assert_equal(ours.functional_variance(data.x), ggn.functional_variance(data.x))
    assert ours.clamped == 0


def test_evaluation_scores_indefinite_tasks():
    """Under vmap over tasks the scores say which were indefinite; other structures have no such score."""
    model, batch = mlp(outputs=2), episodes(Gaussian(), (2,), 2, tasks=3)

    def scores(structure, tau):
        algorithm = MAML(model=model, likelihood=Gaussian(), curvature=structure(model, (2,), tau), inner_lr=0.1)

        def score(episode):
            return evaluate(algorithm, Meta(initial(model), {}), episode, None, steps=1, predictives=["map"]).each

        return vmap(score)(batch)

    assert_equal(scores(Hessian, 1e-3)["indefinite"], torch.ones(3).double())
    assert_equal(scores(Hessian, 1e4)["indefinite"], torch.zeros(3).double())
    assert "indefinite" not in scores(GGN, 1e-3)


def test_vmap_over_tasks():
    model, _, likelihood, _ = random_case("mlp-categorical")
    curvature = Hessian(model, (2,), 0.3)
    data = examples(likelihood, (2,), (3, 4), 3)

    def function(x, y):
        posterior = curvature.posterior(initial(model), Examples(x, y), likelihood, {})
        return posterior.log_det_ratio(), posterior.functional_variance(x)

    found = vmap(function)(*data)
    for i in range(3):
        assert_equal(tuple(value[i] for value in found), function(data.x[i], data.y[i]))


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical()])
def test_gradcheck(likelihood):
    """The objective differentiates through the eigenvalues, clamped ones without a gradient of their own."""
    model = mlp(outputs=2, widths=(4, 3))
    episode, theta = task(episodes(likelihood, (2,), 2)), initial(model)
    algorithm = LLAMA(
        model=model, likelihood=likelihood, curvature=Hessian(model, (2,), 0.3), inner_lr=0.1, eta=0.5, inner_steps=2
    )

    def objective(v):
        return objective_of(algorithm, unvector(v, theta), {}, episode)[0]

    v = vector(theta).requires_grad_()
    assert torch.autograd.gradcheck(objective, v)
    (expected,) = torch.autograd.grad(objective(v), v)
    assert_equal(vmap(grad(objective))(v[None])[0], expected)


def test_single_precision():
    """The Hessian is taken in float64 whatever the parameters; draws keep their type."""
    model = mlp(outputs=3)
    data = examples(Gaussian(), (2,), (5,), 3, torch.float32)
    params = {name: p.float() for name, p in initial(model).items()}
    posterior = Hessian(model.float(), (2,), 0.3).posterior(params, data, Gaussian(), {})
    assert posterior.log_det_ratio().dtype == torch.float64
    draw = posterior.sample({name: torch.randn_like(p) for name, p in params.items()})
    assert {name: (d.shape, d.dtype) for name, d in draw.items()} == {n: (p.shape, p.dtype) for n, p in params.items()}


def test_frozen_layers_in_single_precision():
    """They are taken to float64 as all else is."""
    data = examples(Gaussian(), (2,), (5,), 3, torch.float32)
    values = []
    for model in (mlp(outputs=3), mlp(outputs=3).float()):
        model[1].requires_grad_(False)
        params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        posterior = Hessian(model, (2,), 0.3).posterior(params, data, Gaussian(), {})
        values.append((posterior.log_det_ratio(), posterior.functional_variance(data.x)))
    assert_equal(*values, rtol=1e-4, atol=1e-6)


def test_refuses_large_networks_with_the_memory_they_would_need():
    model = conv4()
    count = sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match=rf"at most 1000 parameters, got {count}, .* 0\.02\d+ GiB a task; choose"):
        Hessian(model, (1, 17, 17), max_parameters=1000)
    with pytest.raises(ValueError, match="curvature=hessian: expected at most 2000 parameters"):
        Hessian(mlp(widths=(60, 60)), (2,))


def test_refuses_precisions_that_are_not_positive():
    with pytest.raises(ValueError, match=r"curvature\.prior_precision"):
        Hessian(mlp(), (2,), 0.0)
