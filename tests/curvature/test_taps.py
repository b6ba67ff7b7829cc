"""Recorded layer inputs and output gradients against autograd, and the networks that are refused."""

import pytest
import torch
from oracles import assert_equal, conv4, image_shape, initial, mlp
from torch import nn
from torch.func import functional_call

from meta_exp.curvature.taps import Taps, layers_with_parameters


def taps_on(model, shape):
    return Taps(model, shape, layers_with_parameters(model))


@pytest.mark.parametrize(
    ("model", "shape"), [(mlp(3), (2,))] + [(conv4(norm), image_shape("stride")) for norm in ("batch", "group", "none")]
)
def test_linearize(model, shape):
    """Outputs are the network's; inputs and output gradients are those that layers record in a plain backward pass."""
    taps, x = taps_on(model, shape), torch.randn(4, *shape).double()
    seen = {}
    handles = [
        layer.register_forward_hook(lambda _m, i, o, name=name: seen.__setitem__(name, (i[0], o)))
        for name, layer in taps.layers.items()
    ]
    expected = model(x)
    for handle in handles:
        handle.remove()
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [o for _, o in seen.values()], cotangent)

    outputs, inputs, pullback = taps.linearize(initial(model), x)
    assert_equal(outputs, expected)
    assert_equal(inputs, {name: i for name, (i, _) in seen.items()})
    assert_equal(pullback(cotangent)[0], dict(zip(seen, gradients, strict=True)))


def test_sleep_between_calls():
    """Hooks change nothing outside ``linearize``, also after a pass that failed; two sets on one model do not meet."""
    model = mlp(3)
    params, x = initial(model), torch.randn(4, 2).double()
    expected = model(x)
    first, second = taps_on(model, (2,)), taps_on(model, (2,))
    with pytest.raises(RuntimeError):
        first.linearize(params, torch.randn(4, 7).double())
    assert torch.equal(functional_call(model, params, (x,)), expected)
    assert_equal(first.linearize(params, x)[1], second.linearize(params, x)[1])


@pytest.mark.parametrize(
    "layer",
    [
        nn.PReLU(),
        nn.BatchNorm1d(4),
        nn.Conv1d(1, 1, 1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
)
def test_refuses_layers_it_does_not_treat(layer):
    """The error names the layer and shows it."""
    with pytest.raises(ValueError, match=rf"curvature on layer '1': .*{type(layer).__name__}"):
        taps_on(nn.Sequential(nn.Linear(2, 4), layer), (2,))


def test_refuses_shared_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="shared parameters"):
        taps_on(model, (2,))


def test_refuses_a_layer_that_is_called_twice():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with pytest.raises(ValueError, match="one call a forward pass"):
        taps_on(model, (2,)).linearize(initial(model), torch.randn(3, 2))


def test_refuses_a_layer_that_is_never_called():
    model = mlp(3)
    model.register_module("spare", nn.Linear(2, 2))
    model.forward = lambda x: nn.Sequential(*list(model.children())[:-1])(x)
    with pytest.raises(ValueError, match="'spare': expected a layer that the forward pass calls"):
        taps_on(model, (2,))
