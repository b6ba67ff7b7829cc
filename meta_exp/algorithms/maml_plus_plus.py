r"""MAML++ (Antoniou, Edwards and Storkey 2019): MAML with what makes its training stable.

    theta^{k+1} = theta^k - alpha_k grad loss(theta^k, S_i)                 alpha_k of each tensor and step, learned
    objective_i = - sum_{k=1}^K w_k log p(Q_i | theta^k) / M                w_k = 1/K at first, later only w_K = 1

- a rate for each tensor and step (LSLR), as in Meta-SGD with ``rate_per=layer_and_step``;
- the loss of every step, whose weights but the last fall from 1/K to 0, linearly, until ``multi_step`` of the training;
- inner gradients as constants until ``first_order_until`` of the training, of second order from then on;
- norms with a scale and a shift for each step, which the outer loop learns and the inner one leaves alone; a network
  without norms has none;
- the outer rate's cosine is ``lr_schedule=cosine``, for any algorithm.

Where it departs: norms here have the statistics of the batch at hand, so there are none to run or to keep by step. The
first order saves no time, since the order is a number to compiled code. Weights reach 0, where the public code keeps
0.03/K and then drops them at once. The config keeps rates positive, where the paper leaves their sign free: on noisy
curves with free rates all of three seeds diverged. All of it off, with equal rates, is MAML.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from meta_exp.adaptation import Meta, Params
from meta_exp.algorithms.base import Logs
from meta_exp.algorithms.meta_sgd import MetaSGD
from meta_exp.config.checks import require
from meta_exp.hyper import Learned, weights
from meta_exp.models import Affine
from meta_exp.models.layers import layers_with_parameters, parameters_of
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class MAMLPlusPlus(MetaSGD):
    """Meta-SGD by layer and step, with annealed losses and orders.

    Attributes:
        multi_step: the share of training after which the last step's loss alone counts; 0: always.
        first_order_until: the share of training after which inner gradients are differentiated; 0: always.
        per_step_norms: a scale and a shift of each norm for each step.
    """

    inner_steps: int = 5
    rate_per: Literal["parameter", "layer", "layer_and_step"] = "layer_and_step"
    multi_step: float = 0.1
    first_order_until: float = 1 / 3
    per_step_norms: bool = True

    def __post_init__(self) -> None:
        """Refuse shares that are none, and a mode, which is of one network and not of a path."""
        super().__post_init__()
        for key, share in (("multi_step", self.multi_step), ("first_order_until", self.first_order_until)):
            require(0 <= share <= 1, f"algorithm.{key}", "a share of the training, 0 to 1", share)
        remedy = "set algorithm.multi_step=0, or mode to false"
        require(not (self.mode and self.multi_step), "algorithm.mode=true", "the last step's loss alone", "all", remedy)

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms' scales and shifts that each step has of its own."""
        affine = [name for name, module in self.model.named_modules() if isinstance(module, Affine)]
        return parameters_of(self.model, set(affine)) if self.per_step_norms else ()

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """Names of the parameters that adapt, each with its rates."""
        moving = parameters_of(self.model, set(layers_with_parameters(self.model)) - self.staying)
        return tuple(name for name in moving if name not in self.norms)

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: the rates, and the norms of all steps but theta's own, the first."""
        found = super().hyperparameters()
        for name in self.norms if self.inner_steps > 1 else ():
            value = self.model.get_parameter(name).detach()
            found |= weights(f"norms.{name}", value.repeat(self.inner_steps - 1, 1))
        return found

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k, with the norms of step k, which the network predicts with behind it too."""
        last = min(k, self.inner_steps - 1)
        norms = {name: meta.hyper[f"norms.{name}"][last - 1] if last else meta.theta[name] for name in self.norms}
        first = self.first_order or (meta.progress < self.first_order_until if self.first_order_until else False)
        return self.descend(params | norms, support, self.rates(k, meta), first)

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return the weighted -log p(Q_i | theta^k) / M, and the last step's weight."""
        if not self.multi_step or self.inner_steps == 1:
            return super().objective(path, episode, meta)
        losses = torch.stack([self.nll(params, episode.query, meta) for params in path[1:]])
        others = (1 - meta.progress.to(losses) / self.multi_step).clamp(min=0) / self.inner_steps
        last = 1 - (self.inner_steps - 1) * others
        total = others * losses[:-1].sum() + last * losses[-1]
        return total / len(episode.query.y), {"last_step_weight": last}
