r"""Counts: y ~ Poisson(exp f), y = 0, 1, 2, ...

    nll = sum_n [ exp(f_n) - y_n f_n + log y_n! ],    Lambda_n = diag(exp f_n)

Predictives are computed in float64 and given in the dtype of the outputs. Nothing is clamped: a log rate above 88 has
an infinite rate in float32, so that loss, nll and objective are infinite and training stops there with an error; in a
predictive, a draw of such a rate makes mean, variance and squared error infinite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Self

import torch
from torch import Tensor

from meta_exp.likelihoods.base import Likelihood
from meta_exp.likelihoods.predictive import NumberPredictive, bisect, joined

TERMS = 256  # of the CRPS's sum over counts


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Outputs [N, d] are log rates, targets [N, d] counts."""

    targets = "counts"
    metric = "mse"

    def outputs_for(self, dimensions: int) -> int:
        """A log rate for each dimension."""
        return dimensions

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), averaged over the N points and d dimensions."""
        return self.nll(outputs, y) / y.numel()

    def nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), summed over the N points and d dimensions."""
        return (outputs.exp() - y * outputs + (y.to(outputs) + 1).lgamma()).sum()

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, d, d] with S_n S_n^T = Lambda_n."""
        return torch.diag_embed((outputs / 2).exp())

    def predictive(self, outputs: Tensor, covariance: Tensor) -> "PoissonPredictive":
        """Return the mixture over S draws of log rates [S, M, d]."""
        return PoissonPredictive(outputs)


class PoissonPredictive(NumberPredictive):
    """An equal mixture of S Poisson distributions of log rates [S, M, d]; dimensions are independent in each."""

    def __init__(self, log_rates: Tensor) -> None:
        self.log_rates, self.dtype = log_rates.double(), log_rates.dtype
        self.rates = self.log_rates.exp()

    @property
    def mean(self) -> Tensor:
        """Mean of y, [M, d]."""
        return self.rates.mean(0).to(self.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance of y, [M, d]: the components' own, which is their rate, and that of the rates."""
        return (self.rates.mean(0) + self.rates.var(0, correction=0)).to(self.dtype)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log probability [M] of the counts y [M, d]."""
        return (self._log_probs(y).sum(-1).logsumexp(0) - log(len(self.rates))).to(self.dtype)

    def cdf(self, y: Tensor) -> Tensor:
        """F(y) [M, d], a step function of real y."""
        return self._cdf(y.double().floor()).to(self.dtype)

    def quantile(self, q: float) -> Tensor:
        """The least count k with F(k) >= q, [M, d]."""
        high = (self.rates + 10 * self.rates.sqrt() + 10).amax(0)
        found = bisect(lambda y: self._cdf(y.floor()), q, torch.full_like(high, -0.5), high)
        return found.round().abs().to(self.dtype)  # abs: no negative zero

    def covered(self, y: Tensor, levels: Sequence[float]) -> list[Tensor]:
        """For each level whether y lies between the quantiles at its ends, both included, [M, d].

        That is F(y) >= (1 - level) / 2 and F(y - 1) < (1 + level) / 2: an interval of counts holds at least ``level``.
        """
        below, at = self._cdf(y.double() - 1), self._cdf(y.double())
        return [(at >= (1 - level) / 2) & (below < (1 + level) / 2) for level in levels]

    def pit(self, y: Tensor) -> Tensor:
        """The mid-value (F(y - 1) + F(y)) / 2 [M, d], whose mean is 1/2 where the predictive is calibrated."""
        return ((self._cdf(y.double() - 1) + self._cdf(y.double())) / 2).to(self.dtype)

    def crps(self, y: Tensor) -> Tensor:
        r"""CRPS [M, d] = mean_s E|Y_s - y| - sum_k F(k) (1 - F(k)).

        The first term has a closed form. The sum is exact, up to 1e-9 or so, where all the draws' rates with 8
        standard deviations about them span no more than ``TERMS`` counts; beyond, F is read at as many equally spaced
        places, and as F grows from 0 to 1 the error is at most the distance between two of them.
        """
        y = y.double()
        log_probs, at = self._log_probs(y), self._cdfs(y)
        to_target = ((y - self.rates) * (2 * at - 1) + 2 * self.rates * log_probs.exp()).mean(0)
        reach = 8 * self.rates.sqrt() + 16
        low = (self.rates - reach).amin(0).clamp_min(0).floor()
        spacing = (((self.rates + reach).amax(0) - low) / TERMS).clamp_min(1)
        places = torch.arange(TERMS, dtype=y.dtype, device=y.device) + 0.5
        k = low - 0.5 + spacing * places.view(-1, *[1] * low.ndim)  # the counts low, low + 1, ... at spacing 1
        below = self._cdfs(k[:, None]).mean(1)
        return (to_target - (spacing * below * (1 - below)).sum(0)).to(self.dtype)

    @classmethod
    def mixed(cls, members: Sequence[Self]) -> Self:
        """Return the equal mixture of ``members``."""
        found = cls(joined([member.log_rates for member in members]))
        found.dtype = members[0].dtype
        return found

    def _log_probs(self, y: Tensor) -> Tensor:
        """Log probability [S, M, d] of y [M, d] in each component."""
        y = y.double()
        return y * self.log_rates - self.rates - (y + 1).lgamma()

    def _cdf(self, y: Tensor) -> Tensor:
        return self._cdfs(y).mean(0)

    def _cdfs(self, y: Tensor) -> Tensor:
        """P(Y <= y) in each component, continued between the counts, for y that broadcasts with [S, M, d]."""
        return torch.where(y < 0, 0.0, torch.special.gammaincc(y.clamp_min(0) + 1, self.rates))
