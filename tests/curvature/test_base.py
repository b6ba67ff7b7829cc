"""A structure without some layers is that of a network in which these are frozen at the same values."""

import pytest
import torch
from oracles import assert_equal, conv4, examples, image_shape, initial, mlp
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta
from meta_exp.algorithms import LLAMAPredictive
from meta_exp.curvature import GGN, KFAC, Diagonal, Hessian, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian, Probit
from meta_exp.tasks.episode import Episode

TAU = 0.3


def case(name):
    """Make the network, its input shape, its layers that stay, a likelihood and data."""
    torch.manual_seed(0)
    if name == "mlp":
        return mlp, (2,), ["3"], Gaussian(0.5), examples(Gaussian(0.5), (2,), (4,), 1)
    shape = image_shape("stride")
    norms = [f"blocks.{i}.1.affine" for i in range(4)]
    return conv4, shape, norms, Categorical(), examples(Categorical(), shape, (4,), 3)


def frozen(make, layers, values):
    """The network with the ``values``, and the named layers frozen."""
    model = make()
    model.load_state_dict(values)
    for layer in layers:
        model.get_submodule(layer).requires_grad_(False)
    return model


@pytest.mark.parametrize("at_mode", [False, True])
@pytest.mark.parametrize("structure", [GGN, KFAC, Diagonal, Hessian, LastLayer])
@pytest.mark.parametrize("name", ["mlp", "conv4"])
def test_without_layers_is_with_them_frozen(name, structure, at_mode):
    """Log det, variances, draws, moments and mode; theta_i is elsewhere than the network's own parameters."""
    make, shape, layers, likelihood, data = case(name)
    theta = initial(make())
    theta_i = {key: value + 0.05 * torch.randn_like(value) for key, value in theta.items()}
    held = {key: theta[key] if key.rpartition(".")[0] in layers else value for key, value in theta_i.items()}
    ours = structure(make(), shape, TAU).without(layers)
    theirs = structure(frozen(make, layers, held), shape, TAU)
    assert ours.parameter_names == theirs.parameter_names
    if at_mode and not ours.finds_mode:
        return
    rest = {key: value for key, value in held.items() if key.rpartition(".")[0] not in layers}
    prior = {key: theta[key] for key in rest}
    one = ours.posterior(held, data, likelihood, {}, theta if at_mode else None)
    other = theirs.posterior(rest, data, likelihood, {}, prior if at_mode else None)
    new = torch.randn(3, *shape).double()
    assert_equal(one.log_det_ratio(), other.log_det_ratio())
    assert_equal(one.functional_variance(new), other.functional_variance(new))
    noise = ours.noise(torch.Generator().manual_seed(0), (), held, 4, likelihood)
    same = theirs.noise(torch.Generator().manual_seed(0), (), rest, 4, likelihood)
    tree_map(assert_equal, noise, same)
    draw = one.sample(noise)
    assert list(draw) == ours.parameter_names
    assert_equal(draw, other.sample(same))
    if at_mode:
        assert_equal(one.mode(), other.mode())
        assert_equal(one.moments(new), other.moments(new))
    if structure is not LastLayer:
        every = structure(make(), shape, TAU).posterior(held, data, likelihood, {}, theta if at_mode else None)
        assert every.log_det_ratio() > one.log_det_ratio() + 1e-3


@pytest.mark.parametrize("structure", [GGN, KFAC, Diagonal, LastLayer])
@pytest.mark.parametrize("name", ["mlp", "conv4"])
def test_the_predictive_is_trained_without_them(name, structure):
    """LLAMA's predictive with layers that stay is that of the network in which they are frozen."""
    make, shape, layers, likelihood, data = case(name)
    likelihood = Probit() if name == "conv4" else likelihood
    theta = initial(make())
    query = examples(likelihood, shape, (3,), 3 if name == "conv4" else 1)
    model, fixed = make(), frozen(make, layers, theta)
    settings = {"likelihood": likelihood, "inner_lr": 0.1, "inner_steps": 1}
    whole = LLAMAPredictive(model=model, curvature=structure(model, shape, TAU), stay=layers, **settings)
    part = LLAMAPredictive(model=fixed, curvature=structure(fixed, shape, TAU), **settings)
    rest = {key: theta[key] for key in whole.adapted}
    values = []
    for algorithm, start in ((whole, theta), (part, rest)):
        meta = Meta(start, {})
        path = [start, algorithm.step(start, data, 0, meta)]
        values.append(algorithm.objective(path, Episode(data, query), meta))
    assert_equal(*values)


def test_without_layers_that_it_does_not_treat_it_is_the_same():
    curvature = LastLayer(mlp(), (2,))
    assert curvature.without(["1", "3"]) is curvature


def test_the_floor_is_nothing_where_the_last_layer_is_known():
    curvature, outputs = GGN(mlp(outputs=2), (2,), TAU), torch.randn(4, 2).double()
    assert curvature.log_det_floor(outputs, Gaussian(0.5), {}) > 1
    assert curvature.without(["1"]).log_det_floor(outputs, Gaussian(0.5), {}) > 1
    assert curvature.without(["5"]).log_det_floor(outputs, Gaussian(0.5), {}) == 0
