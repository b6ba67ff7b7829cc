"""Reptile against the paper's loop, and what its query set trains."""

import pytest
import torch
from oracles import assert_equal, conv4, episodes, image_shape, initial, mlp, starts, task
from torch.func import functional_call

from meta_exp.adaptation import Meta
from meta_exp.algorithms import MAML, Reptile
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.training.meta_gradient import MetaGradient


def by_the_paper(algorithm, theta, batch):
    """The mean over tasks of theta - theta_i after K steps of gradient descent, on support and query set in turn."""
    ways = []
    for i in range(len(batch.query.y)):
        sets = task(batch, i)
        params = {name: value.clone().requires_grad_() for name, value in theta.items()}
        for k in range(algorithm.inner_steps):
            x, y = sets[k % 2]
            loss = algorithm.likelihood.loss(functional_call(algorithm.model, params, (x,)), y)
            gradients = torch.autograd.grad(loss, list(params.values()))
            with torch.no_grad():
                for value, gradient in zip(params.values(), gradients, strict=True):
                    value -= algorithm.inner_lr * gradient
        ways.append({name: theta[name] - value.detach() for name, value in params.items()})
    return {name: torch.stack([way[name] for way in ways]).mean(0) for name in theta}


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("case", ["gaussian", "categorical", "conv4"])
def test_the_gradient_is_the_way(case, steps):
    likelihood = Gaussian(0.5) if case == "gaussian" else Categorical()
    model, shape = (conv4(), image_shape("stride")) if case == "conv4" else (mlp(outputs=2), (2,))
    algorithm = Reptile(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps)
    batch = episodes(likelihood, shape, 3 if case == "conv4" else 2)
    found = MetaGradient(algorithm)(Meta(initial(model), {}), batch)[1]
    assert_equal(found, by_the_paper(algorithm, initial(model), batch))


def test_one_step_is_the_gradient_of_the_support_loss():
    """Of all tasks together: nothing of it is about adapting, as the paper says."""
    model, batch = mlp(outputs=2), episodes(Gaussian(), (2,), 2)
    algorithm = Reptile(model=model, likelihood=Gaussian(), inner_lr=0.1, inner_steps=1)
    found = MetaGradient(algorithm)(Meta(initial(model), {}), batch)[1]
    theta = {name: value.requires_grad_() for name, value in initial(model).items()}
    loss = (functional_call(model, theta, (batch.support.x.flatten(0, 1),)) - batch.support.y.flatten(0, 1)).square()
    gradients = torch.autograd.grad(0.1 * loss.mean(), list(theta.values()))
    assert_equal(found, dict(zip(theta, gradients, strict=True)))


def test_sigma_is_learned_from_the_query_set():
    """As in MAML after the same steps on the support set, from which theta itself gets nothing."""
    model, batch = mlp(outputs=2), episodes(Gaussian(), (2,), 2)
    settings = {"model": model, "likelihood": Gaussian(0.5, learned=True), "inner_lr": 0.1, "inner_steps": 3}
    reptile, maml = Reptile(**settings), MAML(**settings)
    meta = Meta(initial(model), starts(maml.hyperparameters()))
    assert_equal(MetaGradient(reptile)(meta, batch)[2], MetaGradient(maml)(meta, batch)[2])
    assert MetaGradient(reptile)(meta, batch)[2]["log_sigma_noise"] != 0


@pytest.mark.parametrize(("key", "value"), [("inner_lr", 0.0), ("inner_steps", 0)])
def test_refusals(key, value):
    with pytest.raises(ValueError, match=f"algorithm.{key}"):
        Reptile(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1, key: value})
