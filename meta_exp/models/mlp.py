"""The multi-layer perceptron of the sinusoid experiment: 1-40-40-1 with ReLU, or any widths and activation."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from meta_exp.config.checks import require
from meta_exp.models import activation as activations
from meta_exp.models.activation import Activation


class MLP(nn.Sequential):
    """Linear layers of the given hidden ``widths``, an activation between; inputs of any shape are flattened."""

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        widths: Sequence[int] = (40, 40),
        activation: Activation = "relu",
    ) -> None:
        require(all(width >= 1 for width in widths), "model.widths", "positive widths", list(widths))
        sizes = [prod(input_shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activations.make(activation)]
        super().__init__(*layers, nn.Linear(sizes[-1], outputs))
