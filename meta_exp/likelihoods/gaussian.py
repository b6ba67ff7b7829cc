r"""Regression: y ~ N(f, sigma^2 I).

    nll = sum_n ||f_n - y_n||^2 / (2 sigma^2) + (N d / 2) log(2 pi sigma^2),    Lambda_n = I / sigma^2

The sum of squares alone is -log p up to a constant exactly when sigma^2 = 1/2.
"""

from dataclasses import dataclass, replace
from math import log, pi
from typing import Self

import torch
from torch import Tensor

from meta_exp.config.checks import require
from meta_exp.hyper import Hyper, Learned, in_log_space


@dataclass(frozen=True)
class Gaussian:
    """Regression with observation noise ``sigma_noise``, fixed or ``learned`` (in log space) with theta."""

    sigma_noise: float | Tensor = 1.0
    learned: bool = False

    metric = "mse"

    def __post_init__(self) -> None:
        """Refuse a noise that is not positive."""
        if not isinstance(self.sigma_noise, Tensor):
            require(self.sigma_noise > 0, "likelihood.sigma_noise", "a standard deviation > 0", self.sigma_noise)

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

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, d, d] with S_n S_n^T = Lambda_n."""
        points, d = outputs.shape
        return torch.eye(d, dtype=outputs.dtype, device=outputs.device).expand(points, d, d) / self.sigma_noise

    def rank(self, outputs: int) -> int:
        """Columns of each S_n."""
        return outputs

    def log_predictive(self, outputs: Tensor, covariance: Tensor, y: Tensor) -> Tensor:
        """Log density [M] of y under the mixture of S Gaussians N(outputs_s, covariance + sigma^2 I).

        Args:
            outputs: means [S, M, d].
            covariance: of the outputs around their means, [M, d, d]; the noise is added here.
            y: targets [M, d].
        """
        eye = torch.eye(y.shape[-1], dtype=covariance.dtype, device=covariance.device)
        # cholesky_ex: values that are not finite go through to the score
        factor = torch.linalg.cholesky_ex(covariance + self.variance.to(covariance) * eye).L
        whitened = torch.linalg.solve_triangular(factor, (y - outputs)[..., None].to(factor), upper=False)[..., 0]
        log_scales = factor.diagonal(dim1=-2, dim2=-1).log() + log(2 * pi) / 2
        log_densities = -(whitened**2 / 2 + log_scales).sum(-1)
        return log_densities.logsumexp(0) - log(len(outputs))

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Squared error [M] of the mixture's mean, averaged over the d outputs."""
        return ((outputs.mean(0) - y) ** 2).mean(-1)
