r"""Reptile (Nichol, Achiam and Schulman 2018): theta moves towards where tasks end, and no step is differentiated.

    theta^{k+1} = theta^k - alpha grad loss(theta^k, D_k),    D_k = S_i, Q_i, S_i, ...    (K times, in training)
    objective_i(theta) = 1/2 ||theta - theta_i||^2,    theta_i as a constant

Its gradient in theta is theta - theta_i, the paper's update, here a mean over a meta-batch that the optimizer takes: as
the paper says, any optimizer can. That steps in turn see other data of the task is what makes it more than training on
all tasks together: the way then holds a term along which a step on some of the data helps on the rest. Wherever the run
is used the steps are on the support set.

What the likelihood learns, sigma, is not in the way: it is learned by -log p(Q_i | theta_i) / M after K steps on the
support set alone, as constants, which are taken for that only where it is learned.

Where it departs: an inner step is one of gradient descent on one of two halves, support and query set, in place of
Adam's on mini-batches of all of a task's data.
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

    @property
    def objective_steps(self) -> int:
        """None, where nothing is learned beside theta: the steps of training are on both sets."""
        return self.inner_steps if self.hyperparameters() else 0

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return half the squared way, and where the likelihood learns, the query's -log p after the path."""
        theta_i = path[0]
        for k in range(self.inner_steps):
            theta_i = self.step(theta_i, (episode.support, episode.query)[k % 2], k, meta)
        ways = [(meta.theta[name] - value.detach()).square().sum() for name, value in theta_i.items()]
        way = objective = torch.stack(ways).sum() / 2
        if self.objective_steps:
            adapted = {name: value.detach() for name, value in path[-1].items()}
            objective = way + self.nll(adapted, episode.query, meta) / len(episode.query.y)
        return objective, {"way": way}

    @property
    def steps_by_hyper(self) -> bool:
        """Whether the path depends on what calibration fits: gradient steps on a mean loss do not."""
        return False
