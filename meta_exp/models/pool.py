r"""Max-pooling over windows of 2 x 2.

    y[n, c, i, j] = max x[n, c, 2 i : 2 i + 2, 2 j : 2 j + 2]

The derivative of PyTorch's scatters by indices that it kept. Compiled for a CPU that takes longer than the convolution
before it, on a GPU it adds up in any order, and of images whose channels are last vmap has none in PyTorch 2.11. Where
code is compiled the place of the maximum is found by comparisons, and the derivative is a mask of the whole image: that
of a slice asks at each pixel whether it was in it. The place is taken as a sum, which the compiler computes once and
keeps, as it does with no other expression. Channels are last in all of it, as compiled convolutions leave them on a
CPU: a mask in another order is made number by number. Both ways take the first of equal values, row by row, and keep
what is not a number.

What comes behind a convolution is cheaper for the quarter that pooling leaves. An activation that never falls may as
well be taken after it, and so may an affine map of each channel, whose sign says whether the largest value or the
smallest goes on.
"""

import torch
from torch import Tensor, nn


class MaxPool2d(nn.MaxPool2d):
    """Halve each side of x [N, channels, H, W]; an odd last row or column is left out."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, by whichever way is faster."""
        return by_comparisons(x) if torch.compiler.is_compiling() else super().forward(x)


def by_comparisons(x: Tensor, signs: Tensor | None = None) -> Tensor:
    """Pool by the place of each window's maximum, which is found by comparisons and not differentiated.

    Of channels whose sign [channels] is -1 the smallest value goes on.
    """
    x = x.movedim(1, -1)
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    windows = x[:, :height, :width].unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [N, H / 2, 2, W / 2, 2, channels]
    seen = windows.detach() if signs is None else windows.detach() * signs
    most = seen[:, :, 0, :, 0]
    place = torch.zeros_like(most)
    for number, (i, j) in enumerate([(0, 1), (1, 0), (1, 1)], 1):
        other = seen[:, :, i, :, j]
        larger = (other > most) | other.ne(other)  # isnan is taken number by number when compiled
        most = torch.where(larger, other, most)
        place = torch.where(larger, float(number), place)
    places = torch.arange(4, device=x.device, dtype=x.dtype).view(2, 1, 2, 1)
    place = _at(place, places, places)  # the same, computed once
    return _at(place, places, windows).movedim(-1, 1)


def _at(place: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Return the value of each window that stands at its ``place`` [N, H / 2, W / 2, channels]."""
    return torch.where(place[:, :, None, :, None] == places, values, 0.0).sum((2, 4))
