"""Composed norms against PyTorch's fused ones, derivatives up to the third, and under vmap."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves

from meta_exp.models import BatchNorm, GroupNorm
from meta_exp.models.norm import Affine, group_norm_by_sums

SHAPES = [(5, 4), (3, 4, 2, 3)]


def fused_batch_norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


def fused_group_norm(x, weight, bias):
    return F.group_norm(x, 2, weight, bias)


class CompiledGroupNorm(torch.nn.Module):
    """Group norm in the form that compiled code takes."""

    def __init__(self, channels, groups):
        super().__init__()
        self.groups = groups
        self.affine = Affine(channels)

    def forward(self, x):
        return self.affine(group_norm_by_sums(x, self.groups, eps=1e-5))


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
    ("ours", "fused"),
    [
        (BatchNorm(4), fused_batch_norm),
        (GroupNorm(4, groups=2), fused_group_norm),
        (CompiledGroupNorm(4, groups=2), fused_group_norm),
    ],
)
def test_value_and_derivatives(ours, fused, shape):
    """Value, first and second derivatives in x, gamma and beta equal PyTorch's in a plain autograd loop."""
    inputs = random_inputs(shape)
    assert_equal(call(ours)(*inputs), fused(*inputs))
    assert_equal(derivatives(call(ours), inputs), derivatives(fused, inputs))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", [BatchNorm(4), GroupNorm(4, groups=2), CompiledGroupNorm(4, groups=2)])
def test_derivatives_by_differences(norm, shape):
    """First, second and third derivatives equal finite differences (PyTorch's batch norm has no third at all)."""

    def first(*inputs):
        return torch.autograd.grad(call(norm)(*inputs).pow(3).sum(), inputs, create_graph=True)

    inputs = random_inputs(shape)
    assert torch.autograd.gradcheck(call(norm), inputs)
    assert torch.autograd.gradcheck(first, inputs)
    assert torch.autograd.gradgradcheck(first, inputs, atol=1e-4)


@pytest.mark.parametrize("norm", [BatchNorm(4), GroupNorm(4, groups=2), CompiledGroupNorm(4, groups=2)])
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


def test_refuses_channels_that_do_not_split_into_groups():
    with pytest.raises(ValueError, match=r"model\.filters: expected a multiple of the 8 groups, got 12"):
        GroupNorm(12)


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.usefixtures("one_source")
@pytest.mark.parametrize(
    ("norm", "error"),  # found: 7e-7, 2e-6 in one sum for all images; 1.3e-6, where PyTorch's group norm has 1e-5
    [(BatchNorm(16), 1e-6), (GroupNorm(16), 2e-6)],
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_compiled_float32_errs_no_more_than_rounding(memory, norm, error):
    """Values and derivatives of many images, whose sums would take thousands of numbers one after another."""
    x = torch.randn(20, 16, 14, 14, generator=torch.Generator().manual_seed(0)) + 4
    x, generator = x.contiguous(memory_format=memory), torch.Generator().manual_seed(1)
    along = [torch.rand(shape, generator=generator) for shape in (x.shape, (16,), (16,))]

    def all_of(x, weight, bias, *along):
        def first(*inputs):
            return grad(lambda *inputs: call(norm)(*inputs).relu().pow(2).mean(), (0, 1, 2))(*inputs)

        second = grad(lambda *inputs: sum((g * v).sum() for g, v in zip(first(*inputs), along, strict=True)), (0, 1, 2))
        return call(norm)(x, weight, bias), first(x, weight, bias), second(x, weight, bias)

    inputs = x, torch.rand(16, generator=generator) + 0.5, torch.rand(16, generator=generator) - 0.5, *along
    exact = tree_leaves(all_of(*(value.double() for value in inputs)))
    for found, expected in zip(tree_leaves(torch.compile(all_of, dynamic=False)(*inputs)), exact, strict=True):
        assert (found - expected).norm() < error * expected.norm()
