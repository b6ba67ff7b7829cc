"""The Gram matrix is x x^T, and so are its derivatives of any order and in both modes, compiled or not."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

from meta_exp.curvature import gram as module
from meta_exp.curvature.gram import gram


def plain(x: Tensor) -> Tensor:
    """What gram has to be."""
    return x @ x.mT


@pytest.fixture(params=[0, module.SMALL], ids=["one product", "small"])
def _size(request, monkeypatch):
    monkeypatch.setattr(module, "SMALL", request.param)


def log_det(of, x: Tensor) -> Tensor:
    """A function of x by its Gram matrix, whose derivative by that is symmetric."""
    return torch.linalg.eigvalsh(of(x)).log1p().sum()


def lopsided(of, x: Tensor) -> Tensor:
    """One whose derivative by the Gram matrix is not."""
    return (of(x.sin()) * torch.arange(9.0).view(3, 3)).tanh().sum()


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("function", [log_det, lopsided])
def test_first_derivatives(function):
    """In reverse and in forward mode."""
    x, along = torch.randn(2, 3, 5).double()
    found, expected = (grad(partial(function, of))(x) for of in (gram, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found, expected = (jvp(partial(function, of), (x,), (along,))[1] for of in (gram, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("function", [log_det, lopsided])
@pytest.mark.parametrize(("outer", "inner"), [(jacrev, jacrev), (jacfwd, jacrev)])
def test_second_derivatives(function, outer, inner):
    """Reverse over reverse and forward over reverse, of several x at once."""
    x = torch.randn(2, 3, 5).double()
    found, expected = (vmap(outer(inner(partial(function, of))))(x) for of in (gram, plain))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_in_a_compiled_gradient_one_product_is_taken_for_the_derivative(monkeypatch):
    """As the meta-gradient is compiled: no break of the graph, the same numbers, and half of the products."""
    monkeypatch.setattr(module, "SMALL", 0)
    x = torch.randn(4, 3, 7).double()

    def gradients(of):
        def one(x):
            value, pullback = vjp(partial(log_det, of), x)
            return pullback(torch.ones_like(value), retain_graph=False, create_graph=False)[0]

        return vmap(one)

    with FlopCounterMode(display=False) as counter:
        found = gradients(gram)(x)
    with FlopCounterMode(display=False) as of_plain:
        expected = gradients(plain)(x)
    product = 2 * 4 * 3 * 3 * 7
    assert of_plain.get_total_flops() - counter.get_total_flops() == product
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    compiled = torch.compile(gradients(gram), fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
