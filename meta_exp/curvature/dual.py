r"""The Gaussian posterior N(theta_i, H^-1) with H = tau I + G^T G, in its dual form.

The rows of G are S_n^T J_n, R of them, with S_n S_n^T = Lambda_n and J_n the Jacobian of the outputs at point n. With
the small matrix M = I + G G^T / tau (R x R, float64, Cholesky):

    log det ratio   log det H - P log tau = log det M
    sample          delta = w - G^T M^-1 (G w + xi) / tau,   w = eps / sqrt(tau),   eps, xi ~ N(0, I)
    variance        J* H^-1 J*^T = (J* J*^T - (J* G^T) M^-1 (J* G^T)^T / tau) / tau

M >= I whatever the rank of G, so that its Cholesky factor needs no jitter: G is taken to float64 before the product.
Where its eigenvalues exceed 1e15 float64 has lost the I, and everything is NaN (``spectrum.cholesky``).
The ratio is what is optimised and logged: P log tau alone reaches 1e5 and would ruin float32.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from meta_exp.adaptation import Params
from meta_exp.curvature.base import Curvature, Posterior, draw_normal
from meta_exp.curvature.mode import DualNoise, ModePosterior
from meta_exp.curvature.rows import Directions, Jacobian, OutputsRows, Rows, identity_directions, to_matrix, to_params
from meta_exp.curvature.spectrum import cholesky, solve
from meta_exp.hyper import Hyper
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples


class DualPosterior(Posterior):
    """N(theta_i, (tau I + G^T G)^-1) over the layers that G has rows for."""

    def __init__(self, rows: Rows, tau: Tensor, layers: dict[str, nn.Module], jacobian: Jacobian) -> None:
        self.rows, self.tau, self.layers, self.jacobian = rows, tau.double(), layers, jacobian
        gram = sum(block.gram(block) for block in rows.values())
        assert isinstance(gram, Tensor)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        self.factor = cholesky(eye + gram / self.tau)

    def log_det_ratio(self) -> Tensor:
        """Log det H - P log tau >= 0, in float64."""
        return 2 * self.factor.diagonal().log().sum()

    def sample(self, noise: DualNoise) -> Params:
        """Return one draw of phi - theta_i, exact; vmap over ``noise`` for more."""
        w = {name: eps / self.tau.to(eps.dtype).sqrt() for name, eps in noise.prior.items()}
        matrices = {name: to_matrix(self.layers[name], w, name) for name in self.rows}
        projected = sum(block.apply(matrices[name]) for name, block in self.rows.items()) + noise.data
        weights = solve(self.factor, projected.double()[:, None])[:, 0] / self.tau
        delta: Params = {}
        for name, block in self.rows.items():
            update = matrices[name] - block.combine(weights.to(matrices[name].dtype))
            delta |= to_params(self.layers[name], name, update)
        return delta

    def functional_variance(self, x: Tensor) -> Tensor:
        """Covariances [M, C, C] of the linearised outputs at x [M, *features], in float64."""
        values, jacobian = self.jacobian(x)
        outputs = values.shape[1]
        own = torch.stack([block.squares(outputs) for block in jacobian.values()]).sum(0)
        cross = torch.stack([block.gram(self.rows[name]) for name, block in jacobian.items()]).sum(0)
        v = torch.linalg.solve_triangular(self.factor, cross.T, upper=False).T.unflatten(0, (-1, outputs))
        return (own - v @ v.mT / self.tau) / self.tau


class Dual(Curvature):
    """A structure that is given by its rows."""

    finds_mode = True

    @abstractmethod
    def jacobian_rows(self, params: Params, x: Tensor, directions: Directions) -> tuple[Tensor, Rows]:
        """Return outputs [N, C] at x, and the layers' rows of D_n^T J_n, with D = ``directions(outputs)``."""

    def posterior(
        self,
        params: Params,
        data: Examples,
        likelihood: Likelihood,
        hyper: Hyper,
        prior_mean: Params | None = None,
    ) -> Posterior:
        """Return the posterior of one task linearised at ``params``, around the mode where ``prior_mean`` is given."""
        tau = self.tau(hyper).to(data.x.device)

        def jacobian(x: Tensor) -> OutputsRows:
            return self.jacobian_rows(params, x, identity_directions)

        if prior_mean is not None:
            return ModePosterior(likelihood, data, tau, self.taps.layers, jacobian, params, prior_mean)
        _, rows = self.jacobian_rows(params, data.x, likelihood.hessian_sqrt)
        return DualPosterior(rows, tau, self.taps.layers, jacobian)

    def noise(
        self, generator: torch.Generator, shape: tuple[int, ...], theta: Params, points: int, likelihood: Likelihood
    ) -> DualNoise:
        """Draw what ``sample`` needs: a number for each parameter treated, and one for each row."""
        rows = points * likelihood.rank(self.taps.outputs)
        prior = super().noise(generator, shape, theta, points, likelihood)
        return DualNoise(prior, draw_normal(generator, (*shape, rows), theta))
