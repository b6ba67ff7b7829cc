r"""Regression whose noise depends on x: y ~ N(m, diag(s^2)), the network gives m and log s^2.

    nll = 1/2 sum_n sum_j [ (m - y)^2 / s^2 + log s^2 + log(2 pi) ],    Lambda_n = diag(1 / s^2, 1/2)

The observed Hessian in (m, log s^2) is indefinite where |y - m| < s, or is coupled otherwise; Lambda is the Fisher
information, its mean over y. curvature=hessian takes the observed one, as it does for every network.
"""

from dataclasses import dataclass
from math import log, pi, sqrt

import torch
from torch import Tensor

from meta_exp.likelihoods.base import Likelihood
from meta_exp.likelihoods.gaussian import NormalMixture


@dataclass(frozen=True)
class HeteroscedasticGaussian(Likelihood):
    """Outputs [N, 2 d] are the means of y [N, d], then the log variances.

    No log variance is clamped: one beyond the dtype's range (88 in float32) makes objectives and scores infinite or
    NaN, and training stops there with an error.
    """

    targets = "numbers"
    concave = False
    metric = "mse"

    def outputs_for(self, dimensions: int) -> int:
        """A mean and a log variance for each dimension."""
        return 2 * dimensions

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), averaged over the N points and d dimensions."""
        return self.nll(outputs, y) / y.numel()

    def nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), summed over the N points and d dimensions."""
        mean, log_variance = outputs.chunk(2, -1)
        return ((mean - y) ** 2 * (-log_variance).exp() + log_variance + log(2 * pi)).sum() / 2

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, 2 d, 2 d] = diag(1 / s, sqrt(1/2)), with S_n S_n^T the Fisher information."""
        _, log_variance = outputs.chunk(2, -1)
        precision = (-log_variance / 2).exp()
        return torch.diag_embed(torch.cat([precision, torch.full_like(precision, sqrt(0.5))], -1))

    def predictive(self, outputs: Tensor, covariance: Tensor) -> NormalMixture:
        """Return the mixture over S draws [S, M, 2 d] of means and log variances."""
        means, log_variances = outputs.chunk(2, -1)
        return NormalMixture(means, log_variances.exp())
