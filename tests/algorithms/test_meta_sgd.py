"""Meta-SGD against the paper's loop in torch.autograd, its special case MAML, and what the rates are."""

import pytest
import torch
from oracles import assert_equal, conv4, episodes, gradcheck, image_shape, initial, mlp, nll, starts, task
from torch.func import functional_call

from meta_exp.adaptation import Meta, adapt
from meta_exp.algorithms import MAML, MetaSGD
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.training.meta_gradient import MetaGradient

GRANULARITIES = ["parameter", "layer", "layer_and_step"]


def made(likelihood, steps=3, **settings):
    """The algorithm, rates of both signs or their logarithms, and a meta-batch."""
    model = mlp(outputs=2)
    algorithm = MetaSGD(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=steps, **settings)
    torch.manual_seed(3)
    hyper = {name: value + 0.1 * torch.randn_like(value) for name, value in starts(algorithm.hyperparameters()).items()}
    return algorithm, Meta(initial(model), hyper), episodes(likelihood, (2,), 2)


def by_the_paper(algorithm, meta, batch):
    """The objective and its gradients in theta and in the rates: Algorithm 1 of the paper, task by task."""
    theta, hyper = ({n: v.clone().requires_grad_() for n, v in part.items()} for part in meta[:2])
    total = 0.0
    for i in range(len(batch.query.y)):
        support, query = task(batch, i)
        params = theta
        for k in range(algorithm.inner_steps):
            outputs = functional_call(algorithm.model, params, (support.x,))
            loss = algorithm.likelihood.loss(outputs, support.y)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            moved = {}
            for (name, value), gradient in zip(params.items(), gradients, strict=True):
                alpha = hyper[f"log_rate.{name}"].exp() if algorithm.positive else hyper[f"rate.{name}"]
                moved[name] = value - (alpha[k] if algorithm.rate_per == "layer_and_step" else alpha) * gradient
            params = moved
        outputs = functional_call(algorithm.model, params, (query.x,))
        total = total + nll(algorithm.likelihood, outputs, query.y) / len(query.y)
    total = total / len(batch.query.y)
    found = iter(torch.autograd.grad(total, [*theta.values(), *hyper.values()]))
    return total.detach(), {name: next(found) for name in theta}, {name: next(found) for name in hyper}


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("rate_per", GRANULARITIES)
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_gradients_are_those_of_the_paper(likelihood, rate_per, positive):
    algorithm, meta, batch = made(likelihood, rate_per=rate_per, positive=positive)
    assert_equal(MetaGradient(algorithm)(meta, batch)[:3], by_the_paper(algorithm, meta, batch))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("rate_per", GRANULARITIES)
def test_equal_rates_are_maml(rate_per, positive):
    """As all of them start."""
    model, batch = conv4(), episodes(Categorical(), image_shape("stride"), 3)
    settings = {"model": model, "likelihood": Categorical(), "inner_lr": 0.1, "inner_steps": 2}
    algorithm = MetaSGD(**settings, rate_per=rate_per, positive=positive)
    learned = algorithm.hyperparameters()
    found = MetaGradient(algorithm)(Meta(initial(model), starts(learned)), batch)
    assert_equal(found[:2], MetaGradient(MAML(**settings))(Meta(initial(model), {}), batch)[:2])
    assert {entry.name for entry in learned.values()} == {f"rate.{name}" for name in initial(model)}
    assert all(entry.value(entry.start).mean().item() == pytest.approx(0.1) for entry in learned.values())


def test_shapes_of_the_rates():
    """One for each entry, tensor, or tensor and step; a parameter that is frozen has none."""
    model = mlp(outputs=2)
    model[1].bias.requires_grad_(False)
    settings = {"model": model, "likelihood": Gaussian(), "inner_lr": 0.1, "inner_steps": 3}
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    for rate_per, shape in (("parameter", None), ("layer", ()), ("layer_and_step", (3,))):
        rates = starts(MetaSGD(**settings, rate_per=rate_per).hyperparameters())
        assert list(rates) == [f"rate.{name}" for name in names]
        for name in names:
            assert rates[f"rate.{name}"].shape == (model.get_parameter(name).shape if shape is None else shape)


def test_a_rate_of_zero_stays_and_a_negative_one_climbs():
    algorithm, meta, batch = made(Gaussian(0.5), steps=1)
    support = task(batch).support
    name = "1.weight"
    for rate in (0.0, -0.1):
        hyper = meta.hyper | {f"rate.{name}": torch.full_like(meta.theta[name], rate)}
        moved = adapt(algorithm, support, meta._replace(hyper=hyper), 1)[name] - meta.theta[name]
        descent = adapt(
            algorithm, support, meta._replace(hyper=meta.hyper | {f"rate.{name}": -hyper[f"rate.{name}"]}), 1
        )
        assert_equal(moved, meta.theta[name] - descent[name])
        assert moved.any() == (rate != 0)


def test_steps_beyond_training_take_the_last_rates():
    algorithm, meta, _ = made(Gaussian(0.5), steps=2, rate_per="layer_and_step")
    rates = [algorithm.rates(k, meta) for k in range(4)]
    assert_equal(rates[1], rates[2])
    assert_equal(rates[1], rates[3])
    assert any(rates[0][name] != rates[1][name] for name in rates[0])


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("rate_per", GRANULARITIES)
def test_gradcheck(rate_per, positive):
    algorithm, meta, batch = made(Gaussian(0.5), steps=2, rate_per=rate_per, positive=positive)
    assert gradcheck(algorithm, meta, task(batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate_per": "tensor"}, "algorithm.rate_per: expected one of parameter, layer, layer_and_step, got tensor"),
        ({"inner_lr": 0.0}, "algorithm.inner_lr"),
        ({"inner_steps": 0}, "algorithm.inner_steps"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        MetaSGD(**{"model": mlp(), "likelihood": Gaussian(), "inner_lr": 0.1} | settings)
