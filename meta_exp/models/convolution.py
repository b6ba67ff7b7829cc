r"""Convolution with weights of each task's own.

    y[n, o, p] = sum_i w[o, i] a[n, i, p] + b[o],    a[n, :, p] = the patch of x[n] at position p

vmap makes one convolution of as many groups as there are tasks, which is slow where a group has little to do. There the
sum is taken as the product that it is, over patches whose channels are last, if the code is compiled: the patches are
then gathered in one loop, while step by step they cost more than they save.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 4  # side of an image that has few positions


class Conv2d(nn.Conv2d):
    """A square convolution, ungrouped and padded by zeros: x [N, I, H, W] to [N, O, H', W']."""

    def __init__(self, channels: int, filters: int, size: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__(channels, filters, size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, by whichever way is faster."""
        little = self.in_channels == 1 or x.shape[-1] <= SMALL
        return self.by_patches(x) if little and torch.compiler.is_compiling() else super().forward(x)

    def by_patches(self, x: Tensor) -> Tensor:
        """Convolve as a product of patches [N H' W', I] with the weights [O, I]."""
        assert self.bias is not None
        size, stride = self.kernel_size[0], self.stride[0]
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[int(self.padding[0])] * 4))
        height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
        ends = (stride * (height - 1) + 1, stride * (width - 1) + 1)
        starts = [(i, j) for i in range(size) for j in range(size)]
        patches = torch.cat([x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i, j in starts], -1)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        y = patches.flatten(0, 2) @ weight.T + self.bias
        return y.view(len(x), height, width, -1).permute(0, 3, 1, 2)
