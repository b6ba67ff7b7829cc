"""The convolution as a product of patches, and its first and second derivatives, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal
from torch.func import functional_call, grad, vmap

from meta_exp.models.convolution import Conv2d


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [2, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_give_the_convolution(channels, side, stride):
    """For weights of each task's own: values, gradients in weights and inputs, and gradients of those."""
    tasks, points, filters = 3, 2, 4
    layer = Conv2d(channels, filters, stride=stride).double()
    x = torch.randn(tasks, points, channels, side, side).double()
    weights = {"weight": torch.randn(tasks, filters, channels, 3, 3).double(), "bias": torch.randn(tasks, 4).double()}

    def ours(params, x):
        return functional_call(Patches(layer), {f"layer.{name}": value for name, value in params.items()}, (x,))

    def theirs(params, x):
        return F.conv2d(x, params["weight"], params["bias"], stride, 1)

    def second(f):
        def inner(params, x):
            return (f(params, x).sin() ** 2).sum()

        def outer(params, x):
            along_params, along_x = grad(inner, (0, 1))(params, x)
            return sum((g**3).sum() for g in (*along_params.values(), along_x))

        return vmap(grad(outer, (0, 1)))

    assert_equal(vmap(ours)(weights, x), vmap(theirs)(weights, x))
    assert_equal(second(ours)(weights, x), second(theirs)(weights, x))


def test_patches_of_a_shortcut():
    """One position large, without a bias."""
    layer, x = Conv2d(3, 4, size=1, padding=0, bias=False).double(), torch.randn(2, 3, 5, 4).double()
    assert_equal(layer.by_patches(x), F.conv2d(x, layer.weight))


class Patches(torch.nn.Module):
    """The layer, made to take the patches."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer.by_patches(x)
