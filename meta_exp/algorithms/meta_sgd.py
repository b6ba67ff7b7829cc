r"""Meta-SGD (Li, Zhou, Chen and Li 2017): MAML whose inner learning rates are learned with theta.

    theta^{k+1} = theta^k - alpha_k * grad loss(theta^k, S_i),    objective_i(theta, alpha) = -log p(Q_i | theta_i) / M

alpha is of theta's shape, multiplies entry by entry, and is the same in each step; all of it starts at one value. That
is the paper, which takes one step and leaves the sign free: alpha learns a direction too. Kept ``positive``, alpha is
learned as its logarithm.

``rate_per=layer`` has one rate for each tensor, weights and biases apart, and ``layer_and_step`` one for each step too,
the LSLR of MAML++ (Antoniou, Edwards and Storkey 2019). Steps beyond those of training take the last one's rates.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meta_exp.adaptation import Meta, Params
from meta_exp.algorithms.maml import MAML
from meta_exp.config.checks import require
from meta_exp.hyper import Learned, in_log_space


@dataclass(frozen=True, kw_only=True)
class MetaSGD(MAML):
    """MAML with learned rates.

    Attributes:
        inner_lr: where they start.
        rate_per: what has a rate of its own.
        positive: learn log alpha; else alpha, which may change its sign.
    """

    rate_per: Literal["parameter", "layer", "layer_and_step"] = "parameter"
    positive: bool = False

    def __post_init__(self) -> None:
        """Refuse a step that takes no rate."""
        super().__post_init__()
        granularities = ("parameter", "layer", "layer_and_step")
        require(
            self.rate_per in granularities, "algorithm.rate_per", f"one of {', '.join(granularities)}", self.rate_per
        )
        remedy = "a Gauss-Newton step takes no rate; choose algorithm=maml"
        require(self.inner_loop == "gradient", "algorithm.inner_loop", "gradient", self.inner_loop, remedy)
        require(self.inner_steps >= 1, "algorithm.inner_steps", "at least 1", self.inner_steps, "no step has a rate")

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: what the likelihood learns, and the rates."""
        found = super().hyperparameters()
        for name in self.adapted:
            key, start = f"rate.{name}", self._start(self.model.get_parameter(name).detach())
            found |= in_log_space(key, start) if self.positive else {key: Learned(start, key, _itself)}
        return found

    def rates(self, k: int, meta: Meta) -> float | Params:
        """Return alpha of step k by name."""
        found = {name: meta.hyper[f"{'log_' if self.positive else ''}rate.{name}"] for name in self.adapted}
        if self.rate_per == "layer_and_step":
            found = {name: rate[min(k, self.inner_steps - 1)] for name, rate in found.items()}
        return {name: rate.exp() for name, rate in found.items()} if self.positive else found

    def _start(self, value: Tensor) -> Tensor:
        """Return where the rates of a parameter start: of its shape, a scalar, or [K]."""
        shape = {"parameter": tuple(value.shape), "layer": (), "layer_and_step": (self.inner_steps,)}[self.rate_per]
        return torch.full(shape, self.inner_lr, dtype=value.dtype, device=value.device)


def _itself(rate: Tensor) -> Tensor:
    return rate
