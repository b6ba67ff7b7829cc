r"""Reptile (Nichol, Achiam and Schulman 2018): theta moves towards where tasks end, and no step is differentiated.

    theta^{k+1} = theta^k - alpha grad loss(theta^k, S_i)
    objective_i(theta) = 1/2 ||theta - theta_i||^2 - log p(Q_i | theta_i) / M,    theta_i as a constant

Its gradient in theta is theta - theta_i, the paper's update, here a mean over a meta-batch that the optimizer takes: as
the paper says, any optimizer can. The query set trains nothing in theta; its term is there for what the likelihood
learns, sigma, which the way does not hold.

Where it departs: an inner step is one of gradient descent on the whole support set, in place of Adam's on mini-batches
of all of a task's data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_exp.adaptation import Meta, Params, gradient_step
from meta_exp.algorithms.base import FASTEST, Algorithm, Logs
from meta_exp.config.checks import require, require_at_most
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class Reptile(Algorithm):
    """The way from theta to theta_i.

    Attributes:
        inner_lr: alpha.
        inner_steps: K; with one, the gradient is that of the support set's loss, and nothing is learned of adaptation.
    """

    inner_lr: float
    inner_steps: int = 8

    def __post_init__(self) -> None:
        """Refuse a rate or a number of steps that goes nowhere."""
        super().__post_init__()
        require(self.inner_lr > 0, "algorithm.inner_lr", "a learning rate > 0", self.inner_lr)
        require_at_most(FASTEST, "algorithm.inner_lr", self.inner_lr)
        require(self.inner_steps >= 1, "algorithm.inner_steps", "at least 1", self.inner_steps)

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k, without a derivative."""
        constant = {name: value.detach() for name, value in params.items()}
        return gradient_step(lambda params: self.loss(params, support), constant, lr=self.inner_lr)

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return half the squared way, and the query's -log p at its end."""
        theta_i = {name: value.detach() for name, value in path[-1].items()}
        way = torch.stack([(meta.theta[name] - value).square().sum() for name, value in theta_i.items()]).sum() / 2
        return way + self.nll(theta_i, episode.query, meta) / len(episode.query.y), {"way": way}

    @property
    def steps_by_hyper(self) -> bool:
        """Whether the path depends on what calibration fits: gradient steps on a mean loss do not."""
        return False
