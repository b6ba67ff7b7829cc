r"""The inner loop: a task's path theta^0, theta^1, ..., theta^K from the meta-parameters to its own parameters theta_i.

    theta^0 = start(theta),    theta^{k+1} = step(theta^k, S_i, k),    theta_i = theta^K

An algorithm says where the path starts and what one step is; ``path``, ``whole_path`` and ``adapt`` are the loop over
its steps and nothing else, and whatever adapts (training, checkpointed steps, evaluation, calibration, production) goes
through them. A state of the path is a dictionary of tensors: the network's parameters by name, or whatever the
algorithm keeps of a task, such as several networks or a mean and a scale. Pure functions of one task; differentiating
through the path gives the second-order meta-gradient.

``gradient_step`` is the step of MAML; in first order the inner gradient is taken as a constant, so that
d theta_i / d theta = I.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad

from meta_exp.hyper import Hyper
from meta_exp.tasks.episode import Examples

Params = dict[str, Tensor]
Noise = Any  # a pytree of standard normal draws


class Meta(NamedTuple):
    """What all steps of a task take in beside its own state and data.

    Attributes:
        theta: the meta-parameters: the start of the path and the mean of the prior over phi.
        hyper: the values learned with theta.
        noise: standard normal draws of the path and its objective, keyed by seed, meta-batch and task, for an
            algorithm that asks for some; else None.
        progress: of the training, a scalar tensor from 0 to 1; 1 wherever a trained learner is used.
    """

    theta: Params
    hyper: Hyper
    noise: Noise = None
    progress: Tensor = torch.tensor(1.0)


class Stepper(Protocol):
    """What the loop needs of an algorithm."""

    def start(self, meta: Meta) -> Params:
        """Return theta^0."""

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k = ``params``."""


def path(algorithm: Stepper, support: Examples, meta: Meta, steps: int) -> Iterator[Params]:
    """Yield theta^0, ..., theta^K for ``steps`` = K steps, holding one at a time."""
    params = algorithm.start(meta)
    yield params
    for k in range(steps):
        params = algorithm.step(params, support, k, meta)
        yield params


def whole_path(algorithm: Stepper, support: Examples, meta: Meta, steps: int) -> list[Params]:
    """Return [theta^0, ..., theta^K], as derivatives need them all; torch.compile traces no generator."""
    states = [algorithm.start(meta)]
    for k in range(steps):
        states.append(algorithm.step(states[-1], support, k, meta))
    return states


def adapt(algorithm: Stepper, support: Examples, meta: Meta, steps: int) -> Params:
    """Return theta_i = theta^K alone."""
    params = algorithm.start(meta)
    for k in range(steps):
        params = algorithm.step(params, support, k, meta)
    return params


def gradient_step(
    loss: Callable[[Params], Tensor], params: Params, *, lr: float | Params, first_order: bool | Tensor = False
) -> Params:
    """Return theta^{k+1} = theta^k - alpha grad loss(theta^k) of theta^k = ``params``.

    The rate ``lr`` = alpha is one for all, or by name, of the parameter's shape or a scalar. ``first_order`` may be a
    tensor, true or false, for an order that changes in training.
    """
    gradient = grad(loss)(params)
    if isinstance(first_order, Tensor):
        gradient = {name: torch.where(first_order, g.detach(), g) for name, g in gradient.items()}
    elif first_order:
        gradient = {name: g.detach() for name, g in gradient.items()}
    rates = lr if isinstance(lr, dict) else dict.fromkeys(params, lr)
    return {name: value - rates[name] * gradient[name] for name, value in params.items()}
