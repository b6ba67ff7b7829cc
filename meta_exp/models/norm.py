r"""Normalisation whose second and third derivatives are right.

    y = gamma (x - mean) / sqrt(var + eps) + beta

PyTorch's fused batch, instance and layer norms give silently wrong second-order gradients under ``grad(vmap(...))``
and wrong Jacobian derivatives when gamma and beta are adapted. Here the same equation is composed of means, ``rsqrt``
and an affine map, each of which differentiates correctly. Statistics are always those of the batch at hand: a
network in evaluation with running statistics would be another network than the one that was adapted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_exp.config.checks import require

GROUPS = 8


class Affine(nn.Module):
    """gamma x + beta, a scale and a shift per channel of x [N, channels, ...]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each channel."""
        if _channels_last(x):
            return (x.movedim(1, -1) * self.weight + self.bias).movedim(-1, 1)
        shape = (-1,) + (1,) * (x.ndim - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


class BatchNorm(nn.Module):
    """Normalise each channel over the batch at hand and its positions; this couples all points of a batch."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.affine = Affine(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, channels, ...]."""
        channels = x.ndim - 1 if _channels_last(x) else 1
        x = x.movedim(1, channels)
        others = [dim for dim in range(x.ndim) if dim != channels]
        share = x.shape[channels] / x.numel()  # times which a sum is a mean: compiled code divides anew at each number
        centred = x - x.sum(others, keepdim=True) * share
        variance = centred.square().sum(others, keepdim=True) * share  # PyTorch's takes a convolution's time on a CPU
        return self.affine((centred * torch.rsqrt(variance + self.eps)).movedim(channels, 1))


class GroupNorm(nn.Module):
    """Normalise each point over groups of channels; points stay independent."""

    def __init__(self, channels: int, groups: int = GROUPS, eps: float = 1e-5) -> None:
        require(channels % groups == 0, "model.filters", f"a multiple of the {groups} groups", channels)
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.affine = Affine(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, channels, ...]."""
        return self.affine(F.group_norm(x, self.groups, eps=self.eps))


NORMS = {"batch": BatchNorm, "group": GroupNorm, "none": nn.Identity}  # by the names that ``model.norm`` takes


def _channels_last(x: Tensor) -> bool:
    """Whether channels are neighbours in memory, as convolution by patches leaves them."""
    return x.stride(1) == 1
