r"""The likelihood p(y | f) of targets given network outputs: the one place that knows sigma or softmax.

Convention: ``loss`` is the mean that the inner loop descends; ``nll`` is the SUM of -log p over points, and every
curvature is that of the sum. With Lambda_n = -d^2 log p(y_n | f_n) / df_n^2,

    Gaussian:    nll = sum_n ||f_n - y_n||^2 / (2 sigma^2) + (N d / 2) log(2 pi sigma^2),   Lambda_n = I / sigma^2
    Categorical: nll = -sum_n log softmax(f_n)[y_n],                                        Lambda_n = diag(p) - p p^T

so the sum of squares alone is -log p up to a constant exactly when sigma^2 = 1/2.
"""

from dataclasses import dataclass, replace
from math import log, pi
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_exp.checks import require

Hyper = dict[str, Tensor]


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

    def hyperparameters(self) -> Hyper:
        """Return what is learned beside theta, in log space."""
        return {"log_sigma_noise": torch.tensor(float(self.sigma_noise)).log()} if self.learned else {}

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


@dataclass(frozen=True)
class Categorical:
    """Classification: outputs are C logits, targets are integers 0 .. C-1."""

    metric = "accuracy"

    def hyperparameters(self) -> Hyper:
        """Return what is learned beside theta: nothing."""
        return {}

    def at(self, hyper: Hyper) -> Self:
        """Return this likelihood; it has no hyper-parameter."""
        return self

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits [N, C], the inner loop's loss."""
        return F.cross_entropy(outputs, y)

    def nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), summed over the N points."""
        return F.cross_entropy(outputs, y, reduction="sum")

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, C, C-1] with S_n S_n^T = Lambda_n = diag(p) - p p^T.

        S = diag(s) - p s^T with s = sqrt(p) has the null direction s, which varies with p, on its right. A Householder
        reflection that sends s to a coordinate axis turns that into a zero column, and it is dropped: C - 1 backward
        passes a point instead of C.
        """
        # exp(log p / 2), because the derivative of sqrt(softmax) is not finite at large gaps between logits
        root = (outputs.log_softmax(-1) / 2).exp()
        p = root * root
        full = torch.diag_embed(root) - p[..., :, None] * root[..., None, :]
        # s has norm 1 and positive entries, so s + e_last is never near zero
        v = root + torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)[-1]
        reflected = full - (full @ v[..., :, None]) * (v / (1 + root[..., -1:]))[..., None, :]
        return reflected[..., :-1]

    def rank(self, outputs: int) -> int:
        """Columns of each S_n: the logits' common shift carries no information."""
        return outputs - 1

    def log_predictive(self, outputs: Tensor, covariance: Tensor, y: Tensor) -> Tensor:
        """Log of the averaged probability [M] that the S draws of logits [S, M, C] give to the class y [M].

        ``covariance`` is there for the Gaussian's sake; draws of logits carry their spread themselves.
        """
        chosen = outputs.log_softmax(-1).gather(-1, y.expand(len(outputs), -1)[..., None])[..., 0]
        return chosen.logsumexp(0) - log(len(outputs))

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """1 where the class of the highest averaged probability is y, else 0; [M]."""
        return (outputs.softmax(-1).mean(0).argmax(-1) == y).to(outputs.dtype)


Likelihood = Gaussian | Categorical
