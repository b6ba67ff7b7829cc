"""The convolutional network of MAML: four blocks of 3x3 convolution, norm and activation, then a linear layer.

Omniglot: ``downsample="stride"`` (stride 2, features averaged over positions), 64 filters.
miniImageNet: ``downsample="max_pool"`` (2x2 after each block, features flattened), 32 or 64 filters.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from meta_exp.config.checks import require, require_at_most
from meta_exp.models import activation as activations
from meta_exp.models.activation import Activation
from meta_exp.models.convolution import Conv2d
from meta_exp.models.norm import NORMS, BatchNorm, GroupNorm
from meta_exp.models.pool import MaxPool2d

FILTERS = 1024


class Block(nn.Sequential):
    """A convolution, a norm, an activation, and a pooling that is taken before them where that gives the same."""

    def __init__(self, channels: int, filters: int, norm: str, activation: str, pools: bool) -> None:
        convolution = Conv2d(channels, filters, stride=1 if pools else 2)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.constant_(convolution.get_parameter("bias"), 0.0)
        pool = MaxPool2d() if pools else nn.Identity()
        super().__init__(convolution, NORMS[norm](filters), activations.make(activation), pool)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, channels, H, W] to [N, filters, H / 2, W / 2]."""
        convolution, norm, activation, pool = self
        if isinstance(pool, MaxPool2d) and isinstance(activation, activations.RISING):
            if isinstance(norm, BatchNorm | GroupNorm):
                return activation(norm(convolution(x), pool))
            if isinstance(norm, nn.Identity):
                return activation(pool(convolution(x)))
        return super().forward(x)


class Conv4(nn.Module):
    """Images [N, channels, H, W] to outputs [N, outputs]."""

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        filters: int = 64,
        downsample: Literal["stride", "max_pool"] = "stride",
        norm: Literal["batch", "group", "none"] = "batch",
        activation: Activation = "relu",
    ) -> None:
        require(len(input_shape) == 3, "model=conv4", "images [C, H, W]", list(input_shape), "use model=mlp")
        require(filters >= 1, "model.filters", "at least 1", filters)
        require_at_most(FILTERS, "model.filters", filters)
        require(downsample in ("stride", "max_pool"), "model.downsample", "stride or max_pool", downsample)
        require(norm in NORMS, "model.norm", "batch, group or none", norm)
        super().__init__()
        self.average = downsample == "stride"
        widths = [input_shape[0], *[filters] * 4]
        blocks = [Block(*sizes, norm, activation, pools=not self.average) for sizes in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks)
        with torch.no_grad():
            features = self.features(torch.zeros(2, *input_shape)).shape[1]
        self.head = nn.Linear(features, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the inputs of the last layer, [N, features]."""
        x = self.blocks(x)
        return x.mean((2, 3)) if self.average else x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or means, [N, outputs]."""
        return self.head(self.features(x))
