r"""The Gram matrix of rows, with a derivative of one product.

    A = x x^T,    dL/dx = (S + S^T) x,    S = dL/dA

PyTorch's derivative of a product of two matrices takes one product for each of them, S x and S^T x, which costs
twice as much where the two are the same. Derivatives of any order, and in forward mode, are those of ``x @ x.mT``.
"""

from typing import Any

import torch
from torch import Tensor

SMALL = 2**15  # numbers of x; below it a product takes less time than what calls it, where that is not compiled


class _Gram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (s + s.mT) @ x

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        half = dx @ x.mT
        return half + half.mT


@torch.compiler.allow_in_graph  # the compiler does not look into an autograd.Function under vmap and vjp by itself
def gram(x: Tensor) -> Tensor:
    """Return the inner products [n, n] of the rows of x [n, d]."""
    return _Gram.apply(x) if x.numel() > SMALL else x @ x.mT
