r"""Regression: y ~ N(f, sigma^2 I).

    nll = sum_n ||f_n - y_n||^2 / (2 sigma^2) + (N d / 2) log(2 pi sigma^2),    Lambda_n = I / sigma^2

The sum of squares alone is -log p up to a constant exactly when sigma^2 = 1/2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, pi, sqrt
from typing import Self

import torch
from torch import Tensor

from meta_exp.config.checks import require, require_within
from meta_exp.hyper import Hyper, Learned, in_log_space
from meta_exp.likelihoods.base import Likelihood
from meta_exp.likelihoods.predictive import NumberPredictive, bisect, joined

SIGMA = 1e-6, 1e6  # whose squares fit into float32 with what is divided by them


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Regression with observation noise ``sigma_noise``, fixed or ``learned`` (in log space) with theta."""

    sigma_noise: float | Tensor = 1.0
    learned: bool = False

    targets = "numbers"
    metric = "mse"
    closed_form = True
    quadratic = True
    curved = ("log_sigma_noise",)

    def __post_init__(self) -> None:
        """Refuse a noise that is not positive."""
        if not isinstance(self.sigma_noise, Tensor):
            require(self.sigma_noise > 0, "likelihood.sigma_noise", "a standard deviation > 0", self.sigma_noise)
            require_within(SIGMA, "likelihood.sigma_noise", self.sigma_noise)

    def outputs_for(self, dimensions: int) -> int:
        """A mean for each dimension."""
        return dimensions

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: sigma, in log space."""
        return in_log_space("sigma_noise", self.sigma_noise) if self.learned else {}

    def at(self, hyper: Hyper) -> Self:
        """Return this likelihood with the noise that ``hyper`` holds."""
        return replace(self, sigma_noise=hyper["log_sigma_noise"].exp()) if self.learned else self

    @property
    def variance(self) -> Tensor:
        """sigma^2 as a 0-dimensional tensor, in float64 if fixed."""
        sigma = self.sigma_noise
        return (sigma if isinstance(sigma, Tensor) else torch.tensor(sigma, dtype=torch.float64)) ** 2

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of outputs [N, d], the inner loop's loss; it holds no sigma."""
        return ((outputs - y) ** 2).mean()

    def nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), summed over the N points and d outputs."""
        squares = ((outputs - y) ** 2).sum()
        variance = self.variance.to(squares)
        return squares / (2 * variance) + outputs.numel() / 2 * (log(2 * pi) + variance.log())

    def nll_per_loss(self, points: int, dimensions: int) -> float:
        """Return the change of ``nll`` by that of ``loss``, the mean square of N points of d dimensions."""
        return points * dimensions / (2 * float(self.variance))

    def pull(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return d log p(y | f) / df [N, d]."""
        return (y - outputs) / self.variance.to(outputs)

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, d, d] with S_n S_n^T = Lambda_n."""
        points, d = outputs.shape
        return torch.eye(d, dtype=outputs.dtype, device=outputs.device).expand(points, d, d) / self.sigma_noise

    def predictive(self, outputs: Tensor, covariance: Tensor) -> "GaussianPredictive":
        """Return the mixture of S Gaussians N(outputs_s, covariance + sigma^2 I)."""
        return GaussianPredictive(outputs, covariance, self.variance)


class NormalMixture(NumberPredictive):
    """An equal mixture of S Gaussians with means and variances [S, M, d]; dimensions are independent in each."""

    def __init__(self, means: Tensor, variances: Tensor) -> None:
        self.means, self.variances = means, variances

    @property
    def mean(self) -> Tensor:
        """Mean of y, [M, d]."""
        return self.means.mean(0)

    @property
    def variance(self) -> Tensor:
        """Variance of y, [M, d]: the components' own, and that of their means."""
        return self.variances.mean(0) + self.means.var(0, correction=0)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density [M] of y [M, d]."""
        log_densities = -((y - self.means) ** 2 / self.variances + self.variances.log() + log(2 * pi)) / 2
        return log_densities.sum(-1).logsumexp(0) - log(len(self.means))

    def cdf(self, y: Tensor) -> Tensor:
        """F(y) [M, d]."""
        return torch.special.ndtr((y - self.means) / self.variances.sqrt()).mean(0)

    def quantile(self, q: float) -> Tensor:
        """The q-quantile [M, d], by bisection in float64."""
        exact = NormalMixture(self.means.double(), self.variances.double())
        reach = 10 * exact.variances.sqrt()
        low, high = (exact.means - reach).amin(0), (exact.means + reach).amax(0)
        return bisect(exact.cdf, q, low, high).to(self.means)

    def crps(self, y: Tensor) -> Tensor:
        """CRPS [M, d], in closed form (Grimit, Gneiting, Berrocal and Johnson, 2006).

        mean_s A(y - mu_s, v_s) - 1/2 mean_st A(mu_s - mu_t, v_s + v_t), where A(m, v) = E|N(m, v)|.
        """
        means, variance = self.means, self.variances
        to_target = _mean_absolute(y - means, variance).mean(0)
        apart = _mean_absolute(means[:, None] - means[None], variance[:, None] + variance[None]).mean((0, 1))
        return to_target - apart / 2

    @classmethod
    def mixed(cls, members: "Sequence[NormalMixture]") -> "NormalMixture":
        """Return the equal mixture of ``members``."""
        return NormalMixture(joined([m.means for m in members]), joined([m.variances for m in members]))


class GaussianPredictive(NormalMixture):
    """The mixture of S Gaussians N(means_s, covariance + noise I).

    Args:
        means: [S, M, d].
        covariance: of the means around themselves, [M, d, d], or of each, [S, M, d, d]; of several dimensions it is
            factorised as it comes, in float64, since beside a small noise float32 may leave it no factor.
        noise: sigma^2.
    """

    def __init__(self, means: Tensor, covariance: Tensor, noise: Tensor) -> None:
        own = covariance.diagonal(dim1=-2, dim2=-1).to(means)
        super().__init__(means, (own + noise.to(own)).expand_as(means))
        self.covariance, self.noise = covariance if means.shape[-1] > 1 else covariance.to(means), noise

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density [M] of y [M, d], whose dimensions are dependent."""
        # cholesky_ex: values that are not finite go through to the score
        factor = torch.linalg.cholesky_ex(self._of_y()).L
        whitened = torch.linalg.solve_triangular(factor, (y - self.means)[..., None].to(factor), upper=False)[..., 0]
        log_scales = factor.diagonal(dim1=-2, dim2=-1).log() + log(2 * pi) / 2
        log_densities = -(whitened**2 / 2 + log_scales).sum(-1)
        return (log_densities.logsumexp(0) - log(len(self.means))).to(self.means)

    @classmethod
    def mixed(cls, members: "Sequence[NormalMixture]") -> "GaussianPredictive":
        """Return the equal mixture of ``members``, whose noises are their own and go into the covariances."""
        own = [member for member in members if isinstance(member, GaussianPredictive)]
        covariances = joined([member._of_y().expand(*member.means.shape, -1) for member in own])
        return cls(joined([member.means for member in own]), covariances, covariances.new_zeros(()))

    def _of_y(self) -> Tensor:
        """Return the covariance of y around each mean, the noise included."""
        eye = torch.eye(self.means.shape[-1], dtype=self.covariance.dtype, device=self.covariance.device)
        return self.covariance + self.noise.to(self.covariance) * eye


def _mean_absolute(m: Tensor, v: Tensor) -> Tensor:
    sd = v.sqrt()
    z = m / sd
    return sd * (sqrt(2 / pi) * (-z * z / 2).exp() + z * torch.erf(z / sqrt(2)))
