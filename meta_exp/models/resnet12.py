r"""The residual network of few-shot learning: four blocks of three 3x3 convolutions beside a 1x1 shortcut.

    block(x) = max_pool(act(norm(conv3(act(norm(conv2(act(norm(conv1(x))))))) + norm(conv_1x1(x))))

Features are averaged over positions, and a linear layer gives the outputs. 64, 160, 320 and 640 channels are those of
MetaOptNet (Lee, Maji, Ravichandran and Soatto 2019), whose DropBlock is left out: a task's objective has no randomness.
Convolutions have no bias, since the norm behind each has a shift.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from meta_exp.config.checks import require
from meta_exp.models import activation as activations
from meta_exp.models.activation import Activation
from meta_exp.models.convolution import Conv2d
from meta_exp.models.norm import GROUPS, NORMS
from meta_exp.models.pool import MaxPool2d

SMALLEST = 16  # side of an image that four poolings leave something of


class Block(nn.Module):
    """Images [N, channels, H, W] to [N, filters, H / 2, W / 2]."""

    def __init__(self, channels: int, filters: int, norm: str, activation: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([channels, filters, filters, filters]):
            layers += [Conv2d(fan_in, fan_out, bias=False), NORMS[norm](fan_out), activations.make(activation)]
        self.way = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(Conv2d(channels, filters, size=1, padding=0, bias=False), NORMS[norm](filters))
        end = [activations.make(activation), MaxPool2d()]
        rising = isinstance(end[0], activations.RISING)  # then the same for the quarter that pooling leaves
        self.end = nn.Sequential(*(reversed(end) if rising else end))

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut before the last activation."""
        return self.end(self.way(x) + self.shortcut(x))


class ResNet12(nn.Module):
    """Images [N, channels, H, W] to outputs [N, outputs]; ``channels`` are those of the four blocks."""

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (64, 160, 320, 640),
        norm: Literal["batch", "group"] = "batch",
        activation: Activation = "leaky_relu",
    ) -> None:
        images = len(input_shape) == 3
        require(images, "model=resnet12", "images [C, H, W]", list(input_shape), "use model=mlp")
        least = f"images of at least {SMALLEST} x {SMALLEST}"
        require(min(input_shape[1:]) >= SMALLEST, "model=resnet12", least, list(input_shape), "use model=conv4")
        four = len(channels) == 4 and all(count >= 1 for count in channels)
        require(four, "model.channels", "four positive numbers", list(channels))
        require(norm in ("batch", "group"), "model.norm", "batch or group", norm)
        whole = norm != "group" or all(count % GROUPS == 0 for count in channels)
        require(whole, "model.channels", f"multiples of the {GROUPS} groups", list(channels))
        super().__init__()
        blocks = [Block(*sizes, norm, activation) for sizes in pairwise([input_shape[0], *channels])]
        self.blocks = nn.Sequential(*blocks)
        for module in self.blocks.modules():
            if isinstance(module, Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
        self.head = nn.Linear(channels[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or means, [N, outputs]."""
        return self.head(self.blocks(x).mean((2, 3)))
