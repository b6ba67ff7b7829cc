r"""What every structure of the curvature shares: the prior N(theta, I / tau), and what a posterior offers.

A structure approximates H = tau I + (curvature of -log p(data | phi) at theta_i), always of the SUM over points, and
gives the posterior N(theta_i, H^-1) of one task. tau is fixed, or learned with theta in log space.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from copy import copy
from typing import ClassVar

import torch
from torch import Tensor

from meta_exp.adaptation import Noise, Params
from meta_exp.config.checks import require, require_within
from meta_exp.curvature.taps import Taps
from meta_exp.hyper import Hyper, Learned, in_log_space
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples

TAU = 1e-9, 1e12


class Posterior(ABC):
    """N(theta_i, H^-1) of one task, or N(theta*, H^-1), over the parameters that the structure treats.

    Attributes:
        at_mode: whether its mean is the mode theta* of the model that is linear at theta_i.
    """

    at_mode: ClassVar[bool] = False

    @abstractmethod
    def log_det_ratio(self) -> Tensor:
        """Log det H - P log tau >= 0, in float64."""

    @abstractmethod
    def sample(self, noise: Noise) -> Params:
        """Return one draw of phi - theta_i; vmap over ``noise`` for more."""

    @abstractmethod
    def functional_variance(self, x: Tensor) -> Tensor:
        """Covariances [M, C, C] of the linearised outputs at x [M, *features], in float64."""

    def mode(self) -> Params | None:
        """Return theta* - theta_i, from theta_i to the posterior's mean theta*; None where that is theta_i itself."""
        return None

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the outputs at x in the linear model, where the mean is the mode.

        Args:
            x: inputs [M, *features].
            joint: of all outputs together.

        Returns:
            Mean [M, C], and covariance [M, C, C] or, ``joint``, [M C, M C], in float64 and differentiable.
        """
        raise NotImplementedError(type(self).__name__)

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars that say where the approximation failed; here it cannot."""
        return {}


class Curvature(ABC):
    """A structure of the curvature of one network.

    Args:
        taps: hooks on the layers that the structure treats.
        prior_precision: tau > 0 of the prior N(theta, I / tau).
        learned: learn log tau with theta, which takes LLAMA's prior term.

    Attributes:
        default_prior_precision: tau of regression, where none is given.
        default_eta: LLAMA's weight of this structure's log det; those of different structures are not comparable.
        finds_mode: whether posteriors can be around the mode.
    """

    default_prior_precision: ClassVar[float] = 1000.0
    default_eta: ClassVar[float] = 0.05
    finds_mode: ClassVar[bool] = False

    def __init__(self, taps: Taps, prior_precision: float, learned: bool) -> None:
        require(prior_precision > 0, "curvature.prior_precision", "a precision > 0", prior_precision)
        require_within(TAU, "curvature.prior_precision", prior_precision)
        self.taps = taps
        self.prior_precision = prior_precision
        self.learned = learned

    @property
    def parameter_names(self) -> list[str]:
        """Names of the parameters treated."""
        return [f"{n}.{p}" for n, layer in self.taps.layers.items() for p, _ in layer.named_parameters()]

    @abstractmethod
    def posterior(
        self,
        params: Params,
        data: Examples,
        likelihood: Likelihood,
        hyper: Hyper,
        prior_mean: Params | None = None,
    ) -> Posterior:
        """Return the posterior of one task given its N examples, linearised at theta_i = ``params``.

        Its mean is theta_i, or with ``prior_mean`` theta the mode of the linear model.
        """

    def without(self, layers: Collection[str]) -> "Curvature":
        """Return the same structure of the other layers; those named are taken as known."""
        rest = copy(self)
        rest.taps = self.taps.without(layers)
        return self if rest.taps is self.taps else rest

    def exact(self) -> "Curvature":
        """Return the structure as evaluation and production take it, without what training alone saves on."""
        return self

    def noise(
        self, generator: torch.Generator, shape: tuple[int, ...], theta: Params, points: int, likelihood: Likelihood
    ) -> Noise:
        """Draw what ``sample`` needs, of leading ``shape``, for a task of ``points`` support points.

        Here: a standard normal number for each parameter treated.
        """
        return {name: draw_normal(generator, (*shape, *theta[name].shape), theta) for name in self.parameter_names}

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: tau, in log space."""
        return in_log_space("prior_precision", self.prior_precision) if self.learned else {}

    def free(self) -> dict[str, Learned]:
        """Return what may be fitted after training to what is served: tau."""
        return in_log_space("prior_precision", float(self.prior_precision))

    def tau(self, hyper: Hyper) -> Tensor:
        """Return the prior precision: that of ``hyper``, learned or tuned, or else the fixed one."""
        fixed = torch.tensor(self.prior_precision, dtype=torch.float64)
        return hyper["log_prior_precision"].exp() if "log_prior_precision" in hyper else fixed

    def log_det_floor(self, outputs: Tensor, likelihood: Likelihood, hyper: Hyper) -> Tensor:
        """Return the log det ratio of a network whose outputs [N, C] depend on nothing but a bias of their own.

        It is 0 where the layer that gives the outputs is not treated.
        """
        if not self.taps.final:
            return outputs.new_zeros((), dtype=torch.float64)
        roots = likelihood.hessian_sqrt(outputs).double()
        precision = (roots @ roots.mT).sum(0) / self.tau(hyper).to(roots)
        eye = torch.eye(len(precision), dtype=precision.dtype, device=precision.device)
        return 2 * torch.linalg.cholesky_ex(eye + precision).L.diagonal().log().sum()

    def prior_term(self, theta_i: Params, theta: Params, hyper: Hyper) -> Tensor:
        """Return tau / 2 ||theta_i - theta||^2 over the parameters treated."""
        squares = [((theta_i[name] - theta[name]) ** 2).sum() for name in self.parameter_names]
        total = torch.stack(squares).sum()
        return self.tau(hyper).to(total) / 2 * total


def draw_normal(generator: torch.Generator, shape: tuple[int, ...], theta: Params) -> Tensor:
    """Draw standard normal numbers on the generator's device, of the dtype of ``theta``."""
    dtype = next(iter(theta.values())).dtype
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
