"""MAML++ against the paper's loop in torch.autograd, and each of its parts switched off."""

import pytest
import torch
from oracles import assert_equal, conv4, episodes, gradcheck, image_shape, initial, mlp, nll, starts, task
from torch.func import functional_call

from meta_exp.adaptation import Meta, whole_path
from meta_exp.algorithms import MAML, MAMLPlusPlus, MetaSGD
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.training.meta_gradient import MetaGradient

OFF = {"multi_step": 0.0, "first_order_until": 0.0, "per_step_norms": False}


def made(model, likelihood, batch, progress=1.0, steps=3, **settings):
    """The algorithm with learned values that are not at their starts."""
    algorithm = MAMLPlusPlus(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, **settings)
    torch.manual_seed(3)
    hyper = {name: value + 0.1 * torch.randn_like(value) for name, value in starts(algorithm.hyperparameters()).items()}
    return algorithm, Meta(initial(model), hyper, progress=torch.tensor(progress)), batch


def small(likelihood, **settings):
    return made(mlp(outputs=2), likelihood, episodes(likelihood, (2,), 2), **settings)


def images(norm="batch", **settings):
    return made(conv4(norm), Categorical(), episodes(Categorical(), image_shape("stride"), 3), **settings)


def by_the_paper(algorithm, meta, batch):
    """Objective and gradients by a loop over tasks and steps, with the public code's weights but for their floor."""
    theta, hyper = ({n: v.clone().requires_grad_() for n, v in part.items()} for part in meta[:2])
    steps, progress, total = algorithm.inner_steps, float(meta.progress), 0.0
    others = max(1 / steps - progress / algorithm.multi_step / steps, 0.0)
    norms = [name for name in theta if ".affine." in name]
    weights = [others] * (steps - 1) + [1 - others * (steps - 1)]
    for i in range(len(batch.query.y)):
        support, query = task(batch, i)
        params = dict(theta)
        for k in range(steps):
            params |= {name: theta[name] if k == 0 else hyper[f"norms.{name}"][k - 1] for name in norms}
            adapted = [name for name in params if name not in norms]
            loss = algorithm.likelihood.loss(functional_call(algorithm.model, params, (support.x,)), support.y)
            second = progress >= algorithm.first_order_until
            gradients = torch.autograd.grad(loss, [params[name] for name in adapted], create_graph=second)
            for name, gradient in zip(adapted, gradients, strict=True):
                params[name] = params[name] - hyper[f"rate.{name}"][k] * gradient
            outputs = functional_call(algorithm.model, params, (query.x,))
            total = total + weights[k] * nll(algorithm.likelihood, outputs, query.y) / len(query.y)
    total = total / len(batch.query.y)
    flat = [*theta.values(), *hyper.values()]
    found = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
    return total.detach(), {name: next(found) for name in theta}, {name: next(found) for name in hyper}


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_gradients_are_those_of_the_paper(likelihood, progress):
    algorithm, meta, batch = small(likelihood, progress=progress)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:3], by_the_paper(algorithm, meta, batch))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_have_a_scale_and_a_shift_for_each_step(norm):
    """That of a step is seen by its support set and by the queries behind it, and no inner gradient moves it."""
    algorithm, meta, batch = images(norm, progress=0.05)
    assert set(algorithm.norms) == {name for name in meta.theta if ".affine." in name}
    assert all(meta.hyper[f"norms.{name}"].shape == (2, 8) for name in algorithm.norms)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:3], by_the_paper(algorithm, meta, batch))
    states = whole_path(algorithm, task(batch).support, meta, 5)
    for k, state in enumerate(states[2:]):
        for name in algorithm.norms:
            assert torch.equal(state[name], meta.hyper[f"norms.{name}"][min(k, 1)])


def test_all_of_it_off_is_maml():
    """Equal rates, the last step's loss alone, second order, and norms that adapt."""
    model, batch = conv4(), episodes(Categorical(), image_shape("stride"), 3)
    settings = {"model": model, "likelihood": Categorical(), "inner_lr": 0.1, "inner_steps": 3}
    algorithm = MAMLPlusPlus(**settings, **OFF)
    meta = Meta(initial(model), starts(algorithm.hyperparameters()), progress=torch.tensor(0.0))
    assert_equal(MetaGradient(algorithm)(meta, batch)[:2], MetaGradient(MAML(**settings))(meta, batch)[:2])


def test_at_the_end_of_training_it_is_meta_sgd_by_layer_and_step():
    """Where there are no norms."""
    algorithm, meta, batch = small(Gaussian(0.5))
    settings = {"model": algorithm.model, "likelihood": Gaussian(0.5), "inner_lr": 0.1, "inner_steps": 3}
    meta_sgd = MetaSGD(**settings, rate_per="layer_and_step")
    assert_equal(MetaGradient(algorithm)(meta, batch)[:3], MetaGradient(meta_sgd)(meta, batch)[:3])


def test_the_first_order_of_early_training_is_first_order_maml():
    model, batch = mlp(outputs=2), episodes(Gaussian(), (2,), 2)
    settings = {"model": model, "likelihood": Gaussian(0.5), "inner_lr": 0.1, "inner_steps": 3}
    algorithm = MAMLPlusPlus(**settings, **OFF | {"first_order_until": 0.5})
    hyper = starts(algorithm.hyperparameters())
    for progress, first in ((0.0, True), (0.49, True), (0.5, False), (1.0, False)):
        meta = Meta(initial(model), hyper, progress=torch.tensor(progress))
        expected = MetaGradient(MAML(**settings, first_order=first))(meta, batch)
        assert_equal(MetaGradient(algorithm)(meta, batch)[:2], expected[:2])


def test_weights_of_the_steps():
    """Equal at first, the last one's alone from ``multi_step`` on, and one in sum throughout."""
    algorithm, meta, batch = small(Gaussian(0.5), multi_step=0.2)
    expected = {0.0: 1 / 3, 0.1: 2 / 3, 0.2: 1.0, 1.0: 1.0}
    for progress, weight in expected.items():
        logs = MetaGradient(algorithm)(meta._replace(progress=torch.tensor(progress)), batch)[3]
        assert logs["last_step_weight"].item() == pytest.approx(weight)


@pytest.mark.parametrize("progress", [0.05, 1.0])
def test_gradcheck(progress):
    """In second order; the first order is no derivative of the objective."""
    algorithm, meta, batch = small(Gaussian(0.5), progress=progress, first_order_until=0.0)
    assert gradcheck(algorithm, meta, task(batch))
    algorithm, meta, batch = images("group", progress=progress, first_order_until=0.0, steps=2)
    assert gradcheck(algorithm, meta, task(batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multi_step": 1.5}, "algorithm.multi_step: expected a share of the training, 0 to 1, got 1.5"),
        ({"first_order_until": -0.1}, "algorithm.first_order_until"),
        ({"rate_per": "tensor"}, "algorithm.rate_per"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        MAMLPlusPlus(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1} | settings)
