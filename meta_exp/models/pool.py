r"""Max-pooling over windows of 2 x 2.

    y[n, c, i, j] = max x[n, c, 2 i : 2 i + 2, 2 j : 2 j + 2]

The derivative of PyTorch's scatters by indices that it kept, and compiled for a CPU takes longer than the convolution
before it. There the maximum is taken by comparisons, of two columns and then of two rows, whose derivative is a mask.
Both take the first of equal values, row by row, and keep what is not a number.
"""

import torch
from torch import Tensor, nn


class MaxPool2d(nn.MaxPool2d):
    """Halve each side of x [N, channels, H, W]; an odd last row or column is left out."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, by whichever way is faster."""
        return by_comparisons(x) if x.device.type == "cpu" and torch.compiler.is_compiling() else super().forward(x)


def by_comparisons(x: Tensor) -> Tensor:
    """Pool by two comparisons."""
    height, width = (side // 2 * 2 for side in x.shape[-2:])
    x = _larger(x[..., :height, 0:width:2], x[..., :height, 1:width:2])
    return _larger(x[..., 0::2, :], x[..., 1::2, :])


def _larger(first: Tensor, second: Tensor) -> Tensor:
    return torch.where((second > first) | second.isnan(), second, first)
