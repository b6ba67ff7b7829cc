"""The last layer's log det against the dense GGN's last block, by hand, and the networks it refuses."""

import math

import pytest
import torch
from oracles import CASES, assert_equal, dense_log_det_ratio, dense_precision, initial, mlp, unlabelled, vector
from torch import nn
from torch.func import grad

from meta_exp.curvature import GGN, LastLayer
from meta_exp.likelihoods import Gaussian


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_block(name):
    """The log det is that of the last Linear layer's block of the dense GGN, batch statistics or not."""
    make, shape, _, likelihood = CASES[name]
    model = make()
    params, x = initial(model), torch.randn(4, *shape).double()
    count = sum(p.numel() for p in list(params.values())[-2:])
    precision = dense_precision(likelihood, model, params, x, 0.3)[-count:, -count:]
    posterior = LastLayer(model, shape, 0.3).posterior(params, unlabelled(x), likelihood, {})
    assert_equal(posterior.log_det_ratio(), dense_log_det_ratio(precision, 0.3))


def test_is_the_whole_ggn_of_a_linear_model():
    """With no hidden layer the two structures are one."""
    model, x = mlp(outputs=2, widths=()), torch.randn(5, 2).double()
    full, last = (
        s(model, (2,), 0.3).posterior(initial(model), unlabelled(x), Gaussian(), {}) for s in (GGN, LastLayer)
    )
    assert_equal(last.log_det_ratio(), full.log_det_ratio())
    assert_equal(last.functional_variance(x), full.functional_variance(x))


@pytest.mark.parametrize("u", [0.3, 2.0])
def test_one_parameter_by_hand(u):
    """f = v relu(u x), x > 0, u > 0: H = tau + X u^2 of the one parameter v, with X = sum x_n^2 / sigma^2

    d/du log(H / tau) = 2 X u / (tau + X u^2) > 0, and d/dv = 0.
    """
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    params = {"0.weight": torch.tensor([[u]]).double(), "2.weight": torch.tensor([[-1.5]]).double()}
    x, tau, sigma = torch.tensor([[0.5], [1.0]]).double(), 0.25, 0.5
    scale = 1.25 / sigma**2
    curvature = LastLayer(model, (1,), tau)

    def function(params):
        return curvature.posterior(params, unlabelled(x), Gaussian(sigma), {}).log_det_ratio()

    assert_equal(function(params), torch.tensor(math.log1p(scale * u**2 / tau)).double(), rtol=1e-6)
    expected = torch.tensor([2 * scale * u / (tau + scale * u**2), 0.0]).double()
    assert_equal(vector(grad(function)(params)), expected, rtol=1e-6)


class DefinedBackwards(nn.Module):
    """A network whose layer defined last is its first."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(9, 2)
        self.first = nn.Linear(9, 9)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu())


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), nn.Sequential(nn.Flatten(), nn.Linear(9, 2), nn.PReLU())]
)
def test_refuses_networks_that_end_otherwise(model):
    with pytest.raises(ValueError, match="curvature=last_layer: expected a Linear layer at the end"):
        LastLayer(model, (1, 3, 3))


@pytest.mark.parametrize("model", [DefinedBackwards(), nn.Sequential(nn.Flatten(), nn.Linear(9, 2), nn.Tanh())])
def test_refuses_layers_that_are_not_the_output(model):
    """Anything after the layer defined last would make its rows wrong without a sign."""
    with pytest.raises(ValueError, match="the layer defined last, to give the outputs themselves"):
        LastLayer(model, (1, 3, 3))
