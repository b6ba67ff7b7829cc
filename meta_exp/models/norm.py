r"""Normalisation whose second and third derivatives are right.

    y = gamma (x - mean) / sqrt(var + eps) + beta

PyTorch's fused batch, instance and layer norms give silently wrong second-order gradients under ``grad(vmap(...))``
and wrong Jacobian derivatives when gamma and beta are adapted. Here the same equation is composed of means, ``rsqrt``
and an affine map, each of which differentiates correctly. What is summed over images and positions, derivatives too, is
summed for each image by itself first: compiled code adds one number after another, and thousands of them err so much
in float32 that signs of ReLU's inputs change, and with them all further inner steps. Statistics are always those of the
batch at hand: a network in evaluation with running statistics would be another network than the one that was adapted.

PyTorch's group norm has right derivatives, and is taken where code is not compiled. Compiled, each number would look up
its group's mean, one by one: there a sum of masked channels gives each channel its group's, and loops take channels in
a row.

Either takes the pooling behind it, if there is one, between the statistics and the affine map: ``models/pool.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_exp.config.checks import require
from meta_exp.models.pool import MaxPool2d, by_comparisons

GROUPS = 8


class Affine(nn.Module):
    """gamma x + beta, a scale and a shift per channel of x [N, channels, ...]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each channel."""
        weight, bias = (value.expand(len(x), -1) for value in (self.weight, self.bias))
        if _channels_last(x):
            shape = (len(x), *[1] * (x.ndim - 2), -1)
            return (x.movedim(1, -1) * weight.view(shape) + bias.view(shape)).movedim(-1, 1)
        shape = (len(x), -1, *[1] * (x.ndim - 2))
        return x * weight.view(shape) + bias.view(shape)

    def signs(self) -> Tensor:
        """Whether each channel rises, 1, or falls, -1, with its input; a constant."""
        return torch.where(self.weight.detach() < 0, -1.0, 1.0).to(self.weight)


class BatchNorm(nn.Module):
    """Normalise each channel over the batch at hand and its positions; this couples all points of a batch."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.affine = Affine(channels)

    def forward(self, x: Tensor, pool: MaxPool2d | None = None) -> Tensor:
        """Normalise x [N, channels, ...], by its own statistics; a ``pool`` comes before the affine map."""
        channels = x.ndim - 1 if _channels_last(x) else 1
        compiling = torch.compiler.is_compiling()
        moved = x.movedim(1, channels)
        share = x.shape[1] / x.numel()  # times which a sum is a mean: compiled code divides anew at each number
        mean = _sum(moved, channels) * share
        if pool is None or compiling:
            centred = moved - mean
        else:  # its sign beside it, as x is read and written for it anyway
            signs = self.affine.signs().view([-1 if dim == channels else 1 for dim in range(x.ndim)])
            centred = torch.addcmul(-signs * mean, moved, signs)
        variance = _sum(centred.square(), channels) * share  # PyTorch's takes a convolution's time on a CPU
        if pool is not None and compiling:  # of x itself, since what is centred would be stored for it
            centred = by_comparisons(x, self.affine.signs()).movedim(1, channels) - mean
        elif pool is not None:
            centred = pool(centred.movedim(channels, 1)).movedim(1, channels) * signs
        return self.affine((centred * torch.rsqrt(variance + self.eps)).movedim(channels, 1))


class GroupNorm(nn.Module):
    """Normalise each point over groups of channels; points stay independent."""

    def __init__(self, channels: int, groups: int = GROUPS, eps: float = 1e-5) -> None:
        require(channels % groups == 0, "model.filters", f"a multiple of the {groups} groups", channels)
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.affine = Affine(channels)

    def forward(self, x: Tensor, pool: MaxPool2d | None = None) -> Tensor:
        """Normalise x [N, channels, ...], by its own statistics; a ``pool`` comes before the affine map."""
        if torch.compiler.is_compiling():
            pooled = None if pool is None else by_comparisons(x, self.affine.signs())
            return self.affine(group_norm_by_sums(x, self.groups, self.eps, pooled))
        if pool is None:
            return self.affine(F.group_norm(x, self.groups, eps=self.eps))
        signs = self.affine.signs()
        return self.affine(pool(F.group_norm(x, self.groups, signs, eps=self.eps)) * signs[:, None, None])


NORMS = {"batch": BatchNorm, "group": GroupNorm, "none": nn.Identity}  # by the names that ``model.norm`` takes


def group_norm_by_sums(x: Tensor, groups: int, eps: float, pooled: Tensor | None = None) -> Tensor:
    """Normalise each point of x, or what is pooled of it, over groups: by sums over positions, then channels."""
    channels = x.ndim - 1 if _channels_last(x) else 1
    x = x.movedim(1, channels)
    positions = [dim for dim in range(1, x.ndim) if dim != channels]
    group = torch.arange(x.shape[channels], device=x.device) // (x.shape[channels] // groups)
    share = (group[:, None] == group).to(x) * (groups / x[0].numel())

    def mean(x: Tensor) -> Tensor:
        of_channels = x.sum(positions, keepdim=True) if positions else x
        return (of_channels.flatten(1)[:, :, None] * share).sum(1).view_as(of_channels)  # never in TF32 or bf16

    shift = mean(x)
    centred = x - shift
    variance = mean(centred.square())
    if pooled is not None:
        centred = pooled.movedim(1, channels) - shift
    return (centred * torch.rsqrt(variance + eps)).movedim(channels, 1)


def _channels_last(x: Tensor) -> bool:
    """Whether channels are neighbours in memory, as convolution by patches leaves them."""
    return x.stride(1) == 1


def _sum(x: Tensor, channels: int) -> Tensor:
    """Return the sum over all but the channels, image by image first, beside each image."""
    positions = [dim for dim in range(1, x.ndim) if dim != channels]
    of_images = x.sum(positions, keepdim=True) if positions else x
    return of_images.sum(0, keepdim=True).expand_as(of_images)
