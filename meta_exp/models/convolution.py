r"""Convolution with weights of each task's own.

    y[n, o, p] = sum_i w[o, i] a[n, i, p] + b[o],    a[n, :, p] = the patch of x[n] at position p

vmap makes one convolution of as many groups as there are tasks, which processors are slow at, and slower at its
derivatives. In compiled code the sum is taken as the product that it is, over patches whose channels are last: they are
gathered in one loop there, while step by step they cost more than they save. A GPU gives the same bits each time then.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 4  # side of an image whose patches, nine times its size at stride 1, are worth the product


class Conv2d(nn.Conv2d):
    """A square convolution, ungrouped and padded by zeros: x [N, I, H, W] to [N, O, H', W']."""

    def __init__(
        self, channels: int, filters: int, size: int = 3, stride: int = 1, padding: int = 1, bias: bool = True
    ) -> None:
        super().__init__(channels, filters, size, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, by whichever way is faster."""
        return self.by_patches(x) if self.prefers_patches(x) else super().forward(x)

    def prefers_patches(self, x: Tensor) -> bool:
        """Whether a product with the patches of images of this size is faster, here and now."""
        few = self.in_channels == 1 or self.stride[0] > 1 or x.shape[-1] <= SMALL
        return few and torch.compiler.is_compiling()

    def by_patches(self, x: Tensor) -> Tensor:
        """Convolve as a product of patches with the weights [O, size^2 I]."""
        patches = self.patches(x)
        y = patches.flatten(0, 2).flatten(1) @ self.weight.movedim(1, -1).flatten(1).T
        y = y if self.bias is None else y + self.bias
        return y.view(*patches.shape[:3], -1).movedim(-1, 1)

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches of x, [N, H', W', size^2, I].

        With stride s the image is split into s x s images of every s-th row and column, of which patches take plain
        slices: the derivative of a strided slice asks at each pixel whether it was in it. They are stacked rather than
        joined, since the second derivative of a join asks at each place which of nine slices it is in.
        """
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
        down, right = (padding + -(side + 2 * padding) % stride for side in x.shape[2:])
        x = F.pad(x.movedim(1, -1), (0, 0, padding, right, padding, down))
        split = [rows.unflatten(2, (-1, stride)).unbind(3) for rows in x.unflatten(1, (-1, stride)).unbind(2)]
        places = [(i, j) for i in range(size) for j in range(size)]
        slices = [split[i % stride][j % stride][:, i // stride :, j // stride :][:, :height, :width] for i, j in places]
        return torch.stack(slices, -2)
