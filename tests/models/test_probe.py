"""What a network does is found whatever its layers are called, and whether they are layers at all."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal, dense_log_det_ratio, dense_precision, initial, unlabelled
from torch import nn

from meta_exp.curvature import GGN
from meta_exp.likelihoods import Gaussian
from meta_exp.models import (
    MLP,
    Affine,
    BatchNorm,
    Conv4,
    GroupNorm,
    couples_points,
    refuse_fused_norms,
    refuse_repeated_layers,
)


class Centred(nn.Module):
    """A layer of one's own that subtracts the batch's mean."""

    def forward(self, x):
        return x - x.mean(0)


class Attention(nn.Module):
    """Points that look at one another."""

    def forward(self, x):
        return torch.softmax(x @ x.T, -1) @ x


class Hidden(nn.Module):
    """A coupling behind a scale that is zero at first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.scale * x.sum(0)


class Functional(nn.Module):
    """A norm that is called, not a layer."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


def net(*layers):
    return nn.Sequential(nn.Linear(2, 4), *layers, nn.Linear(4, 2)).double()


@pytest.mark.parametrize("layer", [Centred(), Attention(), Hidden(), BatchNorm(4), nn.BatchNorm1d(4)])
def test_coupled(layer):
    assert couples_points(net(layer), (2,))


@pytest.mark.parametrize("layer", [GroupNorm(4, groups=2), Affine(4), nn.Tanh(), nn.RMSNorm(4), nn.Dropout(0.0)])
def test_not_coupled(layer):
    assert not couples_points(net(layer), (2,))


@pytest.mark.parametrize(("norm", "coupled"), [("batch", True), ("group", False), ("none", False)])
def test_norms_of_conv4(norm, coupled):
    assert couples_points(Conv4((1, 16, 16), 2, filters=8, norm=norm), (1, 16, 16)) == coupled


@pytest.mark.parametrize("layer", [Centred(), Attention()])
def test_curvature_knows_of_the_coupling(layer):
    """The log det of a network with a layer of one's own is that of the dense matrix."""
    torch.manual_seed(0)
    model, x = net(layer), torch.randn(4, 2).double()
    posterior = GGN(model, (2,), 0.3).posterior(initial(model), unlabelled(x), Gaussian(0.5), {})
    precision = dense_precision(Gaussian(0.5), model, initial(model), x, 0.3)
    assert_equal(posterior.log_det_ratio(), dense_log_det_ratio(precision, 0.3))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm1d(4, affine=False).eval(), (4,)),
        (nn.BatchNorm2d(4), (4, 2, 2)),
        (nn.InstanceNorm2d(4), (4, 2, 2)),
        (nn.LayerNorm(4), (4,)),
        (Functional(lambda x: F.batch_norm(x, None, None, training=True)), (4,)),
        (Functional(lambda x: F.layer_norm(x, (4,))), (4,)),
        (Functional(lambda x: F.instance_norm(x)), (4, 2, 2)),
    ],
)
def test_refuses_fused_norms(layer, shape):
    """The error names the layer that calls it, and its kind."""
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=rf"model layer '1': expected a norm with .*_norm in {kind}; use meta_exp"):
        refuse_fused_norms(nn.Sequential(Affine(4), layer), shape)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(MLP((2,), 3), (2,)), (Conv4((1, 16, 16), 3, filters=8), (1, 16, 16)), (nn.GroupNorm(2, 4), (4,))],
)
def test_accepts_norms_that_differentiate(model, shape):
    refuse_fused_norms(model, shape)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_refuses_a_layer_that_stands_twice():
    """functional_call would leave it with the parameters of a task; tied parameters of two layers it puts back."""
    layer, tied = nn.Linear(4, 4), net(nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match="model layer '2': expected a layer that stands there once, got layer '0' again"
    ):
        refuse_repeated_layers(nn.Sequential(layer, nn.ReLU(), layer))
    tied[1].weight = nn.Linear(4, 4).weight
    refuse_repeated_layers(tied)
    activation = nn.ReLU()
    refuse_repeated_layers(nn.Sequential(activation, nn.Linear(4, 4), activation))
