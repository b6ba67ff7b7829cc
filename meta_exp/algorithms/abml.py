r"""ABML (Ravi and Beatson 2019), amortized Bayesian meta-learning: a task has a Gaussian over parameters, which adapts.

    q(phi) = N(mu, diag s^2),    p(phi | theta) = N(mu_theta, diag s_theta^2),    (mu, s)^0 = (mu_theta, s_theta)
    (mu, log s)^{k+1} = (mu, log s)^k - alpha grad { E_q[loss(phi, S_i)] + w / N KL(q || p) }
    objective_i(mu_theta, s_theta) = { E_q[-log p(S_i and Q_i | phi)] + w KL(q || p) } / (N + M)

theta is mu_theta, and s_theta, a deviation for each parameter, is learned beside it as its logarithm. The means over q
are over ``draws`` by reparametrisation. q is conditioned on the support set alone and scored on both sets, as in the
paper; ``data=query`` scores the query set, and then, without deviations and KL, it is MAML.

Where it departs: the inner loss is the mean that every inner loop here descends, in place of the sum, so that alpha
means the same as in MAML; for a Gaussian it holds no sigma, and with w = 1 is the ELBO at sigma^2 = 1/2. Weights are
drawn, one set for all points, in place of flipout. There is no hyper-prior on theta, whose share of the paper's
objective falls with the number of tasks.

The KL pulls with the curvature w / (N s_theta^2), so that steps diverge where alpha is more than twice its inverse; one
step does not show that, since q starts at p. w is 1 in the paper's bound; a larger deviation or w learns more slowly.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meta_exp.adaptation import Meta, Noise, Params, gradient_step
from meta_exp.algorithms import normal
from meta_exp.algorithms.base import DEVIATIONS, DRAWS, FASTEST, HEAVIEST, Algorithm, Logs
from meta_exp.algorithms.particles import of_each, refuse_curvature
from meta_exp.config.checks import require, require_at_most, require_within
from meta_exp.curvature import Posterior
from meta_exp.curvature.base import draw_normal
from meta_exp.hyper import Learned, in_log_space
from meta_exp.prediction import Prediction, mixture
from meta_exp.tasks.episode import Episode, Examples

DEVIATION = "log_deviation."  # before a parameter's name, in hyper-parameters and in states


@dataclass(frozen=True, kw_only=True)
class ABML(Algorithm):
    """A variational posterior for each task.

    Attributes:
        inner_lr: alpha, of means and log deviations.
        first_order: take inner gradients as constants.
        deviation: where s_theta starts.
        draws_a_step: of phi, for the means over q in each step and in the objective.
        kl_weight: w.
        data: what is scored.
    """

    inner_lr: float
    inner_steps: int = 5
    first_order: bool = False
    deviation: float = 0.03
    draws_a_step: int = 1
    kl_weight: float = 0.01
    data: Literal["both", "query"] = "both"

    def __post_init__(self) -> None:
        """Refuse what adapts nothing, a negative weight, and a curvature."""
        refuse_curvature(self)
        super().__post_init__()
        require(self.inner_lr > 0, "algorithm.inner_lr", "a learning rate > 0", self.inner_lr)
        require_at_most(FASTEST, "algorithm.inner_lr", self.inner_lr)
        require(self.inner_steps >= 1, "algorithm.inner_steps", "at least 1", self.inner_steps)
        require(self.deviation > 0, "algorithm.deviation", "a standard deviation > 0", self.deviation)
        require_within(DEVIATIONS, "algorithm.deviation", self.deviation)
        require(self.draws_a_step >= 1, "algorithm.draws_a_step", "at least 1", self.draws_a_step)
        require_at_most(DRAWS, "algorithm.draws_a_step", self.draws_a_step)
        require(self.kl_weight >= 0, "algorithm.kl_weight", "a weight >= 0", self.kl_weight)
        require_at_most(HEAVIEST, "algorithm.kl_weight", self.kl_weight)
        require(self.data in ("both", "query"), "algorithm.data", "both or query", self.data)

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: what the likelihood learns, and s_theta."""
        found = super().hyperparameters()
        for name, value in self.model.named_parameters():
            if value.requires_grad:
                found |= in_log_space(f"deviation.{name}", torch.full_like(value.detach(), self.deviation))
        return found

    def noise(self, generator: torch.Generator, theta: Params, points: int) -> Noise:
        """Draw z [K, draws, ...] of the K steps; more steps begin again with the first."""
        return self._noise(generator, theta, self.inner_steps)

    def training_noise(self, generator: torch.Generator, theta: Params, points: int) -> Noise:
        """Draw z [K + 1, draws, ...], the last of the objective."""
        return self._noise(generator, theta, self.inner_steps + 1)

    def start(self, meta: Meta) -> Params:
        """Return (mu_theta, log s_theta)."""
        return meta.theta | {f"{DEVIATION}{name}": meta.hyper[f"{DEVIATION}{name}"] for name in meta.theta}

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return the next mean and log deviation."""
        draws = {name: z[k % self.inner_steps] for name, z in meta.noise.items()}

        def loss(params: Params) -> Tensor:
            fit = of_each(lambda draw: self.loss(_drawn(params, draw), support), draws).mean()
            return fit + self._kl(params, meta) / len(support.y)

        return gradient_step(loss, params, lr=self.inner_lr, first_order=self.first_order)

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return the ELBO's negative a point, and the KL with its weight."""
        draws = {name: z[self.inner_steps] for name, z in meta.noise.items()}
        parts = (episode.support, episode.query) if self.data == "both" else (episode.query,)

        def nll(draw: Params) -> Tensor:
            phi = _drawn(path[-1], draw)
            return torch.stack([self.nll(phi, part, meta) for part in parts]).sum()

        kl = self._kl(path[-1], meta)
        return (of_each(nll, draws).mean() + kl) / sum(len(part.y) for part in parts), {"kl": kl}

    def network(self, params: Params, x: Tensor) -> Tensor:
        """Return the outputs [N, C] at x of the network at the mean, or at a draw."""
        return super().network({name: value for name, value in params.items() if not name.startswith(DEVIATION)}, x)

    @property
    def predictives(self) -> tuple[str, ...]:
        """The network at the mean, and the mixture over draws from q, which is served."""
        return ("map", "sample")

    @property
    def validated(self) -> tuple[str, ...]:
        """The mixture too, by which the best checkpoint is chosen."""
        return self.predictives

    def predict(
        self,
        kind: str,
        params: Params,
        x: Tensor,
        meta: Meta,
        posterior: Posterior | None = None,
        draws: Noise = None,
    ) -> Prediction:
        """Predict at x [M, *features]."""
        if kind == "map":
            return mixture(self.network(params, x)[None])
        return mixture(of_each(lambda draw: self.network(_drawn(params, draw), x), draws))

    @property
    def draws_networks(self) -> bool:
        """Whether networks can be drawn for a task."""
        return True

    def draws(self, generator: torch.Generator, shape: tuple[int, ...], theta: Params, points: int) -> Noise:
        """Draw a standard normal number for each parameter."""
        return {name: draw_normal(generator, (*shape, *value.shape), theta) for name, value in theta.items()}

    @property
    def steps_by_hyper(self) -> bool:
        """Whether the path depends on what calibration fits: steps on a mean loss do not."""
        return False

    def _noise(self, generator: torch.Generator, theta: Params, steps: int) -> Noise:
        return self.draws(generator, (steps, self.draws_a_step), theta, 0)

    def _kl(self, params: Params, meta: Meta) -> Tensor:
        """Return w KL(q || p), nothing where w is."""
        if not self.kl_weight:
            return next(iter(params.values())).new_zeros(())
        mean = {name: params[name] for name in meta.theta}
        return self.kl_weight * normal.divergence(mean, _deviations(params), meta.theta, _deviations(meta.hyper))


def _deviations(values: Params) -> Params:
    return {name.removeprefix(DEVIATION): value for name, value in values.items() if name.startswith(DEVIATION)}


def _drawn(params: Params, draw: Params) -> Params:
    """Return one network's parameters, phi = mu + s z."""
    return normal.drawn({name: params[name] for name in draw}, _deviations(params), draw)
