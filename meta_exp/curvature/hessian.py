r"""The exact Hessian, for small networks: a diagnostic of what the generalised Gauss-Newton matrix leaves out.

    H = tau I + V max(Lambda, 0) V^T,    V Lambda V^T = Hessian of -log p(data | phi) at theta_i

Away from a minimum the Hessian has negative eigenvalues; a Gaussian posterior exists only where tau outweighs them.
Negative eigenvalues are taken as 0 here, so that H >= tau I always, and the diagnostics say of how many tasks tau I +
Hessian was not positive definite, and how many eigenvalues were clamped. The matrix and its eigenvectors are P x P in
float64: a task of the 1-40-40-1 network (P = 1761) takes about two seconds, in validation and in test.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from meta_exp.adaptation import Params
from meta_exp.config.checks import require
from meta_exp.curvature.base import Curvature, Posterior
from meta_exp.curvature.spectrum import eigh
from meta_exp.curvature.taps import Taps, layers_with_parameters
from meta_exp.hyper import Hyper
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples


class HessianPosterior(Posterior):
    """N(theta_i, H^-1) by the eigenvectors of H.

    Attributes:
        clamped: the number of negative eigenvalues of the Hessian, each of which is 0 in H.
        indefinite: whether tau I + Hessian was not positive definite.
    """

    def __init__(self, matrix: Tensor, tau: Tensor, model: nn.Module, params: Params, known: Params) -> None:
        self.model, self.params, self.known, self.tau = model, params, known, tau
        eigenvalues, self.vectors = eigh(matrix)
        self.eigenvalues = eigenvalues.clamp_min(0)
        rounding = 1e-12 * eigenvalues.abs().max()  # the zeros of a matrix of lower rank are not negative
        self.clamped = (eigenvalues < -rounding).sum()
        self.indefinite = (eigenvalues + tau <= 0).any()

    def log_det_ratio(self) -> Tensor:
        """Log det H - P log tau >= 0, in float64."""
        return (self.eigenvalues / self.tau).log1p().sum()

    def sample(self, noise: Params) -> Params:
        """Return one draw of phi - theta_i, exact; vmap over ``noise`` for more."""
        z = _vector({name: noise[name].double() for name in self.params})
        draw = self.vectors @ (z * (self.eigenvalues + self.tau).rsqrt())
        return {name: part.to(noise[name].dtype) for name, part in _unvector(draw, self.params).items()}

    def functional_variance(self, x: Tensor) -> Tensor:
        """Covariances [M, C, C] of the linearised outputs at x [M, *features], in float64."""

        def outputs(v: Tensor) -> Tensor:
            return functional_call(self.model, self.known | _unvector(v, self.params), (x.double(),))

        rotated = jacrev(outputs)(_vector(self.params)) @ self.vectors
        scaled = rotated * (self.eigenvalues + self.tau).rsqrt()
        return scaled @ scaled.mT

    def diagnostics(self) -> dict[str, Tensor]:
        """Whether tau I + Hessian was not positive definite (1 or 0), and the number of eigenvalues clamped."""
        return {"indefinite": self.indefinite.double(), "clamped": self.clamped.double()}


class Hessian(Curvature):
    """Exact Hessian of a network of Linear, Conv2d and Affine layers.

    Args:
        model: the network.
        input_shape: features of one input.
        prior_precision: tau > 0 of the prior N(theta, I / tau).
        learned: learn log tau with theta, which takes LLAMA's prior term.
        max_parameters: refuse larger networks.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        prior_precision: float = 1.0,
        learned: bool = False,
        max_parameters: int = 2000,
    ) -> None:
        count = sum(parameter.numel() for parameter in model.parameters())
        got = f"{count}, whose matrix alone takes {8 * count**2 / 2**30:.3g} GiB a task"
        remedy = "choose curvature=ggn or kfac, or raise curvature.max_parameters"
        require(count <= max_parameters, "curvature=hessian", f"at most {max_parameters} parameters", got, remedy)
        super().__init__(Taps(model, input_shape, layers_with_parameters(model)), prior_precision, learned)

    def posterior(
        self,
        params: Params,
        data: Examples,
        likelihood: Likelihood,
        hyper: Hyper,
        prior_mean: Params | None = None,
    ) -> HessianPosterior:
        """Return the posterior of one task around ``params``, or the mode, given its N examples."""
        model = self.taps.model
        every = dict(model.named_parameters()) | dict(model.named_buffers()) | params
        every = {name: value.double() for name, value in every.items() if value.is_floating_point()}
        treated = {name: every.pop(name) for name in self.parameter_names}

        def nll(v: Tensor) -> Tensor:
            return likelihood.nll(functional_call(model, every | _unvector(v, treated), (data.x.double(),)), data.y)

        matrix = hessian(nll)(_vector(treated))
        return HessianPosterior(matrix, self.tau(hyper).to(matrix), model, treated, every)


def _vector(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def _unvector(v: Tensor, like: Params) -> Params:
    parts = v.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, like.items(), strict=True)}
