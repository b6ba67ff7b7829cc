"""Activations whose second and third derivatives are right, by the names that ``model.activation`` takes.

The meta-gradient takes the second derivative of a network, and that of a log det the third. Those of a function that is
linear in pieces are 0 but for its kinks.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from meta_exp.config.checks import require

Activation = Literal["relu", "leaky_relu", "tanh", "gelu", "silu", "softplus"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),  # the slope of few-shot networks
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
RISING = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Softplus)  # nowhere falling: the largest of several stays the largest


def make(activation: str) -> nn.Module:
    """Return the activation of that name; raises ValueError for one that is not there."""
    require(activation in ACTIVATIONS, "model.activation", f"one of {', '.join(ACTIVATIONS)}", activation)
    return ACTIVATIONS[activation]()
