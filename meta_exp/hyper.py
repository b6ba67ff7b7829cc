r"""What is learned beside theta: noise, precision, learning rates, temperatures.

The optimizer sees each as an unconstrained tensor, for example log sigma. ``Hyper`` holds these tensors by name, and
every function of the method that may need them takes all of them; ``Learned`` says of one where it starts, and what it
is called and worth to people: nobody else has to know that "log_sigma_noise" is the logarithm of "sigma_noise".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Hyper = dict[str, Tensor]


@dataclass(frozen=True)
class Learned:
    """One learned tensor.

    Attributes:
        start: as the optimizer sees it, of any shape.
        name: of what it stands for, in logs and results.
        value: maps the tensor to what it stands for; of several numbers the mean is shown.
        weights: whether these are weights of networks, as theta is: they train at theta's rate and are not shown.
    """

    start: Tensor
    name: str
    value: Callable[[Tensor], Tensor]
    weights: bool = False


def in_log_space(name: str, value: float | Tensor) -> dict[str, Learned]:
    """Return a positive ``value`` that is learned as its logarithm, as an entry of the dictionary of all."""
    start = torch.as_tensor(value).clone() if isinstance(value, Tensor) else torch.tensor(float(value))
    return {f"log_{name}": Learned(start.log(), name, torch.exp)}


def shown(learned: Mapping[str, Learned], hyper: Hyper) -> dict[str, Tensor]:
    """Return what the tensors of ``hyper`` stand for, a scalar each, by the names that people know."""
    numbers = {key: entry for key, entry in learned.items() if not entry.weights}
    return {entry.name: entry.value(hyper[key].detach()).mean() for key, entry in numbers.items()}


def weights(name: str, start: Tensor) -> dict[str, Learned]:
    """Return further weights of networks, learned as theta is, as an entry of the dictionary of all."""
    return {name: Learned(start, name, lambda value: value, weights=True)}
