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
    refuse_unfit,
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


class Net(nn.Module):
    """A network of one's own around a layer of any kind."""

    def __init__(self, layer=None, outputs=3):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(2, 4), layer or nn.Identity(), nn.Linear(4, outputs)

    def forward(self, x):
        return self.last(self.layer(self.first(x)))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + len(x)
        return x


class Otherwise(nn.Module):
    def forward(self, x):
        return x if self.training else 2 * x


class Flat(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def placed(weight):
    """A layer whose weights lie in memory as those given do."""
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(weight)
    return layer


UNFIT = {
    "expected parameters that require gradients, got none": lambda: Net().requires_grad_(False),
    r"from \[2, 2\] to \[2, 3\], got \[2, 5\]": lambda: Net(outputs=5),
    r"to \[2, 3\], got \[2, 3, 1\]": lambda: nn.Sequential(Net(), nn.Unflatten(1, (3, 1))),
    "got tuple": lambda: nn.Sequential(Net(), Functional(lambda x: (x, x))),
    "got RuntimeError in layer 'layer': .*mat1 and mat2 shapes cannot be multiplied": lambda: Net(nn.Linear(3, 3)),
    "finite outputs of normal inputs, got NaN": lambda: Net(Functional(lambda x: x / 0 * 0)),
    "without gaps or repetitions in memory, got layer.weight; make": lambda: Net(placed(torch.randn(4, 8)[:, ::2])),
    "repetitions in memory, got layer.weight": lambda: Net(placed(torch.randn(4).expand(4, 4))),
    r"model layer 'layer': expected a norm .*batch_norm in BatchNorm1d; use meta_exp": lambda: Net(nn.BatchNorm1d(4)),
    r"model layer 'layer': expected nothing random.*, got .* in Dropout; leave": lambda: Net(nn.Dropout(0.5)),
    r"model layer 'layer.1': expected nothing random": lambda: Net(nn.Sequential(nn.Tanh(), nn.AlphaDropout())),
    "'layer': expected nothing random": lambda: Net(Functional(lambda x: x + torch.randn_like(x))),
    "buffers that stay as they are, got layer.seen changed; compute it anew": lambda: Net(Counting()),
    "the same outputs in training and in evaluation": lambda: Net(Otherwise()),
    "twice under vmap, got RuntimeError in layer 'layer'": lambda: Net(Functional(lambda x: x * x.sum().item())),
    "twice under vmap, got RuntimeError in layer 'layer': .*branch|data-dependent": lambda: Net(
        Functional(lambda x: x if x.sum() > 0 else 2 * x)
    ),
    "twice under vmap, got RuntimeError in layer 'layer': .*setup_context": lambda: Net(Functional(Flat.apply)),
}


@pytest.mark.parametrize("message", UNFIT)
def test_refuses_what_cannot_adapt(message):
    """In one line that names the network or the layer, and leaves the network as it was."""
    model = UNFIT[message]()
    with pytest.raises(ValueError, match=message) as refusal:
        refuse_unfit(model, (2,), 3)
    assert "\n" not in str(refusal.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


ADAPTS = [nn.Dropout(0.0), Centred(), GroupNorm(4, groups=2), nn.LazyLinear(4), placed(torch.randn(4, 4).T)]


@pytest.mark.parametrize("layer", [*ADAPTS, Functional(lambda x: x.clone().relu_())])
def test_accepts_what_adapts(layer):
    refuse_unfit(Net(layer), (2,), 3)
    frozen = Net(layer)
    frozen.first.requires_grad_(False)
    refuse_unfit(frozen, (2,), 3)
