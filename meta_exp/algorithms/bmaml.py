r"""Bayesian MAML (Yoon, Kim, Dia, Kim, Bengio and Ahn 2018): S networks, adapted by SVGD, which drives them apart.

    theta_s^{k+1} = theta_s^k - alpha / S sum_j [ k_js grad loss(theta_j^k, S_i) - w / N grad_{theta_j} k_js ]
    k_js = exp(-||theta_j - theta_s||^2 / h),    h = median of the squared distances / log(S + 1)
    objective_i = -log { 1/S sum_s p(Q_i | theta_s^K) } / M

All S starts are learned. The kernel's gradient repels; the attraction is the mean loss that every inner loop here
descends, so that with w = 1 this is SVGD on p(S_i | phi), at sigma^2 = 1/2 for a Gaussian and with a flat prior, at the
rate alpha / N. Particles share alpha out: those far apart move at alpha / S each. One particle is MAML. With
``chaser`` the objective is instead the way to where the particles go on to when they see both sets, which is not
differentiated:

    objective_i = sum_s ||theta_s^K - leader_s||^2,    leader = SVGD(theta^K; S_i and Q_i), ``leader_steps`` times

Where it departs: sigma belongs to the likelihood and is no particle's own, with no prior on it or on the weights; the
query set's term stays beside the chaser's for what the likelihood learns alone. h counts each pair once, and is
differentiated. Of the S starts the first is the network's own initialisation, and each of the others that with the
entries of every tensor permuted, so a draw from the same initial distribution.
"""

from dataclasses import dataclass
from functools import partial
from math import log

import torch
from torch import Tensor
from torch.func import grad

from meta_exp.adaptation import Meta, Params
from meta_exp.algorithms.base import HEAVIEST, STEPS, Logs
from meta_exp.algorithms.particles import Particles, of_each
from meta_exp.config.checks import require, require_at_most
from meta_exp.hyper import Learned, weights
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class BMAML(Particles):
    """Particles adapted by Stein variational gradient descent.

    Attributes:
        particles: S, theta and S - 1 learned beside it.
        repulsion: w.
        chaser: train by the chaser loss.
        leader_steps: of the leader, with the chaser loss.
    """

    particles: int = 5
    repulsion: float = 1.0
    chaser: bool = False
    leader_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse a negative repulsion, and a leader that goes nowhere."""
        super().__post_init__()
        require(self.repulsion >= 0, "algorithm.repulsion", "a weight >= 0", self.repulsion)
        require_at_most(HEAVIEST, "algorithm.repulsion", self.repulsion)
        require(self.leader_steps >= 1, "algorithm.leader_steps", "at least 1", self.leader_steps)
        require_at_most(STEPS, "algorithm.leader_steps", self.leader_steps)

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: what the likelihood learns, and the other particles."""
        found = super().hyperparameters()
        generator = torch.Generator().manual_seed(0)
        for name, value in self.model.named_parameters():
            if value.requires_grad and self.particles > 1:
                flat = value.detach().flatten()
                orders = [torch.randperm(len(flat), generator=generator) for _ in range(self.particles - 1)]
                others = [flat[order.to(flat.device)].view_as(value) for order in orders]
                found |= weights(f"particles.{name}", torch.stack(others))
        return found

    def start(self, meta: Meta) -> Params:
        """Return the learned starts [S, ...]."""
        if self.particles == 1:
            return {name: value[None] for name, value in meta.theta.items()}
        return {name: torch.cat([value[None], meta.hyper[f"particles.{name}"]]) for name, value in meta.theta.items()}

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return a step of SVGD on the support set."""
        gradient = of_each(grad(partial(self.loss, data=support)), params)
        kernel, width = _kernel(torch.cat([value.flatten(1) for value in params.values()], 1))

        def moved(value: Tensor, gradient: Tensor) -> Tensor:
            place = value.flatten(1)
            apart = 2 / width * (kernel.sum(1, keepdim=True) * place - kernel @ place)
            way = kernel @ gradient.flatten(1) - self.repulsion / len(support.y) * apart
            return value - self.inner_lr / self.particles * way.view_as(value)

        return {name: moved(value, gradient[name]) for name, value in params.items()}

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return -log of the mixture's probability of the query set a point, or the chaser loss."""
        if not self.chaser:
            return self._mixture_nll(path[-1], episode.query, meta), {}
        constant = {name: value.detach() for name, value in path[-1].items()}
        both = Examples(*(torch.cat(parts) for parts in zip(*episode, strict=True)))
        leader = constant
        for k in range(self.leader_steps):
            leader = self.step(leader, both, k, meta)
        ways = [(value - leader[name].detach()).square().sum() for name, value in path[-1].items()]
        way = torch.stack(ways).sum()
        return way + self._mixture_nll(constant, episode.query, meta), {"way": way}

    def _mixture_nll(self, params: Params, data: Examples, meta: Meta) -> Tensor:
        nlls = self.nlls(params, data, meta)
        return (log(self.particles) - (-nlls).logsumexp(0)) / len(data.y)


def _kernel(places: Tensor) -> tuple[Tensor, Tensor]:
    """Return k [S, S] between particles at ``places`` [S, P], and its width h."""
    count = len(places)
    if count == 1:
        return places.new_ones(1, 1), places.new_ones(())
    centred = places - places.mean(0)  # where products keep their digits
    products = centred @ centred.T
    squares = products.diagonal()
    distances = squares[:, None] + squares - 2 * products
    first, second = torch.triu_indices(count, count, 1, device=places.device)
    width = distances[first, second].median() / log(count + 1)
    return (-distances / width).exp(), width
