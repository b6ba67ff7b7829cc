r"""PLATIPUS (Finn, Xu and Levine 2018): MAML from a start that is drawn for each task, from a learned distribution.

    p(theta | S_i) = N(mu - gamma_p grad loss(mu, S_i), diag s_p^2)      where a task starts, wherever the run is used
    q(theta | Q_i) = N(mu - gamma_q grad loss(mu, Q_i), diag s_q^2)      where it starts in training
    phi_i = theta - alpha grad loss(theta, S_i)                          (K times)
    objective_i = { E_q[-log p(Q_i | phi_i)] + w KL(q || p) } / M

mu is theta here; s_p, s_q, a deviation for each parameter, and the rates gamma are learned beside it, as logarithms.
Training takes ``draws`` starts from q, and what is used ``particles`` from p, which predict as a mixture. theta^0 is
drawn around mu, and the first step goes by p's mean too. Without deviations, KL and gamma_q it is MAML.

Where it departs: gradient steps are on the mean loss, as everywhere here, in place of -log p, a sum. Training takes no
step of the path from p, so that checkpointed steps save no memory. w is 1 in the paper's bound; where deviations are
small the KL then holds both means where they are, and little is learned.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad

from meta_exp.adaptation import Meta, Noise, Params, gradient_step
from meta_exp.algorithms import normal
from meta_exp.algorithms.base import DEVIATIONS, DRAWS, FASTEST, HEAVIEST, Logs
from meta_exp.algorithms.particles import Particles, of_each
from meta_exp.config.checks import require, require_at_most, require_within
from meta_exp.curvature.base import draw_normal
from meta_exp.hyper import Learned, in_log_space
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class PLATIPUS(Particles):
    """Starts drawn from p given the support set, trained as draws from q given the query set.

    Attributes:
        particles: starts from p, wherever the run is used.
        draws_a_task: starts from q in training.
        first_order: take the gradients of the steps from a start as constants.
        deviation: where s_p and s_q begin.
        start_lr: where gamma_p and gamma_q begin; None for alpha. A large one shows training the labels of the query
            set, which nothing does where the run is used.
        kl_weight: w.
    """

    particles: int = 10
    draws_a_task: int = 1
    first_order: bool = False
    deviation: float = 0.03
    start_lr: float | None = 0.01
    kl_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what draws nothing, and a negative weight."""
        super().__post_init__()
        require(self.draws_a_task >= 1, "algorithm.draws_a_task", "at least 1", self.draws_a_task)
        require_at_most(DRAWS, "algorithm.draws_a_task", self.draws_a_task)
        require(self.deviation > 0, "algorithm.deviation", "a standard deviation > 0", self.deviation)
        require_within(DEVIATIONS, "algorithm.deviation", self.deviation)
        rate = self.start_lr is None or self.start_lr > 0
        require(rate, "algorithm.start_lr", "null or a learning rate > 0", self.start_lr)
        require_at_most(FASTEST, "algorithm.start_lr", self.start_lr or 0.0)
        require(self.kl_weight >= 0, "algorithm.kl_weight", "a weight >= 0", self.kl_weight)
        require_at_most(HEAVIEST, "algorithm.kl_weight", self.kl_weight)

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: what the likelihood learns, the deviations, and the rates gamma."""
        found = super().hyperparameters()
        for part in ("p", "q"):
            for name, value in self.model.named_parameters():
                if value.requires_grad:
                    start = torch.full_like(value.detach(), self.deviation)
                    found |= in_log_space(f"deviation_{part}.{name}", start)
            found |= in_log_space(f"start_lr_{part}", self.inner_lr if self.start_lr is None else self.start_lr)
        return found

    def noise(self, generator: torch.Generator, theta: Params, points: int) -> Noise:
        """Draw z [particles, ...] of the starts."""
        return _normal(generator, self.particles, theta)

    def training_noise(self, generator: torch.Generator, theta: Params, points: int) -> Noise:
        """Draw z [draws, ...] of the starts in training."""
        return _normal(generator, self.draws_a_task, theta)

    def start(self, meta: Meta) -> Params:
        """Return theta^0 = mu + s_p z."""
        return normal.drawn(meta.theta, _deviations("p", meta), meta.noise)

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return a gradient step of each particle; the first goes from the mean of p, instead of mu."""
        if k == 0:
            mean = self._mean("p", support, meta)
            params = {name: value + (mean[name] - meta.theta[name]) for name, value in params.items()}
        return self._descend(params, support)

    @property
    def objective_steps(self) -> int:
        """None: training starts from q."""
        return 0

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return the objective with starts from q, and the KL with its weight."""
        q, p = self._mean("q", episode.query, meta), self._mean("p", episode.support, meta)
        params = normal.drawn(q, _deviations("q", meta), meta.noise)
        for _ in range(self.inner_steps):
            params = self._descend(params, episode.support)
        nll = self.nlls(params, episode.query, meta).mean()
        kl = torch.zeros_like(nll)
        if self.kl_weight:
            kl = self.kl_weight * normal.divergence(q, _deviations("q", meta), p, _deviations("p", meta))
        return (nll + kl) / len(episode.query.y), {"kl": kl}

    def _mean(self, part: str, data: Examples, meta: Meta) -> Params:
        """Return the mean of p or q given ``data``."""
        gradient, rate = grad(self.loss)(meta.theta, data), meta.hyper[f"log_start_lr_{part}"].exp()
        return {name: value - rate.to(value) * gradient[name] for name, value in meta.theta.items()}

    def _descend(self, params: Params, support: Examples) -> Params:
        loss = partial(self.loss, data=support)

        def one(params: Params) -> Params:
            return gradient_step(loss, params, lr=self.inner_lr, first_order=self.first_order)

        return of_each(one, params)


def _normal(generator: torch.Generator, count: int, theta: Params) -> Noise:
    return {name: draw_normal(generator, (count, *value.shape), theta) for name, value in theta.items()}


def _deviations(part: str, meta: Meta) -> Params:
    return {name: meta.hyper[f"log_deviation_{part}.{name}"] for name in meta.theta}
