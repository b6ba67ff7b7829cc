"""LLAMA's objective and meta-gradient against loops, closed forms, finite differences, and MAML."""

from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from oracles import (
    CASES,
    assert_equal,
    conv4,
    episodes,
    image_shape,
    initial,
    loop_gradient,
    loop_objective,
    mlp,
    objective_of,
    task,
    unvector,
    vector,
    vmapped_gradient,
    with_torch_norms,
)
from torch.distributions import MultivariateNormal
from torch.func import grad

from meta_exp.adaptation import Meta
from meta_exp.algorithms import LLAMA, MAML
from meta_exp.curvature import GGN, KFAC, Diagonal, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.tasks.episode import Episode
from meta_exp.training.meta_gradient import MetaGradient

TRAINABLE = [GGN, KFAC, pytest.param(partial(KFAC, probes=2), id="KFAC-probes"), Diagonal, LastLayer]


def llama(model, shape, likelihood, structure=GGN, tau=0.3, learned=False, **settings):
    """LLAMA with the settings that most tests share."""
    curvature = structure(model, shape, tau, learned)
    settings = {"inner_lr": 0.1, "eta": 0.5} | settings
    return LLAMA(model=model, likelihood=likelihood, curvature=curvature, **settings)


@pytest.mark.parametrize(
    ("name", "steps", "first_order"),
    [
        (name, steps, first_order)
        for name, steps, first_order in product(CASES, (1, 3), (False, True))
        if name != "resnet12-batch" or (steps, first_order) == (1, False)  # its loops take long
    ],
)
@pytest.mark.parametrize("structure", [GGN, KFAC, Diagonal, LastLayer])
def test_vmap_equals_autograd_loop(name, structure, steps, first_order):
    """The mean of vmap(grad(task)), every parameter adapted, equals torch.autograd on the tasks one by one."""
    make, shape, outputs, likelihood = CASES[name]
    model, batch = make(), episodes(likelihood, shape, outputs)
    algorithm = llama(model, shape, likelihood, structure, inner_steps=steps, first_order=first_order)
    theta = initial(model)
    assert_equal(vmapped_gradient(algorithm, theta, batch), loop_gradient(algorithm, theta, batch))


@pytest.mark.parametrize("structure", [GGN, KFAC, Diagonal, LastLayer])
@pytest.mark.parametrize(("norm", "stay"), [("batch", ["norm"]), ("group", ["norm", "blocks.0"])])
def test_layers_that_stay(norm, stay, structure):
    """They neither adapt nor enter the log det and the prior term, and are learned: by torch.autograd, task by task."""
    model, shape = conv4(norm), image_shape("stride")
    batch, theta = episodes(Categorical(), shape, 3), initial(model)
    settings = {"inner_steps": 2, "prior_term": structure is not LastLayer, "stay": stay}  # the loop's is of all layers
    algorithm = llama(model, shape, Categorical(), structure, **settings)
    known = [name for name in theta if ".affine." in name or ("blocks.0" in stay and name.startswith("blocks.0."))]
    expected = loop_gradient(algorithm, theta, batch, known=known)
    assert_equal(vmapped_gradient(algorithm, theta, batch), expected)
    leaves = {name: p.requires_grad_() for name, p in initial(model).items()}
    value = loop_objective(algorithm, leaves, task(batch), model, known).detach()
    assert_equal(objective_of(algorithm, theta, {}, task(batch))[0], value)
    if structure is not LastLayer:
        every = llama(model, shape, Categorical(), structure, **settings | {"stay": []})
        of_all, of_rest = (objective_of(one, theta, {}, task(batch))[1]["log_det"] for one in (every, algorithm))
        assert abs(of_all - of_rest) > 0.01


@pytest.mark.parametrize("structure", [GGN, LastLayer])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_against_fused_batch_norm(downsample, structure):
    """The same with F.batch_norm in the loop's forward passes, where PyTorch's second derivatives are right."""
    shape = image_shape(downsample)
    model, batch = conv4("batch", downsample), episodes(Categorical(), shape, 3)
    algorithm, theta = llama(model, shape, Categorical(), structure, inner_steps=2), initial(model)
    expected = loop_gradient(algorithm, theta, batch, with_torch_norms(model))
    assert_equal(vmapped_gradient(algorithm, theta, batch), expected)


@pytest.mark.parametrize("data", ["support", "query"])
@pytest.mark.parametrize("prior_term", [False, True])
@pytest.mark.parametrize("name", ["mlp-gaussian", "mlp-categorical", "conv4-batch-stride"])
def test_options(name, prior_term, data):
    """Value and gradient with each choice of data and prior term equal the loop's; the log holds the bare log det."""
    make, shape, outputs, likelihood = CASES[name]
    model, batch = make(), episodes(likelihood, shape, outputs)
    algorithm, theta = llama(model, shape, likelihood, prior_term=prior_term, data=data), initial(model)
    value, logs = objective_of(algorithm, theta, {}, task(batch))
    leaves = {name: p.requires_grad_() for name, p in initial(model).items()}
    assert_equal(value, loop_objective(algorithm, leaves, task(batch), model).detach())
    assert_equal(vmapped_gradient(algorithm, theta, batch), loop_gradient(algorithm, theta, batch))
    heavier = llama(model, shape, likelihood, prior_term=prior_term, data=data, eta=1.5)
    difference = objective_of(heavier, theta, {}, task(batch))[0] - value
    assert_equal(difference, logs["log_det"] / len(batch.query.y[0]))


@dataclass(frozen=True, kw_only=True)
class Converged(LLAMA):
    """LLAMA whose inner loop has reached the mode of a linear model's posterior, known in closed form."""

    tau: float
    sigma: float

    def step(self, params, support, k, meta):
        theta = meta.theta
        weight, bias = theta.values()
        x = torch.cat([support.x, torch.ones_like(support.x[:, :1])], 1)
        prior = torch.cat([weight, bias[:, None]], 1).T
        h = x.T @ x / self.sigma**2 + self.tau * torch.eye(x.shape[1]).double()
        mode = prior + torch.linalg.solve(h, x.T @ (support.y - x @ prior) / self.sigma**2)
        return dict(zip(theta, (mode[:-1].T, mode[-1]), strict=True))


@pytest.mark.parametrize("data", ["support", "query"])
@pytest.mark.parametrize(("tau", "sigma"), [(0.3, 0.5), (2.0, 1.5), (1e-2, 0.1)])
def test_linear_gaussian_evidence(tau, sigma, data):
    """eta = 1/2 with the prior term is -log p(y), y ~ N(X theta, sigma^2 I + X X^T / tau), and so are its gradients.

    Laplace's method is exact where the posterior is Gaussian. Support and query are the same five points here.
    """
    model = mlp(outputs=2, widths=())
    batch = task(episodes(Gaussian(), (2,), 2, support=5))
    episode = Episode(batch.support, batch.support)
    algorithm = Converged(
        model=model,
        likelihood=Gaussian(learned=True),
        curvature=GGN(model, (2,), learned=True),
        inner_lr=0.1,
        eta=0.5,
        prior_term=True,
        data=data,
        tau=tau,
        sigma=sigma,
    )
    names = "log_sigma_noise", "log_prior_precision"
    hyper = {name: torch.tensor(v).double().log() for name, v in zip(names, (sigma, tau), strict=True)}

    def minus_log_evidence(theta, hyper):
        weight, bias = theta.values()
        x, y = episode.query
        features = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        sigma, tau = (hyper[name].exp() for name in names)
        covariance = sigma**2 * torch.eye(len(x)).double() + features @ features.T / tau
        return -MultivariateNormal((x @ weight.T + bias).T, covariance).log_prob(y.T).sum() / len(y)

    def objective(theta, hyper):
        return objective_of(algorithm, theta, hyper, episode)[0]

    arguments = initial(model), hyper
    assert_equal(objective(*arguments), minus_log_evidence(*arguments))
    assert_equal(grad(objective, (0, 1))(*arguments), grad(minus_log_evidence, (0, 1))(*arguments))


@pytest.mark.parametrize("structure", TRAINABLE)
@pytest.mark.parametrize("data", ["support", "query"])
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_gradcheck(name, data, structure):
    """The whole meta-gradient, in theta, log sigma and log tau, equals finite differences of the objective."""
    likelihood = {"gaussian": Gaussian(learned=True), "categorical": Categorical()}[name]
    model = mlp(outputs=2, widths=(4, 3))
    episode = task(episodes(likelihood, (2,), 2))
    settings = {"prior_term": True, "learned": True, "inner_steps": 2, "data": data}
    algorithm, theta = llama(model, (2,), likelihood, structure, **settings), initial(model)

    def objective(v, log_sigma, log_tau):
        hyper = {"log_sigma_noise": log_sigma, "log_prior_precision": log_tau}
        return objective_of(algorithm, unvector(v, theta), hyper, episode)[0]

    numbers = (torch.tensor(v).double().requires_grad_(name == "gaussian" or v > 0) for v in (-0.4, 0.2))
    assert torch.autograd.gradcheck(objective, (vector(theta).requires_grad_(), *numbers))


@pytest.mark.parametrize("structure", TRAINABLE)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_gradcheck_of_conv4(norm, structure):
    """The same in theta alone, along a random direction."""
    model, shape = conv4(norm), image_shape("stride")
    episode = task(episodes(Categorical(), shape, 3))
    algorithm, theta = llama(model, shape, Categorical(), structure), initial(model)

    def objective(v):
        return objective_of(algorithm, unvector(v, theta), {}, episode)[0]

    assert torch.autograd.gradcheck(objective, vector(theta).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", TRAINABLE)
@pytest.mark.parametrize("name", ["mlp-gaussian", "conv4-batch-stride", "conv4-group-max_pool"])
def test_eta_zero_is_maml(name, structure, dtype):
    """Objective and gradient are equal to the last bit; with eta = 1/2 the gradient differs by more than a per cent."""
    make, shape, outputs, likelihood = CASES[name]
    model = make().to(dtype)
    theta, batch = initial(model), episodes(likelihood, shape, outputs, dtype=dtype)
    maml = MAML(model=model, likelihood=likelihood, inner_lr=0.1)
    zero, half = (llama(model, shape, likelihood, structure, eta=eta) for eta in (0.0, 0.5))
    assert torch.equal(objective_of(zero, theta, {}, task(batch))[0], objective_of(maml, theta, {}, task(batch))[0])
    ours, theirs, other = (vector(vmapped_gradient(a, theta, batch)) for a in (zero, maml, half))
    assert torch.equal(ours, theirs)
    assert (other - theirs).norm() > 0.01 * theirs.norm()


def test_each_structure_brings_its_own_eta():
    """Eta is the structure's default unless it is given, 0 included."""
    for structure, eta in ((GGN, 0.05), (LastLayer, 0.05), (KFAC, 0.01), (Diagonal, 0.01)):
        assert llama(mlp(), (2,), Gaussian(), structure, eta=None).weight == eta
        assert llama(mlp(), (2,), Gaussian(), structure, eta=0.0).weight == 0


def test_small_steps_down_the_gradient_flatten():
    """A step against the gradient of eta's part alone lowers the log det at the adapted parameters."""
    model = mlp(outputs=2)
    batch = task(episodes(Gaussian(), (2,), 2))
    maml, algorithm = MAML(model=model, likelihood=Gaussian(), inner_lr=0.1), llama(model, (2,), Gaussian())
    theta = initial(model)

    def part(theta):
        return objective_of(algorithm, theta, {}, batch)[0] - objective_of(maml, theta, {}, batch)[0]

    stepped = {name: p - 1e-3 * g for (name, p), g in zip(theta.items(), grad(part)(theta).values(), strict=True)}
    before, after = (objective_of(algorithm, p, {}, batch)[1]["log_det"] for p in (theta, stepped))
    assert after < before - 1e-4


@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("structure", TRAINABLE)
def test_single_precision(structure, tau):
    """In float32 objective and gradient are finite at every tau, and the objective keeps its type."""
    model = conv4().float()
    algorithm = llama(model, (1, 17, 17), Categorical(), structure, tau=tau)
    batch, theta = episodes(Categorical(), (1, 17, 17), 3, dtype=torch.float32), initial(model)
    value = objective_of(algorithm, theta, {}, task(batch))[0]
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert vector(vmapped_gradient(algorithm, theta, batch)).isfinite().all()


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.usefixtures("one_source")
@pytest.mark.parametrize(
    ("structure", "stay"),
    [(GGN, []), (GGN, [0]), (partial(KFAC, probes=1), [])],
    ids=["GGN", "GGN-stay", "KFAC-probes"],
)
def test_compiled_equals_eager(structure, stay):
    """The compiled meta-gradient, in chunks of which the last is smaller, is the eager one."""
    model, likelihood = mlp(outputs=1, widths=(3,)), Gaussian(0.5, learned=True)
    algorithm = llama(model, (2,), likelihood, structure, prior_term=True, learned=True, stay=stay)
    theta, batch = initial(model), episodes(likelihood, (2,), 1)
    hyper = {"log_sigma_noise": torch.tensor(-0.7).double(), "log_prior_precision": torch.tensor(0.4).double()}

    compiled = MetaGradient(algorithm, chunk_size=2)
    compiled.compile()
    assert_equal(compiled(Meta(theta, hyper), batch), MetaGradient(algorithm)(Meta(theta, hyper), batch))
    assert compiled.compile_s > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": None}, "algorithm=llama: expected a curvature"),
        ({"eta": -0.1}, "algorithm.eta"),
        ({"data": "both"}, "algorithm.data"),
        ({"curvature": GGN(mlp(), (2,), learned=True)}, "algorithm.prior_term=true"),
        ({"curvature": GGN(mlp(), (2,), learned=True), "prior_term": True, "eta": 0}, "expected algorithm.eta > 0"),
        ({"inner_lr": -1.0}, "algorithm.inner_lr"),
    ],
)
def test_refusals(settings, message):
    defaults = {"model": mlp(), "likelihood": Gaussian(), "curvature": GGN(mlp(), (2,)), "inner_lr": 0.1, "eta": 0.5}
    with pytest.raises(ValueError, match=message):
        LLAMA(**defaults | settings)
