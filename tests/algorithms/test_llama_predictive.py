"""The predictive objective against dense Gaussians and closed forms, its gradient, and a run from training to use."""

import numpy as np
import pytest
import torch
from oracles import (
    assert_equal,
    dense_jacobian,
    dense_precision,
    episodes,
    initial,
    mlp,
    objective_of,
    starts,
    task,
    unvector,
    vector,
)
from torch.distributions import MultivariateNormal
from torch.func import functional_call

import meta_exp
from meta_exp.adaptation import Meta
from meta_exp.algorithms import MAML, LLAMAPredictive
from meta_exp.curvature import GGN, KFAC, Diagonal, Hessian, LastLayer, newton
from meta_exp.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian, Probit
from meta_exp.runs.build import build
from meta_exp.training.meta_gradient import MetaGradient

TAU, SIGMA = 0.3, 0.5


def predictive(likelihood, structure=GGN, outputs=2, widths=(4, 3), **settings):
    model = mlp(outputs=outputs, widths=widths)
    curvature = structure(model, (2,), TAU, learned=True)
    return LLAMAPredictive(model=model, likelihood=likelihood, curvature=curvature, inner_lr=0.1, **settings)


def tensors(algorithm):
    return {name: value.double() for name, value in starts(algorithm.hyperparameters()).items()}


@pytest.mark.parametrize("joint", [False, True])
def test_is_the_density_of_the_dense_predictive(joint):
    """theta* and H by dense algebra on the model that is linear at theta, all queries together or one by one."""
    algorithm = predictive(Gaussian(SIGMA, learned=True), joint=joint)
    model, theta = algorithm.model, initial(algorithm.model)
    support, query = episode = task(episodes(Gaussian(), (2,), 2))
    jacobian, to_query = (dense_jacobian(model, theta, part.x).flatten(0, 1) for part in episode)
    precision = dense_precision(Gaussian(SIGMA), model, theta, support.x, TAU)
    residual = (support.y - functional_call(model, theta, (support.x,))).flatten()
    way = torch.linalg.solve(precision, jacobian.T @ residual / SIGMA**2)
    mean = functional_call(model, theta, (query.x,)).flatten() + to_query @ way
    covariance = to_query @ torch.linalg.inv(precision) @ to_query.T + SIGMA**2 * torch.eye(len(mean)).double()
    if joint:
        expected = MultivariateNormal(mean, covariance).log_prob(query.y.flatten())
    else:
        blocks = torch.stack([covariance[2 * m : 2 * m + 2, 2 * m : 2 * m + 2] for m in range(len(query.y))])
        expected = MultivariateNormal(mean.view(-1, 2), blocks).log_prob(query.y).sum()
    found = objective_of(algorithm, theta, tensors(algorithm), episode)[0]
    assert_equal(found, -expected / len(query.y), rtol=1e-6)  # log sigma and log tau start in float32


def test_joint_density_of_a_linear_model_is_the_ratio_of_evidences():
    """log p(Q | S) = log p(S and Q) - log p(S) where the model is linear and everything is Gaussian."""
    algorithm = predictive(Gaussian(SIGMA, learned=True), widths=(), joint=True)
    theta = initial(algorithm.model)
    support, query = episode = task(episodes(Gaussian(), (2,), 2))
    weight, bias = theta.values()

    def log_evidence(x, y):
        features = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        covariance = SIGMA**2 * torch.eye(len(x)).double() + features @ features.T / TAU
        return MultivariateNormal((x @ weight.T + bias).T, covariance).log_prob(y.T).sum()

    both = log_evidence(torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
    expected = (log_evidence(*support) - both) / len(query.y)
    assert_equal(objective_of(algorithm, theta, tensors(algorithm), episode)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("structure", [GGN, LastLayer, KFAC, Diagonal])
@pytest.mark.parametrize("likelihood", [Gaussian(SIGMA, learned=True), Probit()])
def test_gradcheck(likelihood, structure, steps):
    """In theta and every learned value, through the mode found without derivatives."""
    algorithm = predictive(likelihood, structure, inner_steps=steps)
    theta, hyper, episode = initial(algorithm.model), tensors(algorithm), task(episodes(likelihood, (2,), 2))

    def objective(v, *values):
        return objective_of(algorithm, unvector(v, theta), dict(zip(hyper, values, strict=True)), episode)[0]

    inputs = [vector(theta).requires_grad_(), *(value.clone().requires_grad_() for value in hyper.values())]
    assert torch.autograd.gradcheck(objective, inputs)


@pytest.mark.parametrize("structure", [GGN, LastLayer, KFAC, Diagonal])
@pytest.mark.parametrize("likelihood", [Gaussian(SIGMA, learned=True), Probit()])
def test_tasks_at_once_equal_one_by_one(likelihood, structure):
    algorithm = predictive(likelihood, structure)
    theta, hyper, batch = initial(algorithm.model), tensors(algorithm), episodes(likelihood, (2,), 2)
    _, gradient, hyper_gradient, _ = MetaGradient(algorithm)(Meta(theta, hyper), batch)
    expected = []
    for i in range(2):
        leaves = [v.clone().requires_grad_() for v in (*theta.values(), *hyper.values())]
        values = dict(zip([*theta, *hyper], leaves, strict=True))
        parts = {n: values[n] for n in theta}, {n: values[n] for n in hyper}
        expected.append(torch.autograd.grad(objective_of(algorithm, *parts, task(batch, i))[0], leaves))
    means = [sum(each) / 2 for each in zip(*expected, strict=True)]
    assert_equal([*gradient.values(), *hyper_gradient.values()], means)


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.usefixtures("one_source")
@pytest.mark.parametrize(
    ("likelihood", "structure"),
    [(Gaussian(SIGMA, learned=True), GGN), (Probit(), LastLayer), (Gaussian(SIGMA, learned=True), KFAC)],
    ids=["ggn", "classes", "kfac"],
)
def test_compiled_and_checkpointed_equal_eager(likelihood, structure, monkeypatch):
    """In one graph, where nothing comes back to Python; of Newton's steps, all alike, two."""
    monkeypatch.setattr(newton, "NEWTON_STEPS", 2)
    algorithm = predictive(likelihood, structure, widths=(3,), inner_steps=1)
    meta, batch = Meta(initial(algorithm.model), tensors(algorithm)), episodes(likelihood, (2,), 2)
    torch._dynamo.utils.counters.clear()
    compiled = MetaGradient(algorithm)
    compiled.compile()
    expected = MetaGradient(algorithm)(meta, batch)
    assert_equal(compiled(meta, batch), expected)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert_equal(MetaGradient(algorithm, checkpoint_steps=True)(meta, batch), expected)


def test_strong_prior_is_the_network_at_theta():
    """Tau to infinity leaves nothing to adapt."""
    model = mlp(outputs=2)
    settings = {"model": model, "likelihood": Gaussian(SIGMA), "inner_lr": 0.1}
    algorithm = LLAMAPredictive(**settings, curvature=GGN(model, (2,), 1e12))
    theta, episode = initial(model), task(episodes(Gaussian(), (2,), 2))
    at_theta = Gaussian(SIGMA).nll(functional_call(model, theta, (episode.query.x,)), episode.query.y)
    assert_equal(objective_of(algorithm, theta, {}, episode)[0], at_theta / len(episode.query.y), rtol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": None}, "algorithm=llama_predictive: expected a curvature, got curvature=none"),
        ({"curvature": Hessian(mlp(), (2,))}, "expected a curvature that can find the mode, got curvature=hessian"),
        ({"likelihood": Categorical()}, "expected a predictive in closed form, got Categorical"),
        ({"likelihood": Probit(), "joint": True}, "algorithm.joint=true: expected likelihood=gaussian, got Probit"),
        ({"likelihood": HeteroscedasticGaussian()}, "HeteroscedasticGaussian"),
    ],
)
def test_refusals(settings, message):
    defaults = {"model": mlp(), "likelihood": Gaussian(), "curvature": GGN(mlp(), (2,)), "inner_lr": 0.1}
    with pytest.raises(ValueError, match=message):
        LLAMAPredictive(**defaults | settings)


@pytest.mark.parametrize("key", ["mode", "inner_loop"])
def test_maml_adapts_to_the_mode_too(key):
    """One Gauss-Newton step ends where the linear model's mode is, which is exact for a linear network."""
    model = mlp(outputs=2, widths=())
    setting = {"mode": True} if key == "mode" else {"inner_loop": "gauss_newton"}
    algorithm = MAML(model=model, likelihood=Gaussian(SIGMA), curvature=GGN(model, (2,), TAU), inner_lr=1e-9, **setting)
    theta, (support, query) = initial(model), task(episodes(Gaussian(), (2,), 2))
    precision = dense_precision(Gaussian(SIGMA), model, theta, support.x, TAU)
    jacobian = dense_jacobian(model, theta, support.x).flatten(0, 1)
    residual = (support.y - functional_call(model, theta, (support.x,))).flatten()
    mode = vector(theta) + torch.linalg.solve(precision, jacobian.T @ residual / SIGMA**2)
    expected = Gaussian(SIGMA).nll(functional_call(model, unvector(mode, theta), (query.x,)), query.y) / len(query.y)
    found = objective_of(algorithm, theta, {}, task(episodes(Gaussian(), (2,), 2)))[0]
    assert_equal(found, expected, rtol=1e-6, atol=1e-7)


def test_a_run_is_trained_and_used(trained):
    """Without inner steps evaluation takes none, and production serves the linear model at its mode."""
    quick = ["trainer=smoke", "test_tasks=10", "validation_tasks=5", "model.widths=[8,8]", "hyper_lr=0.02"]
    names = ["algorithm=llama_predictive", "curvature.learned=true", "curvature.prior_precision=1"]
    folder = trained("llama-predictive", *quick, *names)
    assert (folder / "plots" / "fan.png").exists()
    learner = meta_exp.load(folder, ["calibrate=null"])  # then both have one mode
    assert learner.learner.evaluation_steps == 0
    x = np.linspace(-4, 4, 5)[:, None]
    task = learner.adapt(x, np.sin(x[:, 0]))
    served, plain = task.predict(x), task.predict(x, kind="map")
    np.testing.assert_allclose(served.mean, plain.mean, rtol=1e-5)
    assert (served.variance > plain.variance).all()


def test_the_best_checkpoint_is_that_of_what_is_served(config):
    """The config says so, and the loss of the result stays the loss."""
    run = build(config("algorithm=llama_predictive", "trainer=smoke", "logger=none", "validation_tasks=5"))
    run.trainer.fit(run.learner, run.stream)
    scores = run.trainer.callback_metrics
    assert run.best.monitor == "validation/linearized/nll" in scores
    assert run.best.score <= float(scores["validation/linearized/nll"])
    assert run.best.loss > 0
    assert run.best.loss != run.best.score
