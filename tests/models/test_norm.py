"""Composed norms against PyTorch's fused ones, derivatives up to the third, and under vmap."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal
from torch import nn
from torch.func import functional_call, grad, vmap

from meta_exp.models import MLP, Affine, BatchNorm, Conv4, GroupNorm, refuse_fused_norms
from meta_exp.models.norm import couples_points

SHAPES = [(5, 4), (3, 4, 2, 3)]


def fused_batch_norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


def fused_group_norm(x, weight, bias):
    return F.group_norm(x, 2, weight, bias)


def call(norm):
    """A module of ours as a function of x, gamma, beta."""
    return lambda x, weight, bias: functional_call(norm, {"affine.weight": weight, "affine.bias": bias}, (x,))


def derivatives(norm, inputs):
    """First and second derivatives of a sum of cubes of outputs, the second along a random direction, by autograd."""
    first = torch.autograd.grad(norm(*inputs).pow(3).sum(), inputs, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    along = sum((g * torch.randn(g.shape, generator=generator).double()).sum() for g in first)
    return first, torch.autograd.grad(along, inputs)


def random_inputs(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).double().requires_grad_() for s in (shape, shape[1:2], shape[1:2])]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "fused"), [(BatchNorm(4), fused_batch_norm), (GroupNorm(4, groups=2), fused_group_norm)]
)
def test_value_and_derivatives(ours, fused, shape):
    """Value, first and second derivatives in x, gamma and beta equal PyTorch's in a plain autograd loop."""
    inputs = random_inputs(shape)
    assert_equal(call(ours)(*inputs), fused(*inputs))
    assert_equal(derivatives(call(ours), inputs), derivatives(fused, inputs))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", [BatchNorm(4), GroupNorm(4, groups=2)])
def test_derivatives_by_differences(norm, shape):
    """First, second and third derivatives equal finite differences (PyTorch's batch norm has no third at all)."""

    def first(*inputs):
        return torch.autograd.grad(call(norm)(*inputs).pow(3).sum(), inputs, create_graph=True)

    inputs = random_inputs(shape)
    assert torch.autograd.gradcheck(call(norm), inputs)
    assert torch.autograd.gradcheck(first, inputs)
    assert torch.autograd.gradgradcheck(first, inputs, atol=1e-4)


@pytest.mark.parametrize("norm", [BatchNorm(4), GroupNorm(4, groups=2)])
def test_second_order_under_vmap(norm):
    """The gradient of a squared gradient, gamma and beta adapted: vmap over tasks equals the tasks one by one."""

    def meta(weight, bias, x):
        inner = grad(lambda weight, bias: call(norm)(x, weight, bias).pow(3).sum(), (0, 1))
        return sum(g.square().sum() for g in inner(weight, bias))

    x, (weight, bias) = torch.randn(3, 5, 4, 2, 2).double(), random_inputs((5, 4))[1:]
    found = vmap(grad(meta, (0, 1)), (None, None, 0))(weight, bias, x)
    for i, task in enumerate(x):
        expected = torch.autograd.grad(meta(weight, bias, task), (weight, bias))
        assert_equal([g[i] for g in found], list(expected))


def test_which_norms_couple_points():
    """Changing one point moves another's output through BatchNorm and not through GroupNorm."""
    x = torch.randn(3, 8, 2, 2).double()
    moved = torch.cat([x[:2], x[2:] + 1])
    assert not torch.allclose(BatchNorm(8)(x)[0], BatchNorm(8)(moved)[0])
    assert torch.equal(GroupNorm(8)(x)[0], GroupNorm(8)(moved)[0])
    coupled = {norm: couples_points(Conv4((1, 16, 16), 2, filters=8, norm=norm)) for norm in ("batch", "group", "none")}
    assert coupled == {"batch": True, "group": False, "none": False}


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4), nn.LayerNorm(4)]
)
def test_refuses_fused_norms(norm):
    """The error names the layer and its kind."""
    with pytest.raises(ValueError, match=rf"'1'.*{type(norm).__name__}"):
        refuse_fused_norms(nn.Sequential(nn.Linear(2, 4), norm))


@pytest.mark.parametrize("model", [MLP((2,), 3), Conv4((1, 16, 16), 3, filters=8), nn.GroupNorm(2, 4), Affine(3)])
def test_accepts_norms_that_differentiate(model):
    refuse_fused_norms(model)


def test_refuses_channels_that_do_not_split_into_groups():
    with pytest.raises(ValueError, match=r"model\.filters: expected a multiple of the 8 groups, got 12"):
        GroupNorm(12)
