"""Activations: derivatives up to the third against differences, under vmap, and names that are refused."""

import pytest
import torch
from oracles import assert_equal
from torch.func import grad, vmap

from meta_exp.models import MLP
from meta_exp.models.activation import ACTIVATIONS, make


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_by_differences(name):
    """Of the function, of its derivative, and of that one's."""
    x = torch.randn(20, generator=torch.Generator().manual_seed(0)).double().requires_grad_()

    def first(x):
        return torch.autograd.grad(make(name)(x).pow(3).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(make(name), x)
    assert torch.autograd.gradcheck(first, x)
    assert torch.autograd.gradgradcheck(first, x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_under_vmap(name):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()

    def third(x):
        return grad(lambda x: grad(lambda x: (grad(lambda x: make(name)(x).pow(3).sum())(x) ** 2).sum())(x).sum())(x)

    assert_equal(vmap(third)(x), torch.stack([third(row) for row in x]))


def test_the_slope_of_few_shot_networks():
    assert_equal(make("leaky_relu")(torch.tensor([-2.0, 3.0])), torch.tensor([-0.2, 3.0]))


def test_refuses_others():
    with pytest.raises(ValueError, match=r"model\.activation: expected one of relu, .*, got swish"):
        MLP((1,), 1, activation="swish")
